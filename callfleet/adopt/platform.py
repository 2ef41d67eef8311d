"""All hosts together: which are what, how they are called, and where each is registered. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from callfleet.actual import Unknown
from callfleet.adopt.certificate import covered, opened
from callfleet.adopt.fleet import CALL_ROUTES, Machine, named
from callfleet.adopt.found import Value
from callfleet.adopt.haproxy import Server
from callfleet.adopt.ingress import Backend, Ingress

Addresses = Mapping[str, Sequence[str]]
"""What DNS names that stand in configurations lead to, as the controller sees it."""


@dataclass(frozen=True)
class Inbound:
    """One fleet host as an ingress knows it."""

    ingress: Ingress
    backend: Backend
    server: Server

    @property
    def place(self) -> str:
        """`where file:line`."""
        return self.server.line.place


@dataclass(frozen=True)
class FleetHost:
    """One fleet host, from all that speak of it. `machine` is None for one that only an ingress names.

    `address` is None where only a name is known that leads nowhere. `listed` and `dialled` are the URL under which it
    stands in core_fleet and FLEET_URLS, empty where it stands in none; None: that list is not known.
    """

    name: str
    fleet: str
    address: str | None
    machine: Machine | None
    inbound: tuple[Inbound, ...]
    public_name: str
    workers: int | None
    port: int | None
    listed: str | None
    dialled: str | None


@dataclass(frozen=True)
class Platform:
    """The whole. `strangers` are URLs of either list, and servers of the ingress, that belong to no host here."""

    machines: tuple[Machine, ...]
    ingresses: tuple[Ingress, ...]
    fleet_hosts: tuple[FleetHost, ...]
    app: Machine | None
    core_fleet: tuple[str, ...] | None
    fleet_urls: tuple[str, ...] | None
    fleet_urls_place: str
    strangers: tuple[str, ...]

    def machine(self, name: str) -> Machine | None:
        """The machine of that name."""
        return next((each for each in self.machines if each.name == name), None)


def assemble(
    machines: Sequence[Machine], ingresses: Sequence[Ingress], addresses: Addresses, fleet: str = ""
) -> Platform:
    """Hosts, ingresses and lists brought together. `fleet` names the fleet of hosts that no ingress groups."""
    app = next((each for each in machines if each.dialler and each.dialler.active), None)
    app = app or next((each for each in machines if each.dialler or each.api), None)
    core_fleet = next((each.found.core_fleet for each in machines if isinstance(each.found.core_fleet, tuple)), None)
    urls = _fleet_urls(machines)
    dialled = tuple(filter(None, re.split(r"[,\s]+", urls.text or ""))) if urls and urls.text is not None else None
    inbound = [
        (Inbound(ingress, backend, server), name, address)
        for ingress in ingresses
        for backend in ingress.backends
        for server in backend.servers
        for name, address in _spread(server, addresses)
    ]
    found: dict[str, FleetHost] = {}
    for machine in machines:
        if machine.workers is None:
            continue
        mine = [each for each, name, address in inbound if _is(machine, address, name)]
        found[machine.name] = _host(machine, mine, core_fleet, dialled, fleet, addresses)
    for each, name, address in inbound:
        if any(each in one.inbound for one in found.values() if one.machine and _is(one.machine, address, name)):
            continue
        if any(_is(machine, address, name) for machine in machines):
            continue  # a host of ours without workers: told as a stranger
        known = next((key for key, one in found.items() if one.machine is None and _same(one, address, name)), None)
        if known:
            one = found[known]
            found[known] = _by_ingress(known, one.address or address, (*one.inbound, each), core_fleet, dialled, fleet)
        else:
            called = unique(host_name(name), set(found))
            found[called] = _by_ingress(called, address, (each,), core_fleet, dialled, fleet)
    shared = Counter(one.public_name for one in found.values())
    hosts = tuple(
        replace(one, public_name="") if one.machine is None and shared[one.public_name] > 1 else one
        for one in found.values()
    )
    strangers = [
        url for url in dict.fromkeys([*(core_fleet or ()), *(dialled or ())])
        if not any(_leads_to(url, one, addresses) for one in hosts)
    ]  # fmt: skip
    strangers += [
        f"{each.server.name} at {each.place}" for each, name, address in inbound
        if any(_is(machine, address, name) and machine.workers is None for machine in machines)
    ]  # fmt: skip
    return Platform(
        tuple(machines), tuple(ingresses), hosts, app, core_fleet, dialled, urls.place if urls else "", tuple(strangers)
    )


def _fleet_urls(machines: Iterable[Machine]) -> Value | None:
    """FLEET_URLS as the Dialler has it, else as anybody has it."""
    for machine in machines:
        if machine.dialler and (value := named(machine.found.environment(machine.dialler), "FLEET_URLS")):
            return value
    for machine in machines:
        if isinstance(machine.found.units, Mapping):
            for unit in machine.found.units.values():
                if value := named(machine.found.environment(unit), "FLEET_URLS"):
                    return value
    return None


def _spread(server: Server, addresses: Addresses) -> Iterator[tuple[str, str | None]]:
    """The hosts behind a server line: one, or as many as a template makes. Name, address if it is known."""
    known = [server.host] if is_address(server.host) else list(addresses.get(server.host, ()))
    if server.count == 1:
        yield server.name, known[0] if known else None
        return
    for number in range(server.count):
        yield f"{server.name}{number + 1}", known[number] if number < len(known) else None


def _is(machine: Machine, address: str | None, name: str) -> bool:
    own = machine.found.addresses if isinstance(machine.found.addresses, frozenset) else frozenset()
    if address is None:
        return name == machine.name
    return address == machine.found.address or address in own


def _same(one: FleetHost, address: str | None, name: str) -> bool:
    return one.address == address if address and one.address else one.name == host_name(name)


def _host(
    machine: Machine, mine: list[Inbound], core_fleet: tuple[str, ...] | None, dialled: tuple[str, ...] | None,
    fleet: str, addresses: Addresses,
) -> FleetHost:  # fmt: skip
    front = machine.front
    names = front.names if front else ()
    one = FleetHost(
        name=machine.name,
        fleet=_fleet(mine, fleet),
        address=machine.found.address,
        machine=machine,
        inbound=tuple(mine),
        public_name=_public_name(machine, names, [*(core_fleet or ()), *(dialled or ())], addresses),
        workers=machine.workers.count if machine.workers and machine.workers.count else None,
        port=front.port if front else None,
        listed=None,
        dialled=None,
    )
    return _registered(one, core_fleet, dialled, addresses)


def _by_ingress(
    name: str, address: str | None, mine: tuple[Inbound, ...], core_fleet: tuple[str, ...] | None,
    dialled: tuple[str, ...] | None, fleet: str,
) -> FleetHost:  # fmt: skip
    server = mine[0].server
    public = "" if is_address(server.host) or server.count > 1 else server.host.lower()
    public = public or server.options.get("sni", "").removeprefix("str(").removesuffix(")").lower()
    public = public if re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", public) else ""
    one = FleetHost(name, _fleet(mine, fleet), address, None, mine, public, server.maxconn, server.port, None, None)
    return _registered(one, core_fleet, dialled, {})


def _registered(
    one: FleetHost, core_fleet: tuple[str, ...] | None, dialled: tuple[str, ...] | None, addresses: Addresses
) -> FleetHost:
    def among(urls: tuple[str, ...] | None) -> str | None:
        if urls is None:
            return None
        return next((url for url in urls if _leads_to(url, one, addresses)), "")

    return replace(one, listed=among(core_fleet), dialled=among(dialled))


def _leads_to(url: str, one: FleetHost, addresses: Addresses) -> bool:
    host = url_host(url)
    if host == one.public_name or (one.machine and one.machine.front and host in one.machine.front.names):
        return bool(host)
    held = [host] if is_address(host) else list(addresses.get(host, ()))
    if one.machine is not None and held:
        # A name that several hosts share tells nothing.
        own = one.machine.found.addresses
        return held[0] == one.machine.found.address or (isinstance(own, frozenset) and held[0] in own)
    return bool(held) and held[0] == one.address


def _fleet(mine: Sequence[Inbound], fleet: str) -> str:
    if not mine:
        return fleet
    return fleet_name(mine[0].backend.name)


def _public_name(machine: Machine, names: Sequence[str], urls: Sequence[str], addresses: Addresses) -> str:
    """The name that callers know, where nginx serves several; the one that URLs have, else the first."""
    plain = [name for name in names if not name.startswith("*.")]
    called = [url_host(url) for url in urls]
    for name in plain:
        if name in called:
            return name
    if plain:
        return plain[0]
    for name in called:
        if machine.found.address in addresses.get(name, ()):
            return name
    return ""


def url_host(url: str) -> str:
    """The host in a URL, in lower case; empty for what is none."""
    try:
        return (urlsplit(url if "://" in url else f"https://{url}").hostname or "").lower()
    except ValueError:
        return ""


def url_port(url: str) -> int | None:
    """The port of a URL, if it names one."""
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def fleet_name(backend: str) -> str:
    """A fleet's name from a backend's."""
    name = host_name(backend)
    name = re.sub(r"^(be|bk|backend|back|srv|pool|ws)-", "", name)
    return re.sub(r"-(be|bk|backend|back|servers|pool|fleets?)$", "", name) or "main"


def host_name(text: str) -> str:
    """A host's name as a site file may have it."""
    first = text.lower() if is_address(text) else text.lower().split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "-", first).strip("-")[:40].strip("-")
    return name or "host"


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    number, made = 1, name
    while made in taken:
        number += 1
        made = f"{name[:36]}-{number}"
    return made


def domain_of(names: Iterable[str]) -> str:
    """The domain that most of these names lie in directly; empty when there is none."""
    above = Counter(name.partition(".")[2] for name in names if name.count(".") >= 1)
    best = [(count, -len(domain), domain) for domain, count in above.items() if "." in domain or count > 1]
    return max(best)[2] if best else ""


def call_names(platform: Platform) -> list[str]:
    """The names that carriers call, as the ingresses have them; names of the API and the Console are none."""
    others = {each.public_name for each in platform.fleet_hosts}
    for machine in platform.machines:
        others |= set(web_names(machine))
    serving = [each for each in platform.ingresses if each.backends]
    found = [name for each in serving for name in each.names if name not in others]
    if not found:
        # It lets any name in; callers can use those that it has a certificate for.
        machines = [platform.machine(each.where) for each in serving]
        found = [name for each in machines if each for name in certified(each) if name not in others]
    return [name for name in dict.fromkeys(found) if not name.startswith("*.")]


def certified(machine: Machine) -> list[str]:
    """The names that certificates of its proxies cover."""
    held = machine.found.certificates
    pems = [] if isinstance(held, Unknown) else [pem for pem in held.values() if isinstance(pem, bytes)]
    return [name for pem in pems if (certificate := opened(pem)) for name in covered(certificate)]


def web_names(machine: Machine) -> dict[str, str]:
    """Names that its nginx serves beside calls, and what: `api` (passed on) or `console` (files)."""
    from callfleet.adopt import nginx

    if machine.front is None:
        return {}
    found: dict[str, str] = {}
    for around, server in nginx.all_servers(machine.front.tree):
        route = nginx.route(around, server, "/api/v1/health")
        carries = machine.front.server == server or any(nginx.route(around, server, path) for path in CALL_ROUTES[:1])
        if server is machine.front.server or (carries and route is None):
            continue
        files = server.own("root") or any(node.name in ("root", "try_files") for node in server.walk())
        for name in nginx.names(server):
            if route is not None and not files:
                found.setdefault(name, "api")
            elif files:
                found.setdefault(name, "console")
    return found


def unknowns(machines: Iterable[Machine]) -> list[str]:
    """What no host could tell, in words."""
    return [f"{machine.name}: {name}: {why}" for machine in machines for name, why in machine.found.unknowns()]
