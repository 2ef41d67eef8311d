"""What must hold between the parts of a site. Each check is one sentence of the contract with the operator."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from callfleet.document import Document, Place, nearest
from callfleet.errors import Problem
from callfleet.secrets import SecretRef
from callfleet.site.model import Site, covering, ingress_name, is_documentation
from callfleet.site.schema import HELD_PACKAGES, HELD_PROXY, Variables

# Values that every host must agree on, by the place where they are declared once.
DECLARED_ONCE = {
    "CONFIG_URL": "app.config_url",
    "RESULT_URL": "app.result_url",
    "MONGODB_DB": "app.mongodb_db",
    "VITE_API_URL": "app.vite_api_url",
    "FLEET_URLS": "the fleet hosts themselves",
    "CORE_SECRET": "secrets.core_secret",
    "SECRET_HEADER": "the brand's secret_header",
    "MAX_CONCURRENT_CALLS": "the tool: one call per worker",
    "SOCKET": "the tool",
}
LOOKS_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|PRIVATE_KEY|API_KEY")
_PINNED_STAGES = ("staging", "prod")


def check(site: Site, document: Document, release: Document | None) -> list[Problem]:
    """Every contradiction in a site. `release` is None when the release file could not be read, which is known then."""
    checks = [_site, _names, _addresses, _ports, _metrics, _workers, _roles, _ingress, _public_names, _certificates,
              _internal_tls, _acme, _secrets, _variables, _versions]  # fmt: skip
    problems = [problem for each in checks for problem in each(site, document)]
    return [*problems, *_images(site, release)] if release else problems


def _site(site: Site, document: Document) -> Iterator[Problem]:
    """A site is called like its file, and has a host."""
    stem = site.path.name.removesuffix(".yml").removesuffix(".yaml")
    if site.stage != "lab" and site.name != stem:
        yield document.problem(
            ("site",), f'"{stem}", as the file is called', got=f'"{site.name}"',
            hint="Hosts are marked with the site's name: a copied file must not claim another site's hosts.",
        )  # fmt: skip
    if not site.hosts:
        yield document.problem((), "at least one host, under `fleets` or `hosts`", got="none")


def _names(site: Site, document: Document) -> Iterator[Problem]:
    """A host name stands once in the whole file."""
    first: dict[str, Place] = {}
    for host in site.hosts:
        here = host.place
        if host.name in first:
            yield document.problem(
                here, "each host name once in the file", got=f'"{host.name}" a second time',
                hint=f"The first is on line {document.line(first[host.name])}. A machine with several roles is one "
                "entry with `roles`.",
            )  # fmt: skip
        first.setdefault(host.name, here)


def _addresses(site: Site, document: Document) -> Iterator[Problem]:
    """An address belongs to one host, and is one that another machine can reach."""
    first: dict[object, str] = {}
    for host in site.hosts:
        for key, address in (("address", host.address), ("address6", host.address6)):
            if address is None:
                continue
            parsed = ipaddress.ip_address(address)
            here = (*host.place, key)
            if parsed in first and first[parsed] != host.name:
                yield document.problem(
                    here, "an address of its own for each host", got=f'"{address}", which {first[parsed]} has',
                    hint="One machine with several roles is one entry with `roles`.",
                )  # fmt: skip
            elif parsed in first:
                yield document.problem(here, "another address than `address`", got=f'"{address}"')
            first.setdefault(parsed, host.name)
            loopback = parsed.is_loopback and (site.stage != "local" or len(site.hosts) > 1)
            # Documentation addresses count as reserved here and are refused later, with a message of their own.
            reserved = isinstance(parsed, ipaddress.IPv4Address) and parsed.is_reserved
            unusable = parsed.is_unspecified or parsed.is_multicast or parsed.is_link_local or reserved
            if loopback or (unusable and not is_documentation(address)):
                yield document.problem(here, "an address that the other hosts reach it by", got=f'"{address}"')


def _ports(site: Site, document: Document) -> Iterator[Problem]:
    """On one host, no two things listen on the same port."""
    for host in site.hosts:
        taken: dict[tuple[str, int], str] = {("tcp", host.ports.ssh): "SSH"}
        wanted: list[tuple[str, int | None, str, Place]] = []
        ports = (*host.place, "ports")
        front = " and ".join(sorted(host.roles & {"ingress", "app"}))
        wanted.append(("tcp", host.ports.front, f"the front ({front})", (*ports, "front")))
        wanted.append(("tcp", host.ports.fleet, "the fleet's public port", (*ports, "fleet")))
        wanted.append(("tcp", host.ports.mtls, "the fleet's port for the ingress", (*ports, "mtls")))
        wanted.append(("tcp", host.ports.front_metrics, "the front's metrics", ("ports", "metrics")))
        key = "metrics_shared" if host.ports.front_metrics else "metrics"
        wanted.append(("tcp", host.ports.fleet_metrics, "the fleet's metrics", ("ports", key)))
        wanted.append(("tcp", host.ports.http, "challenges of ACME", ("tls", "acme")))
        if "app" in host.roles:
            services = ("api", "console", "dialler_health", *site.app.stores)
            wanted += [("tcp", getattr(site.ports, each), each, ("ports", each)) for each in services]
        for index, each in enumerate(host.open_ports):
            path = (*host.place, "open_ports", index, "port")
            wanted.append((each.protocol, each.port, f"open_ports ({each.comment})", path))
        for protocol, port, what, path in wanted:
            if port is None:
                continue
            if (protocol, port) in taken:
                where = path if path in document.lines or path[0] != "ports" else ("ports", path[-1])
                yield document.problem(
                    where, "a port of its own for each thing on a host",
                    got=f"{port} for {what} on {host.name}, where {taken[protocol, port]} has it",
                    hint="Give one of them another port, here or under `ports`.",
                )  # fmt: skip
            taken.setdefault((protocol, port), what)


def _metrics(site: Site, document: Document) -> Iterator[Problem]:
    """A metrics port is for somebody, and somebody has one; two proxies on a host have one each."""
    declared = bool(site.ports.metrics)
    if declared and not site.metrics.sources:
        yield document.problem(
            ("metrics", "from"), "the addresses that may read the metrics port", got="none",
            hint="ports.metrics opens a port: say for whom, such as metrics: {from: [203.0.113.9]}.",
        )  # fmt: skip
    if site.metrics.sources and not declared:
        yield document.problem(("ports", "metrics"), "the port that metrics.from may read", got="none")
    both = [host.name for host in site.hosts if "fleet" in host.roles and host.roles & {"ingress", "app"}]
    if declared and both and not site.ports.metrics_shared:
        yield document.problem(
            ("ports", "metrics_shared"), "the port of the second proxy of a host", got="none",
            hint=f"{', '.join(both)} has a front proxy and a fleet's own one.",
        )  # fmt: skip


def _workers(site: Site, document: Document) -> Iterator[Problem]:
    """Every fleet host says how many workers it has, and they fit its memory."""
    core = site.core
    for host in site.fleet_hosts:
        here = (*host.place, "workers")
        if host.workers == 0:
            yield document.problem(
                here, "the number of call slots", hint="Set it here, or core.workers_default for all hosts."
            )
        if host.memory_mb is None:
            continue
        need = host.workers * core.worker_memory_mb + core.reserve_memory_mb
        if need > host.memory_mb:
            most = max(0, (host.memory_mb - core.reserve_memory_mb) // core.worker_memory_mb)
            yield document.problem(
                here, f"at most {most} workers on this host", got=str(host.workers),
                hint=f"{host.workers} x {core.worker_memory_mb} MiB and a reserve of {core.reserve_memory_mb} MiB need "
                f"{need} MiB; memory_mb says {host.memory_mb}.",
            )  # fmt: skip


def _roles(site: Site, document: Document) -> Iterator[Problem]:
    """A host outside the fleets has a role, and one host at most is the app host."""
    for host in site.hosts:
        if not host.roles:
            yield document.problem((*host.place, "roles"), "at least one role: ingress or app", got="none")
    app_hosts = [host for host in site.hosts if "app" in host.roles]
    for host in app_hosts[1:]:
        yield document.problem(
            (*host.place, "roles"), "one host with the role app", got=f"a second one beside {app_hosts[0].name}",
            hint="The Dialler runs there and reserves slots in its own memory: there may be only one.",
        )  # fmt: skip
    if app_hosts and site.mongodb_db is None:
        yield document.problem(("app", "mongodb_db"), "the name of the API's database")


def _ingress(site: Site, document: Document) -> Iterator[Problem]:
    """An ingress has hosts to pass calls to, and its names have an ingress."""
    if site.ingress_hosts and not site.fleet_hosts:
        host = site.ingress_hosts[0]
        yield document.problem((*host.place, "roles"), "a fleet host to pass calls to", got="ingress in a site without")
    if site.ingress_hosts:
        return
    hint = "Give a host the role ingress, or remove this."
    if site.declared.ingress:
        yield document.problem(("ingress",), "a host with the role ingress", got="none", hint=hint)
    for name, fleet in site.declared.fleets.items():
        if fleet.public_name:
            path = ("fleets", name, "public_name")
            yield document.problem(path, "a host with the role ingress", got="none", hint=hint)


def _public_names(site: Site, document: Document) -> Iterator[Problem]:
    """A public name leads to one thing."""
    named: list[tuple[str, str, Place]] = []
    for host in site.fleet_hosts:
        if host.public_name:
            named.append((host.public_name, f"host {host.name}", (*host.place, "public_name")))
    if site.ingress_hosts:
        named.append((ingress_name(site.declared), "the ingress", ("ingress", "public_name")))
        for name, fleet in site.declared.fleets.items():
            if fleet.public_name:
                named.append((fleet.public_name, f"fleet {name}", ("fleets", name, "public_name")))
    if site.app_host:
        named.append((site.api_name, "the API", ("app", "api_name")))
        named.append((site.console_name, "the Console", ("app", "console_name")))
    first: dict[str, str] = {}
    for public, what, path in named:
        if first.get(public, what) != what:
            yield document.problem(
                path, "a public name of its own", got=f'"{public}" for {what}, which {first[public]} has'
            )
        first.setdefault(public, what)


def _certificates(site: Site, document: Document) -> Iterator[Problem]:
    """Every public name that a host answers has a certificate."""
    names = {name: host for host in reversed(site.hosts) for name in site.public_names(host)}
    for name, host in names.items():
        try:
            covering(name, site.tls.certificates)
        except KeyError:
            yield document.problem(
                ("tls", "certificates", name), f'a certificate for "{name}" (served by {host.name})',
                hint=f'Add it, or the wildcard "*.{name.partition(".")[2]}": a reference to one PEM file with chain '
                "and key.",
            )  # fmt: skip


def _internal_tls(site: Site, document: Document) -> Iterator[Problem]:
    """With an ingress, each fleet host has an internal certificate, and no other host is named."""
    internal = site.tls.internal
    fleet = {host.name for host in site.fleet_hosts}
    if internal is None:
        if site.ingress_hosts and fleet:
            yield document.problem(
                ("tls", "internal"), "certificates for mutual TLS between the ingress and the fleet hosts",
                hint="Give ca, ingress and hosts, as inventories/prod.yml shows.",
            )  # fmt: skip
        return
    for name in sorted(fleet - set(internal.hosts)):
        yield document.problem(("tls", "internal", "hosts", name), f"an internal certificate for {name}")
    for name in sorted(set(internal.hosts) - fleet):
        path = ("tls", "internal", "hosts", name)
        yield document.problem(path, "a fleet host's name", got="an unknown host", hint=nearest(name, fleet))


def _acme(site: Site, document: Document) -> Iterator[Problem]:
    """What is to be obtained by ACME is served, is no wildcard, and has a file that it can be written to."""
    acme = site.tls.acme
    if acme is None:
        return
    served = {name for host in site.hosts for name in site.public_names(host)}
    if not site.front_hosts:
        yield document.problem(("tls", "acme"), "a host with the role ingress or app, to answer challenges", got="none")
    for index, name in enumerate(acme.names):
        here = ("tls", "acme", "names", index)
        if name not in site.tls.certificates:
            yield document.problem(
                here, "a name that has an entry of its own under tls.certificates", got=f'"{name}"',
                hint=nearest(name, site.tls.certificates) or "A wildcard covers nothing here: challenges are answered "
                "over HTTP, for each name.",
            )  # fmt: skip
        elif site.tls.certificates[name].scheme != "file":
            yield document.problem(
                ("tls", "certificates", name), "a file: reference, where the certificate is written", got="another one",
                hint=f"It is obtained by ACME: tls.acme.names has {name}.",
            )  # fmt: skip
        elif name not in served:
            yield document.problem(
                here, "a name that a host of this site answers", got=f'"{name}"', hint=nearest(name, served)
            )
    taken: dict[SecretRef, str] = {ref: name for name, ref in site.tls.certificates.items() if name not in acme.names}
    for name in acme.names:
        reference = site.tls.certificates.get(name)
        if reference in taken:
            yield document.problem(
                ("tls", "certificates", name), "a file that is obtained by ACME as a whole",
                got=f"the one of {taken[reference]} too", hint="Add that to tls.acme.names, or give each its own file.",
            )  # fmt: skip


def _secrets(site: Site, document: Document) -> Iterator[Problem]:
    """Every secret that something names or needs is declared."""
    declared = site.declared.secrets
    for name, why, needed in (
        ("core_secret", "what workers show to the API", bool(site.fleet_hosts or site.app_host)),
        ("api_admin_token", "what the API's settings are changed with", bool(site.app_host)),
    ):
        if needed and name not in declared:
            near = nearest(name, declared) if declared else ""
            yield document.problem(
                ("secrets", name), f"a reference to {why}: env:NAME, file:PATH or command:COMMAND",
                hint=near if near.startswith("Did") else "",
            )  # fmt: skip
    used: list[tuple[str, Place]] = []
    if site.registry:
        if site.registry.password:
            used.append((site.registry.password, ("registry", "password")))
        if (site.registry.username is None) != (site.registry.password is None):
            yield document.problem(("registry",), "username and password together, or neither", got="one of them")
    for path, variables in _variable_sections(site):
        used += [(name, (*path, "secret_environment", key)) for key, name in variables.secret_environment.items()]
    for name, path in used:
        if name not in declared:
            hint = nearest(name, declared) or "Declare it under secrets."
            # The name is not shown: it may be the secret itself, written in the wrong place.
            yield document.problem(path, "the name of a secret declared under `secrets`", got="another name", hint=hint)


def _variable_sections(site: Site) -> list[tuple[Place, Variables]]:
    app = site.app
    return [(("core",), site.core), (("app", "api"), app.api), (("app", "dialler"), app.dialler),
            (("app", "console"), app.console)]  # fmt: skip


def _variables(site: Site, document: Document) -> Iterator[Problem]:
    """What must match across hosts is declared once, and secrets are not plain settings."""
    once = {**DECLARED_ONCE, f"{site.brand.worker_env_prefix}_WORKERS": "workers, of each fleet host"}
    for path, variables in _variable_sections(site):
        for kind in ("environment", "secret_environment"):
            for key in getattr(variables, kind):
                here = (*path, kind, key)
                if key in once:
                    yield document.problem(
                        here, f"no {key} here", got="a setting of the tool's own",
                        hint=f"It must match across hosts and comes from one place: {once[key]}.",
                    )  # fmt: skip
                elif kind == "environment" and LOOKS_SECRET.search(key):
                    yield document.problem(
                        here, "no secrets among plain settings", got="a value (not shown)",
                        hint=f"Declare it under secrets and name it in {'.'.join(map(str, path))}.secret_environment.",
                    )  # fmt: skip
                elif kind == "environment" and key in variables.secret_environment:
                    yield document.problem(here, "each variable once", got="one that secret_environment has too")


def _versions(site: Site, document: Document) -> Iterator[Problem]:
    """Only what is held can be pinned: any other package's version would have no effect."""
    known = (*HELD_PACKAGES[site.docker.source], HELD_PROXY)
    for name in site.versions:
        if name not in known:
            yield document.problem(
                ("versions", name), f"a package that is held with docker.source {site.docker.source}",
                got="another name", hint=nearest(name, known),
            )  # fmt: skip


def _images(site: Site, release: Document) -> Iterator[Problem]:
    """Every image that a role needs is in the release, by digest where calls are real; none is misspelt."""
    pins = site.release.images
    known = {
        *site.brand.images.model_dump().values(),
        *site.defaults.common_images.model_dump().values(),
    }
    for name in pins:
        if name not in known:
            hint = nearest(name, known)
            yield release.problem(("images", name), f"an image of the brand {site.declared.brand}", hint=hint,
                                  got="an unknown image")  # fmt: skip
    for name in site.required_images:
        if name not in pins:
            yield release.problem(
                ("images", name), f"a pin for {name}, which this site's roles need",
                hint=f"Run: callfleet release pin {site.name} {name} <tag>",
            )  # fmt: skip
    if site.stage in _PINNED_STAGES:
        for name, pin in pins.items():
            if not pin.pinned:
                yield release.problem(
                    ("images", name, "digest"), f"a digest: {site.stage} runs no unpinned image",
                    got=f'the tag "{pin.tag}" alone' if pin.tag else "",
                    hint=f"Run: callfleet release pin {site.name} {name} {pin.tag or '<tag>'}",
                )  # fmt: skip
