"""The values behind a site's references, each read once a run and kept in memory only."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from callfleet.certificates import Declared, declared, unfit
from callfleet.document import Place, shown
from callfleet.errors import CallfleetError, Problem
from callfleet.secrets import SecretRef
from callfleet.site import Site


class Credentials:
    """Secrets by name and certificates by reference or path, read when first asked for."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._values: dict[str, str] = {}

    def secret(self, name: str) -> str:
        """The value of a declared secret. Raises SecretError when it cannot be had."""
        return self._resolve(self._site.secret_ref(name))

    def credential(self, reference: SecretRef | str) -> bytes:
        """A certificate: a secret reference (chain and key), or a path of the site (an authority's certificate)."""
        if isinstance(reference, SecretRef):
            return self._resolve(reference).encode() + b"\n"
        path = self._site.file(reference)
        try:
            return path.read_bytes()
        except OSError as error:
            raise CallfleetError(f"{path}: cannot be read: {error.strerror}. The site file names it.") from None

    def _resolve(self, reference: SecretRef) -> str:
        key = str(reference)
        if key not in self._values:
            self._values[key] = self._site.resolve(reference).reveal()
        return self._values[key]


_opened: dict[Path, Credentials] = {}


def opened(site: Site) -> Credentials:
    """The credentials of a site as its check left them, so that a `command:` secret is asked for once a run."""
    return _opened.setdefault(site.path, Credentials(site))


def unusable(site: Site, hosts: Collection[str] | None = None) -> list[str]:
    """Every reference of the site that cannot be had, every certificate that cannot serve, as lines for the operator.

    Asked before anything connects: each reference is resolved here, a `command:` too. With `hosts`, certificates that
    none of them gets are left out: an expired one stops nobody elsewhere.
    """
    credentials = _opened[site.path] = Credentials(site)
    references: dict[Place, SecretRef | str] = {("secrets", key): ref for key, ref in site.declared.secrets.items()}
    certificates = {each.place: each for each in declared(site) if hosts is None or _is_for(site, each, hosts)}
    references |= {place: each.reference for place, each in certificates.items()}
    contents: dict[Place, bytes] = {}
    problems = []
    for place, reference in references.items():
        try:
            contents[place] = credentials.credential(reference)
        except CallfleetError as error:
            where = Problem(site.path, shown(place), "", line=site.lines.get(place)).place
            hint = f"\n    Expected {certificates[place].expected}." if place in certificates else ""
            hint += _made_by(site, place)
            problems.append(f"{where}: {error}{hint}")
    return [*problems, *map(str, unfit(site, contents))]


def _is_for(site: Site, each: Declared, hosts: Collection[str]) -> bool:
    """Whether one of these hosts gets a certificate. What authorities sign is for all of them."""
    chosen = [host for host in site.hosts if host.name in hosts]
    if each.place[:2] == ("tls", "certificates"):
        return any(name in each.names for host in chosen for name in site.public_names(host))
    if each.place == ("tls", "internal", "ingress"):
        return any("ingress" in host.roles for host in chosen)
    if each.place[:3] == ("tls", "internal", "hosts"):
        return each.place[3] in hosts
    return True


def _made_by(site: Site, place: Place) -> str:
    """The command that makes the certificate of a place, where there is one."""
    internal, acme = site.tls.internal, site.tls.acme
    if internal is not None and internal.authority is not None and place[:2] == ("tls", "internal"):
        verb = "authority" if place[2] == "ca" else "issue"
        return f" Next: callfleet certificates {verb} {site.name}"
    if acme is not None and place[:2] == ("tls", "certificates") and place[2] in acme.names:
        return f" Next: callfleet certificates obtain {site.name}"
    return ""
