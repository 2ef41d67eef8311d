"""The app host: API, Console and their stores, and the one Dialler, which is a project of its own.

All of them use the host's network and listen on 127.0.0.1: nothing is published past the firewall, and the front proxy
reaches them without a second hop.
"""

from __future__ import annotations

from typing import Any

from callfleet.actual import Actual
from callfleet.desired.context import Context
from callfleet.desired.stack import Service, project
from callfleet.expected import Concern, Directory, File

LOOPBACK = "127.0.0.1"


def concern(context: Context, actual: Actual | None) -> Concern | None:
    """Hosts with the role app: everything but the Dialler, which waits until the fleet takes calls."""
    if "app" not in context.host.roles:
        return None
    site, brand = context.site, context.site.brand
    name, uid = brand.app_stack, str(site.defaults.worker_uid)
    folder, state = f"/opt/stacks/{name}", f"/var/lib/{name}"
    token = context.secret("api_admin_token")
    services = {brand.services.api: _api(context, folder, state, token)}
    services[brand.services.console] = _service(
        context,
        "console",
        {"HOST": LOOPBACK, "PORT": str(site.ports.console), "VITE_API_URL": site.vite_api_url},
    )
    if "redis" in site.app.stores:
        services["redis"] = _store(
            context,
            "redis",
            state,
            ["--bind", LOOPBACK, "--port", str(site.ports.redis), "--appendonly", "yes", "--dir", "/data"],
        )
    if "mongo" in site.app.stores:
        services["mongo"] = _store(context, "mongo", state, ["mongo"])
    if "minio" in site.app.stores:
        services["minio"] = _store(context, "minio", state, ["minio"])
    return project(
        context,
        "app",
        name,
        services,
        directories=(
            Directory(f"{folder}/secrets/api", mode="0700", owner=uid, group=uid),
            Directory(state),
            *(
                Directory(f"{state}/{store}", mode="0700", owner=uid, group=uid)
                for store in ("api", *sorted(site.app.stores))
            ),
        ),
        files=(
            File(f"{folder}/secrets/api/admin_token", token.encode(), mode="0400", owner=uid, group=uid, secret=True),
            # For the probe and the registration: the token is never on a command line.
            File(
                f"{folder}/secrets/api-curl.conf",
                f'header = "Authorization: Bearer {token}"\n'.encode(),
                mode="0600",
                secret=True,
            ),
        ),
    )


def dialler(context: Context) -> Concern:
    """The Dialler's project: its fleet list holds only hosts whose canary call succeeded."""
    site, brand = context.site, context.site.brand
    service = brand.services.dialler
    spec = _service(
        context,
        "dialler",
        {
            "FLEET_URLS": ",".join(str(host.url) for host in context.registered_hosts),
            "API_URL": site.api_url,
            "HEALTH_HOST": LOOPBACK,
            "HEALTH_PORT": str(site.ports.dialler_health),
        },
    )
    quiet = {
        "url": f"http://{LOOPBACK}:{site.ports.dialler_health}{brand.dialler_quiet.path}",
        "field": brand.dialler_quiet.field,
        "equals": brand.dialler_quiet.equals,
    }
    guarded = Service("guarded", spec.spec, secrets=spec.secrets, made_from=spec.made_from, quiet=quiet)
    return project(context, "dialler", service, {service: guarded})


def _api(context: Context, folder: str, state: str, token: str) -> Service:
    site, brand = context.site, context.site.brand
    environment = {
        "HOST": LOOPBACK,
        "PORT": str(site.ports.api),
        "SECRET_HEADER": brand.secret_header,
        "MONGODB_DB": site.mongodb_db or "",
        "ADMIN_TOKEN_FILE": "/run/secrets/admin_token",
        "STATE_DIR": "/data",
    }
    if "redis" in site.app.stores:
        environment["REDIS_URL"] = f"redis://{LOOPBACK}:{site.ports.redis}/0"
    volumes = [f"{folder}/secrets/api:/run/secrets:ro", f"{state}/api:/data"]
    return _service(
        context,
        "api",
        environment,
        volumes=volumes,
        secrets={"CORE_SECRET": context.secret("core_secret")},
        made_from=(token.encode(),),
    )


def _service(
    context: Context,
    role: str,
    environment: dict[str, str],
    *,
    volumes: list[str] | None = None,
    secrets: dict[str, str] | None = None,
    made_from: tuple[bytes, ...] = (),
) -> Service:
    """One of the application's own services: the image's command is its role."""
    site = context.site
    extra = getattr(site.app, role)
    environment = environment | {key: str(value) for key, value in extra.environment.items()}
    secrets = dict(secrets or {}) | {key: context.secret(name) for key, name in extra.secret_environment.items()}
    volumes = list(volumes or [])
    if site.tls.ca_bundle:
        made_from = (*made_from, context.credential(site.tls.ca_bundle))
        environment["SSL_CERT_FILE"] = "/etc/callfleet-ca/ca.pem"
        volumes.append("/etc/callfleet/ca:/etc/callfleet-ca:ro")
    spec: dict[str, Any] = {
        "image": site.image(getattr(site.brand.images, role)),
        "command": [role],
        "user": f"{site.defaults.worker_uid}:{site.defaults.worker_uid}",
        "network_mode": "host",
        "environment": environment,
        "volumes": volumes,
        "restart": "unless-stopped",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    return Service("plain", spec, secrets=secrets, made_from=made_from)


def _store(context: Context, name: str, state: str, command: list[str]) -> Service:
    site = context.site
    return Service(
        "plain",
        {
            "image": site.image(getattr(site.defaults.common_images, name)),
            "command": command,
            "user": f"{site.defaults.worker_uid}:{site.defaults.worker_uid}",
            "network_mode": "host",
            "environment": {"HOST": LOOPBACK, "STATE_DIR": "/data"},
            "volumes": [f"{state}/{name}:/data"],
            "restart": "unless-stopped",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
        },
    )
