"""From files to a Site: read, check each part, decide defaults, check the parts against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from callfleet.document import Document, nearest, read, shown_value, validate, version_problem
from callfleet.errors import Problem, SiteError
from callfleet.release import Release, read_release
from callfleet.site.checks import check
from callfleet.site.defaults import Brand, Defaults, Ports, defaults_file, read_defaults
from callfleet.site.model import Fleet, Host, ListenPorts, Site, SshSettings
from callfleet.site.schema import FORMAT, FleetHostEntry, HostEntry, SiteFile

_T = TypeVar("_T")
HTTP = 80
"""Where an ACME authority asks for the answer to a challenge (RFC 8555, section 8.3)."""


def load_site(path: Path | str, text: str | None = None) -> Site:
    """The site of a `.yml` file, checked as a whole with its release file and group_data.

    With `text`, the site that the file would be with that content. Raises SiteError with every mistake found. Connects
    to nothing and resolves no secret.
    """
    file = Path(path)
    if not file.is_file():
        raise SiteError([Problem(file, "", "a site file", got="no such file", hint=_missing_hint(file))])
    document = read(file, text)
    if problem := version_problem(document, "callfleet", FORMAT):
        raise SiteError([*document.problems, problem])
    declared = validate(document, SiteFile)
    defaults, defaults_document = read_defaults(defaults_file(file))
    release, release_document = read_release(_release_file(file, document))
    problems = [*document.problems, *defaults_document.problems, *release_document.problems]
    if declared is None or defaults is None:
        raise SiteError(problems)

    brand = _brand(declared, defaults, document)
    if brand is None:
        raise SiteError([*problems, *document.problems])
    site = _decide(document, release_document.file, declared, defaults, brand, release or _no_release())
    problems += check(site, document, release_document if release else None)
    if problems:
        raise SiteError(sorted(problems, key=lambda each: (str(each.file), each.line or 0)))
    return site


def bare_site(file: Path, ssh: Mapping[str, object], hosts: Mapping[str, Mapping[str, object]]) -> Site:
    """A site of which nothing is known yet but how to reach its hosts: it can be asked, and no plan made of it.

    `ssh` and `hosts` (entries with `address`, perhaps `ssh`) as in a site file. SiteError with every mistake in them.
    """
    defaults, defaults_document = read_defaults(defaults_file(file))
    if defaults is None:
        raise SiteError(defaults_document.problems)
    entries = {name: {"roles": ["app"], **entry} for name, entry in hosts.items()}
    data = {"callfleet": FORMAT, "site": "import", "stage": "lab", "brand": next(iter(defaults.brands)),
            "domain": "import.invalid", "ssh": dict(ssh), "hosts": entries}  # fmt: skip
    document = Document(file, data, {(): 1})
    declared = validate(document, SiteFile)
    if declared is None:
        raise SiteError(document.problems, "The hosts cannot be reached like this; nothing was connected to")
    brand = defaults.brands[declared.brand]
    return _decide(document, file.with_name("none"), declared, defaults, brand, _no_release())


def _missing_hint(file: Path) -> str:
    if file.stem == "lab" or file.stem.startswith("lab-"):
        return "The lab's site is made by the lab itself: run `callfleet lab up`."
    others = sorted(each.stem for each in file.parent.glob("*.yml") if not each.stem.endswith(".release"))
    return f"Sites here: {', '.join(others)}." if others else "Start from a copy of inventories/staging.yml."


def _release_file(file: Path, document: Document) -> Path:
    named = document.data.get("release") if isinstance(document.data, dict) else None
    if isinstance(named, str) and named.strip() and named.isprintable():
        return file.parent / named
    return file.with_name(f"{file.stem}.release.yml")


def _no_release() -> Release:
    """Stands in for a release file that is wrong, so that the rest of the site is checked all the same."""
    return Release(callfleet_release=1, release="unreadable", images={})


def _brand(declared: SiteFile, defaults: Defaults, document: Document) -> Brand | None:
    """The brand with the site's own values in it."""
    if declared.brand not in defaults.brands:
        document.problems = [
            document.problem(("brand",), "a brand of group_data/all.py", got=shown_value(("brand",), declared.brand),
                             hint=nearest(declared.brand, defaults.brands))
        ]  # fmt: skip
        return None
    values = defaults.brands[declared.brand].model_dump()
    overridden = Document(document.file, _merge(values, declared.brand_overrides))
    overridden.lines = {path[1:]: line for path, line in document.lines.items() if path[:1] == ("brand_overrides",)}
    brand = validate(overridden, Brand)
    document.problems = [
        Problem(each.file, f"brand_overrides.{each.path}", each.expected, each.got, each.line, each.hint)
        for each in overridden.problems
    ]
    return brand


def _merge(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _decide(
    document: Document, release_path: Path, declared: SiteFile, defaults: Defaults, brand: Brand, release: Release
) -> Site:
    """Every default decided, nothing checked."""
    file = document.file
    own = declared.ports.model_dump(exclude_none=True)
    ports = Ports.model_validate({**defaults.ports.model_dump(), **own})
    hosts = [
        _host(file, declared, defaults, ports, name, entry, fleet)
        for fleet, fleet_entry in declared.fleets.items()
        for name, entry in fleet_entry.hosts.items()
    ]
    hosts += [_host(file, declared, defaults, ports, name, entry, None) for name, entry in declared.hosts.items()]
    fleets = [Fleet(name, fleet.public_name, tuple(fleet.hosts)) for name, fleet in declared.fleets.items()]
    return Site(
        path=file.absolute(),
        declared=declared,
        defaults=defaults,
        brand=brand,
        release=release,
        release_path=release_path.absolute(),
        ports=ports,
        hosts=tuple(hosts),
        fleets=tuple(fleets),
        lines=document.lines,
    )


def _host(
    file: Path,
    declared: SiteFile,
    defaults: Defaults,
    ports: Ports,
    name: str,
    entry: HostEntry,
    fleet: str | None,
) -> Host:
    roles = frozenset(entry.roles) | ({"fleet"} if fleet else set())
    workers, public_name = 0, None
    if isinstance(entry, FleetHostEntry):
        workers = entry.workers or declared.core.workers_default or 0
        public_name = entry.public_name or f"{name}.{declared.domain}"
    ssh = _ssh(file, declared, defaults, entry)
    return Host(
        name, entry.address, entry.address6, roles, fleet, workers, entry.memory_mb, public_name,
        _listen(declared, entry, roles, ports, ssh.port, public_name), ssh, entry.open_ports,
    )  # fmt: skip


def _listen(
    declared: SiteFile, entry: HostEntry, roles: frozenset[str], ports: Ports, ssh: int, public_name: str | None
) -> ListenPorts:
    """A host's open ports. Where the front's names have the usual port, the fleet's own proxy takes another.

    Challenges are answered by every front, and by a fleet host whose own name is to have a certificate by ACME.
    """
    acme = declared.tls.acme
    shared = bool(roles & {"ingress", "app"})
    is_fleet = "fleet" in roles
    return ListenPorts(
        ssh=ssh,
        front=(entry.ports.front or ports.front) if shared else None,
        fleet=(entry.ports.fleet or (ports.fleet_shared if shared else ports.fleet)) if is_fleet else None,
        mtls=(entry.ports.mtls or ports.mtls) if is_fleet else None,
        front_metrics=ports.metrics if shared else None,
        fleet_metrics=(ports.metrics_shared if shared else ports.metrics) if is_fleet else None,
        http=HTTP if acme is not None and (shared or public_name in acme.names) else None,
    )


def _ssh(file: Path, declared: SiteFile, defaults: Defaults, entry: HostEntry) -> SshSettings:
    site, own = declared.ssh, entry.ssh

    def path(value: str | None) -> Path | None:
        return (file.parent / Path(value).expanduser()).absolute() if value else None

    return SshSettings(
        hostname=own.hostname or entry.address,
        port=_first(own.port, site.port, 22),
        user=_first(own.user, site.user, "root"),
        key=path(own.key or site.key),
        known_hosts=path(own.known_hosts or site.known_hosts) or file.with_name(f"{file.stem}.known_hosts").absolute(),
        config=path(own.config or site.config),
        connect_timeout_seconds=_first(
            own.connect_timeout_seconds, site.connect_timeout_seconds, defaults.ssh_connect_seconds
        ),
    )


def _first(own: _T | None, site: _T | None, default: _T) -> _T:
    return own if own is not None else site if site is not None else default
