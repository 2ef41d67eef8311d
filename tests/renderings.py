"""Expected hosts of whole sites, made with certificates and secrets that are nobody's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from site_files import REPOSITORY

from callfleet.authority import Authority
from callfleet.desired import Context, expected_host
from callfleet.expected import Concern, ExpectedHost, File
from callfleet.secrets import SecretRef
from callfleet.site import Site, load_site

SHIPPED = ("local", "staging", "prod")


@cache
def authority() -> Authority:
    """One authority for every dummy certificate."""
    return Authority.make("nobody")


@cache
def certificate(name: str) -> bytes:
    """Certificate and key, made once for each name."""
    return authority().issue(re.sub(r"[^a-z0-9-]", "-", name.lower())[:60] or "x") + b"\n"


@dataclass
class Dummies:
    """Stands in for a site's credentials: every secret has a value of its own, every certificate a key."""

    secrets: dict[str, str] = field(default_factory=dict)
    used: dict[str, bytes] = field(default_factory=dict)

    def secret(self, name: str) -> str:
        """The made-up value of a named secret."""
        value = self.secrets.get(name, f"correct-horse-{name}-battery")
        self.used[name] = value.encode()
        return value

    def credential(self, reference: SecretRef | str) -> bytes:
        """A certificate with its key for a secret reference, the authority's certificate for a path."""
        if isinstance(reference, str):
            return certificate_only(authority().pem())
        if (given := self.secrets.get(str(reference))) is not None:
            return given.encode()
        pem = certificate(str(reference))
        self.used[str(reference)] = pem[pem.index(b"-----BEGIN PRIVATE KEY") :]
        return pem


def certificate_only(pem: bytes) -> bytes:
    """The part of a PEM that everybody may read."""
    return pem[: pem.index(b"-----BEGIN PRIVATE KEY")]


def context(site: Site, host: str, dummies: Dummies | None = None, **others: Any) -> Context:
    """What the builders are given for one host; `others` are fields of Context."""
    store = dummies or Dummies()
    return Context(site, site.host(host), store.secret, store.credential, **others)


def expected(site: Site, host: str, dummies: Dummies | None = None, **others: Any) -> ExpectedHost:
    """Everything that must hold on one host."""
    return expected_host(context(site, host, dummies, **others))


def concern(site: Site, host: str, name: str, dummies: Dummies | None = None, **others: Any) -> Concern:
    """One concern of one host, which must have it."""
    found = expected(site, host, dummies, **others).concern(name)
    assert found is not None, f"{host} has no concern {name}"
    return found


def files(expected: ExpectedHost) -> Mapping[str, File]:
    """The files of a host by path, as they end up."""
    return {item.path: item for item in expected.items() if isinstance(item, File)}


def shipped(name: str) -> Site:
    """A site file of the repository."""
    return load_site(REPOSITORY / "inventories" / f"{name}.yml")


@dataclass(frozen=True)
class Proxy:
    """An HAProxy configuration and the files that it reads, moved below one folder."""

    label: str
    config: str
    beside: Mapping[str, bytes]


def proxies(site: Site, folder: str) -> list[Proxy]:
    """Every HAProxy configuration of a site, with its paths below `folder`/<label>."""
    found = []
    for host in site.hosts:
        made = files(expected(site, host.name))
        for kind, config, moved in (
            ("front", "/etc/callfleet/ingress/haproxy.cfg", ("/etc/callfleet/ingress/", "/run/callfleet-ingress/")),
            (
                "fleet",
                f"/opt/stacks/{site.brand.stack}/haproxy/haproxy.cfg",
                ("/etc/callfleet/tls/", "/usr/local/etc/haproxy/", "/run/haproxy/"),
            ),
        ):
            if config not in made:
                continue
            label = f"{site.name}-{host.name}-{kind}"
            own = f"{folder}/{label}"
            text = made[config].content.decode()
            for path in moved:
                text = text.replace(path, f"{own}/")
            stack = f"/opt/stacks/{site.brand.stack}"
            sources = (
                {"/etc/callfleet/ingress/": ""} if kind == "front" else {f"{stack}/tls/": "", f"{stack}/haproxy/": ""}
            )
            beside = {
                item.path.removeprefix(prefix): item.content
                for prefix in sources
                for item in made.values()
                if item.path.startswith(prefix) and item.path != config
            }
            found.append(Proxy(label, text, beside))
    return found


def write_proxy(folder: Path, proxy: Proxy) -> Path:
    """Lay a configuration and its files down; the path of the configuration."""
    own = folder / proxy.label
    own.mkdir(parents=True, exist_ok=True)
    (own / "tls").mkdir(exist_ok=True)
    for name, content in proxy.beside.items():
        (own / name).write_bytes(content)
    config = own / "haproxy.cfg"
    config.write_text(proxy.config)
    return config
