"""Fleets and hosts, with what else they serve. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from callfleet.actual import EPHEMERAL_PORTS, Listener, Unknown
from callfleet.adopt.fleet import Machine
from callfleet.adopt.inventory.parts import UNKNOWN_ADDRESS, Inventory, Wishes
from callfleet.adopt.platform import (
    FleetHost,
    Platform,
    url_port,
)
from callfleet.site.defaults import Defaults

# Who listens for the system itself, or for what callfleet replaces.
_SYSTEM = {"sshd", "nginx", "haproxy", "systemd", "systemd-resolve", "systemd-network", "dhclient", "dhcpcd", "chronyd",
           "ntpd", "systemd-timesyn", "avahi-daemon", "rpcbind", "dockerd", "containerd", "docker-proxy"}  # fmt: skip


def front_addresses(platform: Platform, wishes: Wishes, made: Inventory) -> dict[str, str]:
    """Ingress hosts by name with their addresses."""
    found: dict[str, str] = {}
    for ingress in platform.ingresses:
        if not ingress.backends:
            continue
        machine = platform.machine(ingress.where)
        if machine is not None:
            found[machine.name] = machine.found.address
        elif wishes.ingress is None:
            made.do("hosts", f"the ingress of {ingress.where} has no address: --ingress NAME=ADDRESS")
    if wishes.ingress is not None:
        found[wishes.ingress[0]] = wishes.ingress[1]
    return found


def hosts_of(
    platform: Platform, wishes: Wishes, domain: str, fronts: Mapping[str, str], made: Inventory, defaults: Defaults
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`fleets` and `hosts`."""
    fleets: dict[str, Any] = {}
    hosts: dict[str, Any] = {}
    fleet_names = {one.name for one in platform.fleet_hosts}
    for one in platform.fleet_hosts:
        entry = _fleet_entry(one, platform, wishes, domain, fronts, made, defaults)
        fleets.setdefault(one.fleet or "main", {"hosts": {}})["hosts"][one.name] = entry
    for name, address in fronts.items():
        if name not in fleet_names:
            roles = ["ingress"] + (["app"] if platform.app and platform.app.name == name else [])
            hosts[name] = _entry(address, roles, platform.machine(name), wishes, made)
    if platform.app and platform.app.name not in fleet_names and platform.app.name not in hosts:
        hosts[platform.app.name] = _entry(platform.app.found.address, ["app"], platform.app, wishes, made)
    for machine in platform.machines:
        if machine.name not in fleet_names and machine.name not in hosts:
            made.do("hosts", f"{machine.name} has no worker, no ingress, no API: it is left out")
    return fleets, hosts


def _entry(
    address: str | None, roles: list[str], machine: Machine | None, wishes: Wishes, made: Inventory
) -> dict[str, Any]:
    entry: dict[str, Any] = {"address": address or UNKNOWN_ADDRESS}
    if roles:
        entry["roles"] = roles
    if machine is not None:
        if (hostname := wishes.hostnames.get(machine.name)) and hostname != address:
            entry["ssh"] = {"hostname": hostname}
        if opened_ports := _open_ports(machine, made):
            entry["open_ports"] = opened_ports
    return entry


def _fleet_entry(
    one: FleetHost, platform: Platform, wishes: Wishes, domain: str, fronts: Mapping[str, str], made: Inventory,
    defaults: Defaults,
) -> dict[str, Any]:  # fmt: skip
    roles = [role for role, there in (
        ("ingress", one.name in fronts), ("app", platform.app is not None and platform.app.name == one.name)
    ) if there]  # fmt: skip
    entry = _entry(one.address, roles, one.machine, wishes, made)
    place = f"fleets.{one.fleet or 'main'}.hosts.{one.name}"
    if one.machine is None and platform.machines:
        made.notes.append(f"{one.name} was not read, only named by the ingress: read it too (--from)")
    if one.address is None:
        made.do(f"{place}.address", "no address is known: its name leads nowhere from here")
    if one.workers:
        entry["workers"] = one.workers
    else:
        made.do(f"{place}.workers", "how many workers it has: nobody says so")
    if one.machine is not None and not isinstance(one.machine.found.memory, Unknown):
        memory = one.machine.found.memory.total // 1024**2
        need = (one.workers or 0) * 260 + 1024
        if memory >= need:
            entry["memory_mb"] = memory
        else:
            made.notes.append(f"{one.name} has {memory} MiB, its workers are counted as {need} MiB (core.*_memory_mb)")
    if one.public_name and one.public_name != f"{one.name}.{domain}":
        entry["public_name"] = one.public_name
    elif not one.public_name:
        made.do(f"{place}.public_name", f"no public name was found: {one.name}.<domain> stands in")
    front = one.machine.front if one.machine else None
    if front is not None and front.server is not None:
        if aliases := [name for name in front.names if name != one.public_name]:
            made.notes.append(f"{one.name} is also called {', '.join(aliases)}: callfleet serves one name")
        if not front.tls:
            made.notes.append(f"{one.name} takes calls without TLS on port {front.port}: callfleet's proxy wants TLS")
    usual = defaults.ports.fleet_shared if roles else defaults.ports.fleet
    port = next((url_port(url) for url in (one.listed, one.dialled) if url and url_port(url)), None) or one.port
    if port and port != usual and not (roles and port == defaults.ports.front):
        entry["ports"] = {"fleet": port}
        if port == defaults.ports.mtls:
            entry["ports"]["mtls"] = port + 1
            made.notes.append(
                f"{one.name}: {port} is taken by calls, so the ingress comes in at {port + 1} (ports.mtls)"
            )
    elif roles and port == defaults.ports.front:
        made.notes.append(
            f"{one.name} serves calls and other names on port {port} today; with callfleet its own name has port "
            f"{usual}, in core_fleet and FLEET_URLS too (ports.fleet_shared)"
        )
    order = ("address", "workers", "memory_mb", "public_name", "roles", "ports", "ssh", "open_ports")
    return {key: entry[key] for key in order if key in entry}


def _open_ports(machine: Machine, made: Inventory) -> list[dict[str, Any]]:
    """What else the host serves to others: callfleet's firewall would close it."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    ours = {unit.properties.get("MainPID", "") for unit in
            (*(machine.workers.units if machine.workers else ()), machine.api, machine.dialler) if unit}  # fmt: skip
    for protocol, listeners in (("tcp", machine.found.listeners), ("udp", machine.found.datagrams)):
        if isinstance(listeners, Unknown):
            made.do("hosts", f"{machine.name}: which {protocol} ports it serves could not be told; see open_ports")
            continue
        for each in listeners:
            who = sorted({process for process, _ in each.processes})
            if _is_local(each) or set(who) & _SYSTEM or {str(pid) for _, pid in each.processes} & ours:
                continue
            if each.port == 22 or (protocol == "udp" and each.port in (68, 123, 323, 546, 5353)):
                continue
            if each.port >= EPHEMERAL_PORTS:
                text = f"{machine.name}: {', '.join(who) or 'somebody'} serves {protocol} port {each.port}"
                made.do("hosts", f"{text}; declare it under open_ports if it is to stay open")
                continue
            comment = f"{', '.join(who) or 'unknown'}, found open"
            found.setdefault((protocol, each.port), {"port": each.port, "protocol": protocol, "comment": comment})
    if not isinstance(machine.found.listeners, Unknown):
        proxies = {each.port for each in machine.found.listeners if not _is_local(each)
                   and {process for process, _ in each.processes} & {"nginx", "haproxy"}}  # fmt: skip
        if other := sorted(proxies - {443}):
            text = f"{machine.name}: its proxy also serves {', '.join(map(str, other))}"
            made.notes.append(f"{text}: callfleet's serves its own ports alone, and closes the others")
    if found:
        made.notes.append(
            f"{machine.name}: {', '.join(f'{port}/{protocol}' for protocol, port in sorted(found))} stay open to "
            "everybody, as they are: narrow open_ports with `from`"
        )
    return [found[key] for key in sorted(found)]


def _is_local(listener: Listener) -> bool:
    return listener.address.startswith("127.") or listener.address == "::1" or "%" in listener.address or (
        listener.address.startswith("fe80:") or listener.address == "::ffff:127.0.0.1"
    )  # fmt: skip
