"""What an operator's word such as `eu1-a`, `eu1-a/3`, `eu1` or `cxb-api` means on which hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from callfleet.errors import CallfleetError
from callfleet.site import Host, Site

PROXY, FRONT = "proxy", "front"
UNITS = ("callfleet-*", "stack@*")
"""Patterns of our own units on any host; the front proxy's unit comes from its package."""


@dataclass(frozen=True)
class Target:
    """One thing on one host: a container by stack and service, or systemd units where `service` is empty."""

    host: str
    name: str
    stack: str = ""
    service: str = ""
    units: tuple[str, ...] = ()


def named(site: Site, word: str) -> list[Target]:
    """Everything that `word` means: HOST (its units), HOST/SLOT, HOST/SERVICE, FLEET, or SERVICE wherever it runs.

    CallfleetError when it means nothing, with what there is.
    """
    name, slash, part = word.partition("/")
    hosts = {host.name: host for host in site.hosts}
    fleets = {fleet.name: fleet.hosts for fleet in site.fleets}
    if slash:
        if name not in hosts:
            raise CallfleetError(f"{site.name} has no host {name}; it has: {', '.join(hosts)}")
        return [_part(site, hosts[name], part)]
    if name in hosts:
        return [_units(hosts[name])]
    if name in fleets:
        if not fleets[name]:
            raise CallfleetError(f"the fleet {name} of {site.name} has no hosts yet. Next: callfleet host add --help")
        return [_units(hosts[host]) for host in fleets[name]]
    if found := [_called(site, host, service) for host in site.hosts for service in _matching(site, host, name)]:
        return found
    known = sorted({service for host in site.hosts for service in _shown(site, host)})
    raise CallfleetError(
        f"{site.name} has nothing named {word}. Expected a host ({', '.join(hosts)}), a fleet ({', '.join(fleets)}), "
        f"HOST/SLOT, or a service ({', '.join(known)}), which may stand behind HOST/"
    )


def words(site: Site) -> list[str]:
    """Every word that `named` knows, for completion."""
    services = {service for host in site.hosts for service in _shown(site, host) if " to " not in service}
    return [
        *(host.name for host in site.hosts),
        *(fleet.name for fleet in site.fleets),
        *sorted(services),
        *parts(site),
    ]


def parts(site: Site) -> list[str]:
    """The same of single hosts: HOST/SLOT and HOST/SERVICE."""
    every = ((host.name, service) for host in site.hosts for service in _services(site, host))
    return [f"{name}/{service.removeprefix('worker-')}" for name, service in every]


def slot(site: Site, host: str, number: int) -> Target:
    """The container of one call slot. CallfleetError when the host has no such slot."""
    return _part(site, site.host(host), str(number))


def _part(site: Site, host: Host, part: str) -> Target:
    if part.isdigit():
        if not 1 <= int(part) <= host.workers:
            has = f"its slots are 1 to {host.workers}" if host.workers else "it carries no calls"
            raise CallfleetError(f"{host.name} has no slot {part}: {has}")
        return _called(site, host, f"worker-{int(part)}")
    if found := list(_matching(site, host, part)):
        return _called(site, host, found[0])
    raise CallfleetError(f"{host.name} has no {part}; it has: {', '.join(_shown(site, host))}")


def _matching(site: Site, host: Host, name: str) -> Iterator[str]:
    """Services of a host that are called so, or that are meant by their role (`api`) whatever the brand calls them."""
    services = site.brand.services
    name = {"api": services.api, "dialler": services.dialler, "console": services.console}.get(name, name)
    if name == "ingress" and "ingress" in host.roles:
        name = FRONT
    return (service for service in _services(site, host) if service == name)


def _services(site: Site, host: Host) -> dict[str, str]:
    """Service -> its stack, empty for what is no container."""
    brand, found = site.brand, dict[str, str]()
    if "fleet" in host.roles:
        found |= {PROXY: brand.stack} | {f"worker-{n}": brand.stack for n in range(1, host.workers + 1)}
    if "app" in host.roles:
        found |= dict.fromkeys([brand.services.api, brand.services.console, *site.app.stores], brand.app_stack)
        found[brand.services.dialler] = brand.services.dialler
    if host.roles & {"ingress", "app"}:
        found[FRONT] = ""
    return found


def _shown(site: Site, host: Host) -> Iterable[str]:
    """The same for a message: slots have their numbers."""
    slots = [f"1 to {host.workers}"] if host.workers else []
    return [*slots, *(service for service in _services(site, host) if not service.startswith("worker-"))]


def _called(site: Site, host: Host, service: str) -> Target:
    stack = _services(site, host)[service]
    number = service.removeprefix("worker-")
    name = f"{host.name}/{number if number.isdigit() else service}"
    if not stack:
        return Target(host.name, name, units=("haproxy.service",))
    return Target(host.name, name, stack, service)


def _units(host: Host) -> Target:
    front = ("haproxy.service",) if host.roles & {"ingress", "app"} else ()
    return Target(host.name, host.name, units=(*UNITS, *front))
