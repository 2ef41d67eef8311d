"""What an import understood, what it did not, and what contradicts: one document, for people and programs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from callfleet.actual import Unknown
from callfleet.adopt import nginx
from callfleet.adopt.contradictions import Finding, Weight, numbers
from callfleet.adopt.fleet import Machine
from callfleet.adopt.found import EnvironmentFile
from callfleet.adopt.haproxy import keywords
from callfleet.adopt.ingress import NO_CALLS
from callfleet.adopt.platform import Platform, unknowns, web_names

SCHEMA = 1

# nginx: what is understood, or concerns what callfleet's own proxy does in its own way.
_TAKEN = keywords(
    "user pid worker_processes worker_cpu_affinity worker_rlimit_nofile worker_connections events multi_accept use "
    "http server listen server_name location upstream zone least_conn keepalive map default_type types sendfile "
    "tcp_nopush tcp_nodelay keepalive_timeout keepalive_requests server_tokens access_log error_log log_format "
    "gzip gzip_types gzip_vary gzip_proxied gzip_comp_level gzip_min_length gzip_disable ssl_certificate "
    "ssl_certificate_key ssl_protocols ssl_ciphers ssl_prefer_server_ciphers ssl_session_cache ssl_session_timeout "
    "ssl_session_tickets ssl_dhparam ssl_ecdh_curve ssl_stapling ssl_stapling_verify ssl_trusted_certificate "
    "resolver resolver_timeout ssl proxy_pass proxy_http_version proxy_set_header proxy_buffering "
    "proxy_request_buffering proxy_read_timeout proxy_send_timeout proxy_connect_timeout proxy_next_upstream "
    "proxy_next_upstream_tries proxy_next_upstream_timeout client_max_body_size client_body_timeout "
    "client_header_timeout send_timeout client_body_buffer_size proxy_buffers proxy_buffer_size "
    "types_hash_max_size server_names_hash_bucket_size map_hash_bucket_size map_hash_max_size "
    "types_hash_bucket_size reset_timedout_connection open_file_cache load_module include http2 "
    "worker_shutdown_timeout proxy_redirect"
)
_WEB = keywords("root index try_files expires add_header alias")
"""Of a site of files: what the Console's own image does."""

_LIMITS = {"LimitNOFILE": "", "MemoryMax": "infinity", "CPUQuotaPerSecUSec": "infinity", "Nice": "0", "UMask": "0022"}


@dataclass(frozen=True)
class Left:
    """Something that is not carried over: where, what, why. Holds no secret."""

    where: str
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.why})"


def understood(platform: Platform) -> list[str]:
    """What was recognised, in sentences."""
    return [*_hosts(platform), *_ingresses(platform), *_lists(platform)]


def _hosts(platform: Platform) -> Iterator[str]:
    for machine in platform.machines:
        workers, front = machine.workers, machine.front
        if workers is not None:
            running = workers.running
            said = numbers(running) if isinstance(running, frozenset) else "unknown"
            path = f"{workers.directory}/{workers.prefix}_N.sock"
            yield f"{machine.name}: workers {workers.prefix}@ {said}, sockets {path}"
            if workers.units:
                yield f"{machine.name}: {workers.units[0].name}: {_limits(workers.units[0].properties)}"
                for path in workers.units[0].environment_files:
                    yield _environment(machine, path)
        if front is not None and front.server is not None:
            routes = ", ".join(sorted(front.routes))
            names = ", ".join(front.names) or "no name"
            yield f"{machine.name}: nginx for {names} on port {front.port}{' by TLS' if front.tls else ''}: {routes}"
        for name, kind in web_names(machine).items():
            yield f"{machine.name}: nginx serves the {kind} as {name}"
        for role, unit in (("API", machine.api), ("Dialler", machine.dialler)):
            if unit is not None:
                yield f"{machine.name}: the {role} is {unit.name}, {unit.properties.get('ActiveState', 'unknown')}"
                for path in unit.environment_files:
                    yield _environment(machine, path)
        if machine.other_units:
            names = ", ".join(
                unit.name for unit in machine.other_units if unit.name not in ("nginx.service", "haproxy.service")
            )
            if names:
                yield f"{machine.name}: left alone: {names}"


def _limits(properties: Mapping[str, str]) -> str:
    told = [f"user {properties.get('User') or 'root'}"]
    told += [f"{key} {properties[key]}" for key, usual in _LIMITS.items() if properties.get(key, usual) != usual]
    return ", ".join(told)


def _environment(machine: Machine, path: str) -> str:
    held = machine.found.environments
    file = None if isinstance(held, Unknown) else held.get(path)
    if not isinstance(file, EnvironmentFile):
        return f"{machine.name}: {path}: {'not there' if file is None else 'unknown'}"
    secret = sum(value.secret for value in file.values.values())
    return f"{machine.name}: {path}: {len(file.values)} variables, {secret} of them secret"


def _ingresses(platform: Platform) -> Iterator[str]:
    for each in platform.ingresses:
        yield f"{each.where}: HAProxy, {each.lines} lines, names {', '.join(each.names) or 'none'}"
        for backend in each.backends:
            servers = ", ".join(
                f"{server.name} {server.host}{f':{server.port}' if server.port else ''}"
                + (f" maxconn {server.maxconn}" if server.maxconn else "")
                + (f" x {server.count}" if server.count > 1 else "")
                for server in backend.servers
            )
            yield f"{each.where}: backend {backend.name} carries calls ({backend.why}): {servers}"


def _lists(platform: Platform) -> Iterator[str]:
    if platform.core_fleet is not None:
        yield f"core_fleet: {', '.join(platform.core_fleet) or 'empty'}"
    if platform.fleet_urls is not None:
        yield f"FLEET_URLS ({platform.fleet_urls_place}): {', '.join(platform.fleet_urls) or 'empty'}"


def not_understood(platform: Platform) -> list[Left]:
    """Every line that says something which is not carried over."""
    return list(dict.fromkeys([*_haproxy(platform), *_nginx(platform), *_environments(platform)]))


def _haproxy(platform: Platform) -> Iterator[Left]:
    for each in platform.ingresses:
        machine = platform.machine(each.where)
        web = set(web_names(machine)) if machine else set()
        for line, why in each.unknown:
            if why == NO_CALLS and web and _local(each.config.sections, line.file, line.number):
                continue  # it passes other names to nginx on the same host, which is read
            yield Left(f"{each.place(line)}", shown(line.text), why)


def _local(sections: Any, file: str, number: int) -> bool:
    for section in sections:
        lines = (section.head, *section.lines)
        if any(line.file == file and line.number == number for line in lines):
            held = section.own("server")
            return bool(held) and all(
                len(line.words) > 2 and line.words[2].startswith(("127.", "localhost", "[::1]")) for line in held
            )
    return False


def _nginx(platform: Platform) -> Iterator[Left]:
    for machine in platform.machines:
        if machine.front is None:
            continue
        for place, why in machine.front.tree.odd:
            yield Left(f"{machine.name}: {place}", "", why)
        files = {server.place for _, server in nginx.all_servers(machine.front.tree) if _is_files(server)}
        for top in machine.front.tree.root.block or ():
            yield from _unknown(machine, top, files, in_files=False)


def _is_files(server: nginx.Node) -> bool:
    return any(node.name in ("root", "try_files") for node in server.walk())


def _unknown(machine: Machine, node: nginx.Node, files: set[str], *, in_files: bool) -> Iterator[Left]:
    in_files = in_files or node.place in files
    if node.name == "return":
        return
    if node.name not in _TAKEN and not (in_files and node.name in _WEB):
        yield Left(f"{machine.name}: {node.place}", shown(node.text), "a directive with no counterpart")
        return
    if node.name in ("map", "types", "upstream"):
        return
    for inner in node.block or ():
        yield from _unknown(machine, inner, files, in_files=in_files)


def _environments(platform: Platform) -> Iterator[Left]:
    for machine in platform.machines:
        for prefix in machine.beside:
            yield Left(machine.name, f"workers {prefix}@", "a host carries the workers of one name alone")
        files = [held.values() for held in (machine.found.environments, machine.found.inline)
                 if not isinstance(held, Unknown)]  # fmt: skip
        for file in (one for held in files for one in held):
            if isinstance(file, EnvironmentFile) and file.unclear:
                yield Left(
                    f"{machine.name}: {file.path}", f"{file.unclear} lines (not shown)", "no assignment of one line"
                )


_SECRET = re.compile(r"secret|passw|token|auth|credential|api_?key|cookie", re.IGNORECASE)


def shown(text: str) -> str:
    """A configuration line as it may be shown: on one line, and without what may be a secret."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", " ".join(text.split()))
    if _SECRET.search(text):
        words = text.split(" ")
        text = " ".join([*words[:2], "***"]) if len(words) > 2 else text.split(" ")[0] + " ***"
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 200 else text[:197] + "..."


def document(
    site: str, platform: Platform, findings: list[Finding], left: list[Left], todo: list[tuple[str, str]],
    notes: list[str], problems: list[str], written: list[str], code: int, then: str,
) -> dict[str, Any]:  # fmt: skip
    """The document of `--json`."""
    return {
        "schema": SCHEMA,
        "kind": "import",
        "site": site,
        "exit": code,
        "written": written,
        "hosts": [
            {
                "name": one.name, "fleet": one.fleet or "main", "address": one.address, "workers": one.workers,
                "public_name": one.public_name, "at_ingress": bool(one.inbound), "core_fleet": one.listed,
                "fleet_urls": one.dialled, "looked_at": one.machine is not None,
            }
            for one in platform.fleet_hosts
        ],
        "understood": understood(platform),
        "not_understood": [asdict(each) for each in left],
        "unknown": unknowns(platform.machines),
        "contradictions": [asdict(each) for each in findings if each.weight is Weight.CONTRADICTION],
        "weaknesses": [asdict(each) for each in findings if each.weight is Weight.WEAKNESS],
        "to_do": [{"place": place, "what": what} for place, what in todo],
        "notes": notes,
        "problems": problems,
        "next": then,
    }  # fmt: skip
