"""The site file that describes a platform, and what is left for its operator to do. Pure: text out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML

from callfleet.actual import EPHEMERAL_PORTS, Listener, Unknown
from callfleet.adopt.certificate import covered, opened
from callfleet.adopt.contradictions.certificates import held_for
from callfleet.adopt.contradictions.front import LARGEST_BODY, body_limit, idle_timeout
from callfleet.adopt.fleet import CALL_ROUTES, POST_ROUTES, Machine, core_secret, named
from callfleet.adopt.found import Unit, Value
from callfleet.adopt.platform import (
    FleetHost,
    Platform,
    call_names,
    domain_of,
    host_name,
    is_address,
    url_port,
    web_names,
)
from callfleet.site.checks import DECLARED_ONCE, LOOKS_SECRET
from callfleet.site.defaults import Brand, Defaults

UNKNOWN_DOMAIN, UNKNOWN_ADDRESS = "DOMAIN", "ADDRESS"
"""Stand where a value must be: validation refuses them and names the place."""

# What callfleet itself tells each role.
_OWN = {
    "worker": {"BRAND_ENV_PREFIX", "SOCKET", "OUTBOX_DIR", "RECORDINGS_DIR", "MAX_CONCURRENT_CALLS"},
    "api": {"HOST", "PORT", "ADMIN_TOKEN_FILE", "STATE_DIR"},
    "dialler": {"API_URL", "HEALTH_HOST", "HEALTH_PORT", "FLEET_URLS"},
}
# Who listens for the system itself, or for what callfleet replaces.
_SYSTEM = {"sshd", "nginx", "haproxy", "systemd", "systemd-resolve", "systemd-network", "dhclient", "dhcpcd", "chronyd",
           "ntpd", "systemd-timesyn", "avahi-daemon", "rpcbind", "dockerd", "containerd", "docker-proxy"}  # fmt: skip


@dataclass(frozen=True)
class Wishes:
    """What the operator says. Empty: as it is found. `ssh` is the section of that name; `prefix` where secrets go.

    `names_known`: DNS names that lead somewhere as seen from the controller.
    """

    site: str
    stage: str = "prod"
    brand: str = ""
    domain: str = ""
    ssh: Mapping[str, Any] = field(default_factory=dict)
    secrets: str = ""
    release: str = ""
    longest_call: int = 600
    ingress: tuple[str, str] | None = None
    names_known: frozenset[str] = frozenset()
    hostnames: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where a secret lies today: on a host, in a variable of a file, in a whole file, or as certificate and key."""

    reference: str
    host: str
    paths: tuple[str, ...]
    variable: str = ""


@dataclass
class Inventory:
    """The site file's content, what is still to be done (place, what), notes, and where its secrets are to be had."""

    parts: dict[str, Any] = field(default_factory=dict)
    todo: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    images: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)

    def do(self, place: str, what: str) -> None:
        """Something for the operator, once."""
        if (place, what) not in self.todo:
            self.todo.append((place, what))


def describe(platform: Platform, wishes: Wishes, defaults: Defaults) -> Inventory:
    """The site file that describes a platform; `text` lays it out."""
    made = Inventory()
    brand_name, overrides, brand = _brand(platform, wishes, defaults, made)
    prefix = wishes.secrets or f"secrets/{wishes.site}"
    app = platform.app
    web = {kind: name for name, kind in reversed(web_names(app).items())} if app else {}
    calls = call_names(platform)
    publics = [one.public_name for one in platform.fleet_hosts if one.public_name]
    domain = wishes.domain or domain_of([*publics, *calls, *web.values()])
    if not domain:
        made.do("domain", "the domain that the hosts' names lie in (--domain)")
    parts: dict[str, Any] = {"callfleet": 1, "site": wishes.site, "stage": wishes.stage, "brand": brand_name}
    if overrides:
        parts["brand_overrides"] = overrides
    parts["domain"] = domain or UNKNOWN_DOMAIN
    if wishes.release:
        parts["release"] = wishes.release
    if wishes.ssh:
        parts["ssh"] = dict(wishes.ssh)
    secrets: dict[str, str] = {}
    application = _app(platform, web, domain, prefix, secrets, brand, made)
    core = _core(platform, prefix, secrets, brand, made)
    fronts = _fronts(platform, wishes, made)
    fleets, hosts = _hosts(platform, wishes, domain, fronts, made, defaults)
    has_ingress = any("ingress" in entry.get("roles", ()) for entry in _entries(fleets, hosts))
    has_app = app is not None
    _secrets(platform, prefix, secrets, has_app, bool(platform.fleet_hosts), made)
    parts["secrets"] = dict(sorted(secrets.items()))
    if application:
        parts["app"] = application
    if core:
        parts["core"] = core
    if limits := _calls(platform, wishes):
        parts["calls"] = limits
    if has_ingress and calls:
        if calls[0] != f"calls.{domain}":
            parts["ingress"] = {"public_name": calls[0]}
        if len(calls) > 1:
            made.do(
                "ingress.public_name",
                f"callers use {len(calls)} names ({', '.join(calls)}): one is the site's, others can be "
                "fleets.<fleet>.public_name, one each",
            )
    parts["tls"] = _tls(platform, domain, prefix, parts, fleets, hosts, has_ingress, made)
    if fleets:
        parts["fleets"] = fleets
    if hosts:
        parts["hosts"] = hosts
    if ports := _ports(platform, defaults):
        parts["ports"] = ports
    names = _static_names(platform, parts, wishes, domain, fronts)
    if names:
        parts["names"] = names
    if not wishes.release:
        made.do("release", "pin the images: callfleet release pin, or a release file of your own (--release FILE)")
    made.images = _images(brand, defaults, has_app, application)
    made.parts = parts
    return made


def _entries(fleets: Mapping[str, Any], hosts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from hosts.values()
    for fleet in fleets.values():
        yield from fleet["hosts"].values()


# Brand


def _brand(
    platform: Platform, wishes: Wishes, defaults: Defaults, made: Inventory
) -> tuple[str, dict[str, Any], Brand]:
    """The brand by its sockets and units, and what differs from it."""
    workers = [one.machine.workers for one in platform.fleet_hosts if one.machine and one.machine.workers]
    prefix = workers[0].prefix if workers else ""
    units = {unit.name.removesuffix(".service") for m in platform.machines for unit in (m.api, m.dialler) if unit}
    by_prefix = [name for name, each in defaults.brands.items() if each.socket_prefix == prefix]
    by_unit = [name for name, each in defaults.brands.items() if units & {each.services.api, each.services.dialler}]
    name = wishes.brand or next(iter(by_prefix or by_unit), "")
    if not name:
        name = next(iter(defaults.brands))
        made.do("brand", f"no brand of group_data is called as what was found is; {name} stands in (--brand)")
    brand = defaults.brands.get(name) or next(iter(defaults.brands.values()))
    overrides: dict[str, Any] = {}
    if prefix and prefix != brand.socket_prefix:
        overrides["socket_prefix"] = prefix
    declared = next((each.declared.name for each in workers if each.declared), "")
    if declared and declared.removesuffix("_WORKERS") != brand.worker_env_prefix:
        overrides["worker_env_prefix"] = declared.removesuffix("_WORKERS")
    header = next((value for each in workers if (value := named(each.environment, "SECRET_HEADER"))), None)
    if header and header.text and header.text != brand.secret_header:
        overrides["secret_header"] = header.text
    services: dict[str, str] = {}
    for role in ("api", "dialler"):
        unit = next((each for m in platform.machines if (each := getattr(m, role))), None)
        if unit and (called := host_name(unit.name.removesuffix(".service"))) != getattr(brand.services, role):
            services[role] = called
    if services:
        overrides["services"] = services
    return name, overrides, brand


# Values


def _secrets(
    platform: Platform, prefix: str, secrets: dict[str, str], has_app: bool, has_fleet: bool, made: Inventory
) -> None:
    """core_secret and api_admin_token, which the schema asks for by name."""
    if has_fleet or has_app:
        secrets["core_secret"] = f"file:{prefix}/core_secret"
        for machine in platform.machines:
            units = [*(machine.workers.units[:1] if machine.workers else ()), machine.api]
            for unit in units:
                value = core_secret(machine.found.environment(unit)) if unit else None
                if value is not None:
                    _source(made, secrets["core_secret"], machine, value)
        if not any(each.reference == secrets["core_secret"] for each in made.sources):
            made.do("secrets.core_secret", "nobody told it: put what workers show to the API there, mode 0600")
    if has_app:
        secrets["api_admin_token"] = f"file:{prefix}/api_admin_token"
        app = platform.app
        path = None
        if app is not None and app.api is not None:
            path = named(app.found.environment(app.api), "ADMIN_TOKEN_FILE")
        if app is not None and path is not None and path.text:
            made.sources.append(Source(secrets["api_admin_token"], app.name, (path.text,)))
        else:
            made.do("secrets.api_admin_token", "an API token that may change settings: put it there, mode 0600")


def _source(made: Inventory, reference: str, machine: Machine, value: Value) -> None:
    """A secret of a variable; the first host that has it is where it is fetched from."""
    if any(each.reference == reference for each in made.sources):
        return
    path = value.place.rpartition(": ")[0]
    made.sources.append(Source(reference, machine.name, (path,), value.name))


def _app(
    platform: Platform, web: Mapping[str, str], domain: str, prefix: str, secrets: dict[str, str], brand: Brand,
    made: Inventory,
) -> dict[str, Any]:  # fmt: skip
    app = platform.app
    section: dict[str, Any] = {}
    database = _agreed(platform, "MONGODB_DB")
    if database:
        section["mongodb_db"] = database
    elif app is not None:
        made.do("app.mongodb_db", "the name of the API's database")
    api_name = web.get("api", f"api.{domain}")
    if api_name != f"api.{domain}":
        section["api_name"] = api_name
    if web.get("console", f"console.{domain}") != f"console.{domain}":
        section["console_name"] = web["console"]
    for key, canonical, default in (
        ("config_url", "CONFIG_URL", f"https://{api_name}/api/v1/config"),
        ("result_url", "RESULT_URL", f"https://{api_name}/api/v1/call-results"),
        ("vite_api_url", "VITE_API_URL", f"https://{api_name}"),
    ):
        value = _agreed(platform, canonical)
        if value and value.rstrip("/") != default:
            section[key] = value.rstrip("/")
    if app is None:
        return section
    # Stores that run on the host stay what they are: callfleet runs none beside them.
    section["stores"] = []
    for role, unit in (("api", app.api), ("dialler", app.dialler)):
        if unit is None:
            made.do(f"app.{role}", f"no unit of it was found on {app.name}: its variables are not known")
            continue
        variables = _variables(app, unit, role, prefix, secrets, brand, made)
        if variables:
            section[role] = variables
    return section


def _agreed(platform: Platform, canonical: str) -> str:
    """The value that most hosts have."""
    counts: dict[str, int] = {}
    for machine in platform.machines:
        for unit in (*(machine.workers.units[:1] if machine.workers else ()), machine.api, machine.dialler):
            value = named(machine.found.environment(unit), canonical) if unit else None
            if value is not None and value.text:
                counts[value.text] = counts.get(value.text, 0) + 1
    return max(counts, key=lambda text: counts[text]) if counts else ""


def _variables(
    machine: Machine, unit: Unit, role: str, prefix: str, secrets: dict[str, str], brand: Brand, made: Inventory
) -> dict[str, Any]:
    """What a role is told besides what callfleet tells it."""
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    environment = machine.found.environment(unit)
    held = core_secret(environment)
    place = {"worker": "core", "api": "app.api", "dialler": "app.dialler"}[role]
    for name, value in environment.items():
        if name in _OWN[role] or name in DECLARED_ONCE or value is held or _once(name, brand):
            continue
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            made.do(f"{place}.environment", f"{value.place} is not carried over: names are in upper case")
        elif value.secret:
            key = _secret_name(name)
            if made.marks.setdefault(key, value.mark) != value.mark:
                key = f"{role}_{key}"[:64]
            secrets[key] = f"file:{prefix}/{key}"
            secret[name] = key
            _source(made, secrets[key], machine, value)
        elif LOOKS_SECRET.search(name):
            made.do(f"{place}.secret_environment", f"{value.place} is not carried over: it is called like a secret")
        elif value.text is not None and value.text.isprintable():
            plain[name] = value.text
        else:
            made.do(f"{place}.environment", f"{value.place} is not carried over: it is not one line of text")
    paths = sorted(name for name, text in plain.items() if text.startswith("/"))
    if paths:
        made.do(f"{place}.environment", f"paths on the host, which a container does not have: {', '.join(paths)}")
    found: dict[str, Any] = {}
    if plain:
        found["environment"] = dict(sorted(plain.items()))
    if secret:
        found["secret_environment"] = dict(sorted(secret.items()))
    return found


def _once(name: str, brand: Brand) -> bool:
    return name.endswith("_WORKERS") or name == f"{brand.worker_env_prefix}_WORKERS" or any(
        name.endswith(f"_{each}") for each in ("CONFIG_URL", "RESULT_URL", "FLEET_URLS", "MONGODB_DB", "VITE_API_URL")
    )  # fmt: skip


def _secret_name(variable: str) -> str:
    name = re.sub(r"[^a-z0-9_]", "_", variable.lower()).strip("_")[:64]
    return name if name[:1].isalpha() else f"secret_{name}"[:64]


def _core(platform: Platform, prefix: str, secrets: dict[str, str], brand: Brand, made: Inventory) -> dict[str, Any]:
    for one in platform.fleet_hosts:
        if one.machine and one.machine.workers and one.machine.workers.units:
            return _variables(one.machine, one.machine.workers.units[0], "worker", prefix, secrets, brand, made)
    return {}


def _calls(platform: Platform, wishes: Wishes) -> dict[str, Any]:
    """The longest call, the body limit and the silence after which a call ends, as they hold today."""
    found: dict[str, Any] = {}
    if wishes.longest_call != 600:
        found["max_seconds"] = wishes.longest_call
        if wishes.longest_call > 900:
            found["drain_deadline_seconds"] = min(86400, wishes.longest_call + 300)
    bodies, silences = [], []
    for one in platform.fleet_hosts:
        routes = one.machine.front.routes if one.machine and one.machine.front else {}
        bodies += [body_limit(routes[path])[0] or LARGEST_BODY for path in POST_ROUTES if path in routes]
        silences += [idle_timeout(routes[path])[0] for path in CALL_ROUTES if path in routes]
    if bodies:
        found["largest_body_bytes"] = max(1024, min(LARGEST_BODY, max(bodies)))
    if silences:
        found["tunnel_timeout_seconds"] = int(max(5, min(86400, max(silences))))
    return found


# Hosts


def _fronts(platform: Platform, wishes: Wishes, made: Inventory) -> dict[str, str]:
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


def _hosts(
    platform: Platform, wishes: Wishes, domain: str, fronts: Mapping[str, str], made: Inventory, defaults: Defaults
) -> tuple[dict[str, Any], dict[str, Any]]:
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


# Certificates, ports, names


def _tls(
    platform: Platform, domain: str, prefix: str, parts: Mapping[str, Any], fleets: Mapping[str, Any],
    hosts: Mapping[str, Any], has_ingress: bool, made: Inventory,
) -> dict[str, Any]:  # fmt: skip
    names: list[str] = []
    fleet_hosts = [(name, entry) for fleet in fleets.values() for name, entry in fleet["hosts"].items()]
    for name, entry in fleet_hosts:
        names.append(entry.get("public_name") or f"{name}.{domain or UNKNOWN_DOMAIN}")
    roles = {role for entry in _entries(fleets, hosts) for role in entry.get("roles", ())}
    if "ingress" in roles:
        names.append(parts.get("ingress", {}).get("public_name") or f"calls.{domain}")
    if "app" in roles:
        app = parts.get("app", {})
        names += [app.get("api_name") or f"api.{domain}", app.get("console_name") or f"console.{domain}"]
    found: dict[str, str] = {}
    for name in names:
        machine_path = held_for(platform, name)
        key = name
        if machine_path is not None:
            machine, path = machine_path
            held = machine.found.certificates
            pem = None if isinstance(held, Unknown) else held.get(path)
            certificate = opened(pem) if isinstance(pem, bytes) else None
            wildcard = f"*.{name.partition('.')[2]}"
            if certificate is not None and name not in (has := covered(certificate)) and wildcard in has:
                key = wildcard
        file = f"file:{prefix}/tls/{key.replace('*', 'wildcard')}.pem"
        if key in found:
            continue
        found[key] = file
        if machine_path is not None:
            machine, path = machine_path
            keys = [k for m in (machine,) if m.front for n, c, k in m.front.certificates if c == path]
            made.sources.append(Source(file, machine.name, (path, keys[0]) if keys else (path,)))
        else:
            made.do(f"tls.certificates[{key}]", "none was found: chain and key in one PEM file, mode 0600")
    section: dict[str, Any] = {"certificates": found}
    if has_ingress and fleet_hosts:
        section["internal"] = {
            "ca": f"{prefix}/tls/internal-ca.pem",
            "authority": {"key": f"file:{prefix}/tls/internal-ca.key"},
            "ingress": f"file:{prefix}/tls/internal-ingress.pem",
            "hosts": {name: f"file:{prefix}/tls/internal-{name}.pem" for name, _ in fleet_hosts},
        }
        site = parts["site"]
        made.do(
            "tls.internal",
            f"make them: callfleet certificates authority {site}, then callfleet certificates issue {site}",
        )
    return section


def _ports(platform: Platform, defaults: Defaults) -> dict[str, int]:
    """Where API and Dialler listen, where that is not the usual."""
    found: dict[str, int] = {}
    app = platform.app
    if app is None:
        return found
    if app.api is not None:
        words = app.api.command.split()
        port = words[words.index("--port") + 1] if "--port" in words[:-1] else ""
        value = app.found.environment(app.api).get("PORT")
        port = port or (value.text if value and value.text else "")
        if port.isdigit() and int(port) != defaults.ports.api:
            found["api"] = int(port)
    if app.dialler is not None:
        value = named(app.found.environment(app.dialler), "HEALTH_PORT")
        if value and value.text and value.text.isdigit() and int(value.text) != defaults.ports.dialler_health:
            found["dialler_health"] = int(value.text)
    return found


def _static_names(
    platform: Platform, parts: Mapping[str, Any], wishes: Wishes, domain: str, fronts: Mapping[str, str]
) -> dict[str, str]:
    """Names that no DNS server known here has, with the addresses that they must lead to."""
    if not domain:
        return {}
    wanted: dict[str, str] = {}
    for one in platform.fleet_hosts:
        if one.address and is_address(one.address):
            wanted[one.public_name or f"{one.name}.{domain}"] = one.address
    for address in list(fronts.values())[:1]:
        wanted[parts.get("ingress", {}).get("public_name") or f"calls.{domain}"] = address
    if platform.app is not None:
        app = parts.get("app", {})
        for name in (app.get("api_name") or f"api.{domain}", app.get("console_name") or f"console.{domain}"):
            wanted[name] = platform.app.found.address
    return {name: address for name, address in wanted.items() if name not in wishes.names_known}


def _images(brand: Brand, defaults: Defaults, has_app: bool, application: Mapping[str, Any]) -> tuple[str, ...]:
    images = [brand.images.core_worker, defaults.common_images.proxy]
    if has_app:
        images += [brand.images.api, brand.images.dialler, brand.images.console]
        images += [getattr(defaults.common_images, each) for each in application.get("stores", ())]
    return tuple(images)


# Text

_SPACED = ("ssh", "secrets", "app", "core", "calls", "ingress", "tls", "fleets", "hosts", "ports", "names")


def text(made: Inventory, left: Iterable[str] = ()) -> str:
    """The file: its content, what is to be done as comments beside it, and what is not carried over (`left`) below."""
    parts = made.parts
    lines = [
        f"# Written by `callfleet import {parts['site']}` from what runs; inventories/prod.yml explains every key.",
        "# Lines that begin with `# TO DO` are what it could not know.",
        "",
    ]
    for key, value in parts.items():
        if key in _SPACED:
            lines.append("")
        lines += [f"# TO DO {place}: {what}" for place, what in made.todo if _below(place, key)]
        if key == "names":
            lines.append(
                "# No DNS server asked by the importing machine has these. Remove them once there are records."
            )
        lines += _dump({key: value}).rstrip("\n").split("\n")
    rest = [(place, what) for place, what in made.todo if not any(_below(place, key) for key in parts)]
    lines += ["", *(f"# TO DO {place}: {what}" for place, what in rest)] if rest else []
    kept = list(left)
    if kept:
        lines += ["", "# Not carried over, as it was found:", *(f"#   {line}" for line in kept)]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"


def _below(place: str, key: str) -> bool:
    return place == key or place.startswith((f"{key}.", f"{key}[", f"{key}:"))


def _dump(value: Mapping[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(dict(value), stream)
    return stream.getvalue()


def release_text(images: Iterable[str]) -> str:
    """A release file with nothing pinned yet."""
    return (
        "# Which image runs under each name. Nothing is pinned yet: validation names what is missing.\n"
        f"# Wanted: {', '.join(images)}\n"
        'callfleet_release: 1\nrelease: "none"\nimages: {}\n'
    )
