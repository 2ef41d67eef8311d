"""A fleet host: its workers, one call each, and the host's own proxy in front of them."""

from __future__ import annotations

from typing import Any

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.desired.stack import Service, project
from callfleet.expected import CERTIFICATE_CHECK, Concern, Directory, File, config_hash
from callfleet.templates import render, verbatim


def concern(context: Context, actual: Actual | None) -> Concern | None:
    """Hosts with the role fleet."""
    site, host = context.site, context.host
    if "fleet" not in host.roles:
        return None
    name, uid = site.brand.stack, str(site.defaults.worker_uid)
    folder, run, state = f"/opt/stacks/{name}", f"/run/{name}", f"/var/lib/{name}"
    slots = range(1, host.workers + 1)
    tls = _tls(context, folder)
    haproxy_cfg, proxy_hash = proxy_configuration(context, tls)
    services = {"proxy": Service("proxy", _proxy_spec(context, folder, run))}
    services |= {f"worker-{n}": _worker(context, n, run, state) for n in slots}
    return project(
        context,
        "fleet",
        name,
        services,
        files=(
            *tls,
            File(f"{folder}/haproxy/at-capacity.http", verbatim("fleet/at-capacity.http")),
            File(
                f"{folder}/haproxy/haproxy.cfg",
                haproxy_cfg,
                check=_proxy_check(context, folder),
            ),
        ),
        directories=(
            Directory(f"{folder}/haproxy"),
            Directory(f"{folder}/tls", mode="0700"),
            Directory(run),
            Directory(f"{run}/published"),
            Directory(f"{run}/proxy", mode="0700"),
            Directory(f"{run}/slots"),
            *(Directory(f"{run}/slots/{n}", owner=uid, group=uid) for n in slots),
            Directory(state),
            Directory(f"{state}/outbox", owner=uid, group=uid),
            Directory(f"{state}/recordings", owner=uid, group=uid),
        ),
        slots=host.workers,
        proxy_config=proxy_hash,
        keeper=True,
        description={
            "socket_prefix": site.brand.socket_prefix,
            "slot_service": "worker-{n}",
            "proxy": {
                "config_hash": proxy_hash,
                "config": f"{folder}/haproxy/haproxy.cfg",
                "admin_socket": f"{run}/proxy/admin.sock",
                "master_socket": f"{run}/proxy/master.sock",
                "container_config": "/usr/local/etc/haproxy/haproxy.cfg",
            },
            "outbox": {"directory": f"{state}/outbox", "pattern": site.brand.outbox},
            "health": {
                "path": site.brand.health.path,
                "calls_field": site.brand.health.calls_field,
                "id_field": site.brand.health.id_field,
            },
            "canary": {
                "path": site.calls.canary.path,
                "bot": site.calls.canary.bot,
                "frames": site.calls.canary.frames,
                "echo": site.calls.canary.echo,
                "interval_seconds": 0.02,
                "timeout_seconds": 10,
                "busy_value": site.calls.canary.busy,
            },
            "limits": {
                "start_seconds": 60,
                "max_call_seconds": site.calls.max_seconds,
                # A quarter of the slots at once, so that three quarters serve.
                "max_out": max(1, host.workers // 4),
            },
        },
    )


def proxy_configuration(context: Context, tls: tuple[File, ...]) -> tuple[bytes, str]:
    """The host proxy's configuration and the hash that the running proxy reports once it runs it.

    The hash covers the certificates too: a new one is picked up by a reload.
    """
    site, host = context.site, context.host
    values: dict[str, Any] = {
        "host": host.name,
        "slots": list(range(1, host.workers + 1)),
        "prefix": site.brand.socket_prefix,
        "public_port": host.ports.fleet,
        "mtls_port": host.ports.mtls,
        "metrics_port": host.ports.fleet_metrics,
        # Where the host has a front as well, that one has the port.
        "http_port": None if host.ports.front else host.ports.http,
        "challenge_name": site.challenge_name,
        "mutual_tls": bool(site.ingress_hosts),
        "largest_body": site.calls.largest_body_bytes,
        "bufsize": site.calls.largest_body_bytes + 16384,
        # A former process may finish its calls: no call is longer.
        "stop_seconds": site.calls.max_seconds + 300,
        "tunnel_seconds": site.calls.silence_seconds,
        "retries": 2 * host.workers,
        "refusal_codes": list(site.calls.refusal_codes),
        "health_path": site.brand.health.path,
        "calls_field": site.brand.health.calls_field,
    }
    plain = render("fleet/haproxy.cfg.j2", config_hash="", **values)
    digest = config_hash(plain.decode(), [context.fingerprint(f.content) for f in tls])
    return render("fleet/haproxy.cfg.j2", config_hash=digest, **values), digest


def _proxy_check(context: Context, folder: str) -> str:
    """The image that will run the configuration reads it first: one that crashed would start with what lies there."""
    image = context.site.image(context.site.defaults.common_images.proxy)
    return (
        f"docker run --rm --network none --user 0:0 -v {folder}/haproxy:/usr/local/etc/haproxy:ro "
        f"-v {folder}/tls:/etc/callfleet/tls:ro --entrypoint haproxy {image} "
        '-c -dW -f "/usr/local/etc/haproxy/$(basename {path})"'
    )


def _tls(context: Context, folder: str) -> tuple[File, ...]:
    site, host = context.site, context.host
    assert host.public_name is not None  # noqa: S101 - a fleet host has one by construction
    public = context.credential(site.certificate_for(host.public_name))
    found = [File(f"{folder}/tls/public.pem", public, mode="0600", secret=True, check=CERTIFICATE_CHECK)]
    if site.ingress_hosts:
        internal = site.tls.internal
        assert internal is not None  # noqa: S101 - checked with the site file
        found += [
            File(
                f"{folder}/tls/internal.pem",
                context.credential(internal.hosts[host.name]),
                mode="0600",
                secret=True,
                check=CERTIFICATE_CHECK,
            ),
            File(f"{folder}/tls/internal-ca.pem", context.credential(internal.ca), mode="0644"),
        ]
    return tuple(found)


def _proxy_spec(context: Context, folder: str, run: str) -> dict[str, Any]:
    return {
        "image": context.site.image(context.site.defaults.common_images.proxy),
        # Named here, so that any image with haproxy on its path will do.
        "entrypoint": [
            "haproxy",
            "-W",
            # No line for each worker that turns busy or idle: while dockerd is down nobody reads them, and once the
            # pipe is full the one thread that carries every call would wait. Its file is checked aloud beforehand.
            "-q",
            "-S",
            "/run/haproxy/master.sock,mode,600",
            "-f",
            "/usr/local/etc/haproxy/haproxy.cfg",
        ],
        "user": "0:0",
        "network_mode": "host",
        "restart": "always",
        # SIGUSR1 closes the listeners and waits for calls; SIGTERM would cut them.
        "stop_signal": "SIGUSR1",
        "stop_grace_period": f"{context.site.calls.max_seconds + 300}s",
        "volumes": [
            f"{folder}/haproxy:/usr/local/etc/haproxy:ro",
            f"{folder}/tls:/etc/callfleet/tls:ro",
            f"{run}/published:/run/published",
            f"{run}/proxy:/run/haproxy",
        ],
    }


def _worker(context: Context, n: int, run: str, state: str) -> Service:
    site, brand = context.site, context.site.brand
    environment = {
        "MAX_CONCURRENT_CALLS": "1",
        f"{brand.worker_env_prefix}_WORKERS": str(context.host.workers),
        "BRAND_ENV_PREFIX": brand.worker_env_prefix,
        "SOCKET": f"/tmp/{brand.socket_prefix}_{n}.sock",  # noqa: S108 - the application's fixed path
        "CONFIG_URL": site.config_url,
        "RESULT_URL": site.result_url,
        "SECRET_HEADER": brand.secret_header,
        "MONGODB_DB": site.mongodb_db or "",
        "OUTBOX_DIR": f"/var/lib/{brand.socket_prefix}/outbox",
        "RECORDINGS_DIR": f"/var/lib/{brand.socket_prefix}/recordings",
        **{key: str(value) for key, value in site.core.environment.items()},
    }
    volumes = [
        f"{run}/slots/{n}:/tmp",
        f"{state}/outbox:/var/lib/{brand.socket_prefix}/outbox",
        f"{state}/recordings:/var/lib/{brand.socket_prefix}/recordings",
    ]
    made_from: tuple[bytes, ...] = ()
    if site.tls.ca_bundle:
        made_from = (context.credential(site.tls.ca_bundle),)
        environment["SSL_CERT_FILE"] = "/etc/callfleet-ca/ca.pem"
        volumes.append("/etc/callfleet/ca:/etc/callfleet-ca:ro")
    secrets = {"CORE_SECRET": context.secret("core_secret")}
    secrets |= {key: context.secret(name) for key, name in site.core.secret_environment.items()}
    spec: dict[str, Any] = {
        "image": site.image(brand.images.core_worker),
        "command": ["core-worker"],
        "user": f"{site.defaults.worker_uid}:{site.defaults.worker_uid}",
        "environment": environment,
        "volumes": volumes,
        "restart": "unless-stopped",
        # Ignored by the worker on purpose: SIGTERM cuts a live call at once, so only the slot program sends it, after
        # the worker has said 0 calls.
        "stop_signal": "SIGURG",
        "stop_grace_period": f"{site.calls.max_seconds + 300}s",
        "mem_limit": f"{max(site.core.worker_memory_mb * 2, 256)}m",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    # Without the other fleet hosts: a worker does not call them, and must not be recreated because one comes or goes.
    others = {one.public_name for one in site.fleet_hosts if one.name != context.host.name}
    if names := {name: address for name, address in site.names.items() if name not in others}:
        spec["extra_hosts"] = [f"{name}:{address}" for name, address in sorted(names.items())]
    return Service("slot", spec, secrets=secrets, made_from=made_from)
