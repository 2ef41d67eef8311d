"""The front: the native HAProxy that carries calls to the fleet hosts, and the names of API and Console.

Two concerns, because a canary call needs the API's name before its host may be registered: `front` brings up the proxy
with who is registered already, `ingress` adds those whose canary call succeeded in this run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.expected import (
    CERTIFICATE_CHECK,
    Command,
    Concern,
    Directory,
    File,
    Item,
    Package,
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
LOAD = (
    'python3 -I -B -c \'import sys; sys.path.insert(0, "/usr/local/lib/callfleet"); '
    "from onhost.native import main; sys.exit(main())'"
)


def front(context: Context, actual: Actual | None) -> Concern | None:
    """Hosts with the role ingress or app: the proxy, with those fleet hosts that it has already."""
    site, host = context.site, context.host
    if not host.roles & {"ingress", "app"}:
        return None
    tls = _tls(context)
    stop_seconds = site.calls.max_seconds + 300
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
                render("ingress/haproxy.service.conf.j2", stop_seconds=stop_seconds),
                check=unit_check(DROP_IN),
            ),
            *tls,
            *_loaded(replace(context, registered=context.registered_before), tls),
        ),
    )


def ingress(context: Context, actual: Actual | None) -> Concern | None:
    """Inbound registration: the same configuration with the fleet hosts that came or went."""
    if "ingress" not in context.host.roles or context.registered == context.registered_before:
        return None
    return Concern("ingress", _loaded(context, _tls(context)))


def _loaded(context: Context, tls: tuple[File, ...]) -> tuple[Item, ...]:
    """The configuration as a file, and as what the proxy runs."""
    config, digest = configuration(context, tls)
    return (
        File(f"{FOLDER}/haproxy.cfg", config, mode="0600", check="haproxy -c -dW -f {path}"),
        Unit("haproxy.service"),
        Command(
            subject="haproxy configuration",
            fact=f"proxy:{ADMIN_SOCKET}:{FOLDER}/haproxy.cfg",
            wanted=digest,
            action="reload",
            script=f"{LOAD} haproxy.service --config {FOLDER}/haproxy.cfg "
            f"--admin-socket {ADMIN_SOCKET} --master-socket {MASTER_SOCKET} --wanted {digest}",
            reason="the running proxy was started with another configuration",
        ),
    )


def configuration(context: Context, tls: tuple[File, ...]) -> tuple[bytes, str]:
    """The front's configuration, and the hash that the running proxy reports once it runs it."""
    site, host = context.site, context.host
    ingress = "ingress" in host.roles
    servers = [_server(h) for h in context.registered_hosts]
    pools: list[dict[str, Any]] = []
    fleets: list[dict[str, str]] = []
    if ingress:
        pools.append({"backend": "calls", "servers": servers, "retries": max(2 * len(servers), 2)})
        for fleet in site.fleets:
            if fleet.public_name is None:
                continue
            own = [_server(h) for h in context.registered_hosts if h.fleet == fleet.name]
            pools.append({"backend": f"fleet_{fleet.name}", "servers": own, "retries": max(2 * len(own), 2)})
            fleets.append({"name": fleet.public_name, "backend": f"fleet_{fleet.name}"})
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
        "ingress": ingress,
        "pools": pools,
        "fleets": fleets,
        # Every slot's call, as many refused starts again, and room for Console and API.
        "maxconn": 4 * sum(one.workers for one in site.fleet_hosts) + 1000,
        "webs": webs,
        "calls_name": site.ingress_name,
        "tunnel_seconds": site.calls.tunnel_timeout_seconds,
        "refusal_codes": list(site.calls.refusal_codes),
    }
    plain = render("ingress/haproxy.cfg.j2", config_hash="", **values)
    digest = config_hash(plain.decode(), [context.fingerprint(f.content) for f in tls])
    return render("ingress/haproxy.cfg.j2", config_hash=digest, **values), digest


def _server(host: Host) -> dict[str, Any]:
    address = f"[{host.address}]" if ":" in host.address else host.address
    return {
        "name": host.name,
        "address": address,
        "port": host.ports.mtls,
        "workers": host.workers,
        "public_name": host.public_name,
    }


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
                f"{FOLDER}/client.pem",
                context.credential(internal.ingress),
                mode="0600",
                secret=True,
                check=CERTIFICATE_CHECK,
            ),
            File(f"{FOLDER}/internal-ca.pem", context.credential(internal.ca)),
        ]
    return tuple(files)
