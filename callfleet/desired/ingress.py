"""The front: the native HAProxy that carries calls to the fleet hosts, and the names of API and Console.

Two concerns, because a canary call needs the API's name before its host may be registered: `front` brings up the proxy
with who is registered already, `ingress` adds those whose canary call succeeded in this run.

Servers and the content of certificates change in the running process, through its runtime API. What the process alone
can read from its file (everything else) has a hash, and takes a reload.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import (
    AGREED,
    CERTIFICATE_CHECK,
    Command,
    Concern,
    Directory,
    File,
    Item,
    Package,
    Runtime,
    Served,
    Server,
    Unit,
    config_hash,
    unit_check,
)
from callfleet.site import Host
from callfleet.templates import render

FOLDER = "/etc/callfleet/ingress"
DROP_IN = "/etc/systemd/system/haproxy.service.d/callfleet.conf"
ADMIN_SOCKET = "/run/callfleet-ingress/admin.sock"
MASTER_SOCKET = "/run/haproxy-master.sock"
CALLS = "calls"
"""The backend that has every registered host."""
CLIENT, CA = f"{FOLDER}/client.pem", f"{FOLDER}/internal-ca.pem"
TLS_OPTIONS = f"ssl verify required ca-file {CA} crt {CLIENT}"
MAX_RELOADS = 50
"""Former processes that may still finish their calls; the oldest beyond it would be ended by HAProxy, calls and all."""
CONFIG = f"{FOLDER}/haproxy.cfg"
CHALLENGES = "virt@challenges"
"""The proxy's map of answers to ACME challenges, token to answer; in its memory alone, and empty but for moments."""


def _program(module: str) -> str:
    """The call of one module of the program on the host."""
    return (
        'python3 -I -B -c \'import sys; sys.path.insert(0, "/usr/local/lib/callfleet"); '
        f"from onhost.{module} import main; sys.exit(main())'"
    )


def front(context: Context, actual: Actual | None) -> Concern | None:
    """Hosts with the role ingress or app: the proxy, with those fleet hosts that it has already."""
    site, host = context.site, context.host
    if not host.roles & {"ingress", "app"}:
        return None
    tls = _tls(context)
    return Concern(
        "front",
        (
            Package("haproxy", version=site.versions.get("haproxy", ""), hold=True),
            Directory(FOLDER),
            Directory(f"{FOLDER}/tls", mode="0700"),
            Directory("/run/callfleet-ingress", mode="0700"),
            File("/etc/tmpfiles.d/callfleet-ingress.conf", b"d /run/callfleet-ingress 0700 root root -\n"),
            Directory("/etc/systemd/system/haproxy.service.d"),
            File(
                DROP_IN,
                render("ingress/haproxy.service.conf.j2", stop_seconds=stop_seconds(context)),
                check=unit_check(DROP_IN),
            ),
            *tls,
            *_loaded(replace(context, registered=context.registered_before), tls, None),
        ),
    )


def ingress(context: Context, actual: Actual | None) -> Concern | None:
    """Inbound registration: the fleet hosts that came, added to the running proxy and to its file."""
    if "ingress" not in context.host.roles or context.registered == context.registered_before:
        return None
    before = servers(replace(context, registered=context.registered_before))
    return Concern("ingress", _loaded(context, _tls(context), before))


def _loaded(context: Context, tls: tuple[File, ...], before: tuple[Server, ...] | None) -> tuple[Item, ...]:
    """The configuration as what the proxy runs and as a file. The running proxy comes first: a host it cannot reach
    is in neither."""
    config, digest = configuration(context, tls)
    file = File(CONFIG, config, mode="0600", check="haproxy -c -dW -f {path}")
    return (
        _runtime(context, tls, file, digest, before),
        file,
        Unit("haproxy.service"),
        Command(
            subject="haproxy configuration",
            fact=f"proxy:{ADMIN_SOCKET}:{CONFIG}",
            wanted=digest,
            action="reload",
            script=f"{_program('native')} haproxy.service --config {CONFIG} "
            f"--admin-socket {ADMIN_SOCKET} --master-socket {MASTER_SOCKET} --wanted {digest} "
            f"--max-reloads {MAX_RELOADS}",
            reason="the running proxy was started with another configuration",
        ),
    )


def state_script(word: str, names: Iterable[str]) -> str:
    """Script that gives these fleet hosts no new calls (`drain`), or calls again (`ready`), where the proxy runs."""
    return (
        f"[ ! -S {ADMIN_SOCKET} ] || "
        f"{_program('servers')} --admin-socket {ADMIN_SOCKET} --state {word} {shlex.join(names)}"
    )


def challenge_script(words: Iterable[str]) -> str:
    """Script by which the running proxy answers challenges (`set TOKEN=ANSWER...`), or no longer (`clear TOKEN...`)."""
    return f"{_program('challenges')} --admin-socket {ADMIN_SOCKET} --map {CHALLENGES} {shlex.join(words)}"


def _runtime(
    context: Context, tls: tuple[File, ...], file: File, digest: str, before: tuple[Server, ...] | None
) -> Runtime:
    backends = _backends(context)
    wanted = servers(context)
    served = tuple(_served(one) for one in tls)
    order = {
        "backends": {
            backend: [
                {
                    "name": one.name,
                    "address": one.address,
                    "slots": one.slots,
                    "id": one.id,
                    "options": one.options,
                    "drained": one.drained,
                    # Who is new here must be reached before it gets calls; who has been here stays, checked or not.
                    "prove": before is not None and one not in before,
                }
                for one in wanted
                if one.backend == backend
            ]
            for backend, _ in backends
        },
        "certificates": [{"path": one.path, "kind": one.kind, "fingerprint": one.fingerprint} for one in served],
        "file_sha256": file.sha256,
    }
    script = f"{_program('servers')} --admin-socket {ADMIN_SOCKET} --agreed {AGREED} {shlex.quote(json.dumps(order))}"
    names = tuple(backend for backend, _ in backends)
    return Runtime(ADMIN_SOCKET, digest, CONFIG, names, wanted, served, before, script)


def _served(file: File) -> Served:
    found = [
        one.fingerprint(hashes.SHA1()).hex().upper()  # noqa: S303 - HAProxy's own name for a certificate, no signature
        for one in x509.load_pem_x509_certificates(file.content)
    ]
    if file.path == CA:
        return Served(file.path, "ca-file", " ".join(found))
    return Served(file.path, "cert", found[0])


def configuration(context: Context, tls: tuple[File, ...]) -> tuple[bytes, str]:
    """The front's configuration, and the hash that the running proxy reports once it runs it."""
    site, host = context.site, context.host
    ingress = "ingress" in host.roles
    hosts = context.registered_hosts
    # Two rounds over all hosts. In steps, because more retries take a reload and a new host shall not.
    retries = 2 * next(step for step in (3 * 2**n for n in range(32)) if step >= len(hosts))
    slots = 1 << max(6, (sum(one.workers for one in hosts) - 1).bit_length())
    named = servers(context)
    pools = [
        {"backend": backend, "servers": [one for one in named if one.backend == backend], "retries": retries}
        for backend, _ in _backends(context)
    ]
    fleets = [
        {"name": fleet.public_name, "backend": f"fleet_{fleet.name}"}
        for fleet in site.fleets
        if ingress and fleet.public_name
    ]
    webs = []
    if "app" in host.roles:
        webs = [
            {"name": site.api_name, "backend": "api", "address": "127.0.0.1", "port": site.ports.api},
            {"name": site.console_name, "backend": "console", "address": "127.0.0.1", "port": site.ports.console},
        ]
    values: dict[str, Any] = {
        "host": host.name,
        # By name: a certificate that is no longer declared may still lie in the folder.
        "certificates": [file.path for file in tls if file.path.startswith(f"{FOLDER}/tls/")],
        "port": host.ports.front,
        "http_port": host.ports.http,
        "challenges": CHALLENGES,
        "metrics_port": host.ports.front_metrics,
        "ingress": ingress,
        "pools": pools,
        "fleets": fleets,
        "tls_options": TLS_OPTIONS,
        "max_reloads": MAX_RELOADS,
        "stop_seconds": stop_seconds(context),
        # Every slot's call, as many refused starts again, and room for Console and API. In steps too.
        "maxconn": 4 * slots + 1000,
        "webs": webs,
        "calls_name": site.ingress_name,
        "tunnel_seconds": site.calls.silence_seconds,
        "refusal_codes": list(site.calls.refusal_codes),
    }
    # The rest changes without a reload: servers and the content of certificates.
    lasting = values | {"pools": [{**pool, "servers": []} for pool in values["pools"]]}
    digest = config_hash(render("ingress/haproxy.cfg.j2", config_hash="", **lasting).decode())
    return render("ingress/haproxy.cfg.j2", config_hash=digest, **values), digest


def _backends(context: Context) -> tuple[tuple[str, str | None], ...]:
    """Backends of calls, each with the fleet whose hosts it has; None: all of them. A front without calls has none."""
    if "ingress" not in context.host.roles:
        return ()
    own = ((f"fleet_{fleet.name}", fleet.name) for fleet in context.site.fleets if fleet.public_name)
    return ((CALLS, None), *own)


def servers(context: Context) -> tuple[Server, ...]:
    """The registered fleet hosts as servers of each backend, every option typed out: one that is added to a running
    process inherits none (management guide, "add server")."""
    return tuple(
        _server(context, backend, host)
        for backend, fleet in _backends(context)
        for host in context.registered_hosts
        if fleet is None or host.fleet == fleet
    )


def _server(context: Context, backend: str, host: Host) -> Server:
    address = f"[{host.address}]" if ":" in host.address else host.address
    name = host.public_name
    options = f"check check-ssl inter 2s fall 2 rise 1 {TLS_OPTIONS} alpn http/1.1 sni str({name}) verifyhost {name}"
    address = f"{address}:{host.ports.mtls}"
    return Server(backend, host.name, address, host.workers, options, context.drained.get(host.name))


def stop_seconds(context: Context) -> int:
    """How long a process that no longer takes calls may finish those that it has: above the longest call."""
    return context.site.calls.max_seconds + 300


def _tls(context: Context) -> tuple[File, ...]:
    site, host = context.site, context.host
    own = {host.public_name}  # the fleet proxy answers that one
    names = [name for name in site.public_names(host) if name not in own]
    found: dict[str, File] = {}
    for name in names:
        reference = site.certificate_for(name)
        # One file a certificate: a wildcard that covers several names is laid down once.
        path = f"{FOLDER}/tls/{config_hash(str(reference))[:16]}.pem"
        found[path] = File(path, context.credential(reference), mode="0600", secret=True, check=CERTIFICATE_CHECK)
    files = list(found.values())
    internal = site.tls.internal
    if "ingress" in host.roles and internal is not None:
        files += [
            File(
                CLIENT,
                context.credential(internal.ingress),
                mode="0600",
                secret=True,
                check=CERTIFICATE_CHECK,
            ),
            File(CA, context.credential(internal.ca)),
        ]
    return tuple(files)
