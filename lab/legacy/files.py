"""A legacy site's files, users and units, host by host. Pure but for the templates and the stand-ins' code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lab.legacy.site import API_PORT, DIALLER_PORT, WEB_PORT, FleetHost, LegacySite

STANDIN = Path(__file__).resolve().parent.parent / "images" / "standin"
PACKAGES = ("nginx", "openssl", "python3-fastapi", "python3-httpx", "python3-uvicorn", "python3-websockets")
APP_PACKAGES = ("python3-redis", "redis-server")
INGRESS_PACKAGES = ("haproxy",)
STORES = {"mongod": "mongo", "minio": "minio"}
"""Units of the stores that the lab has no package of, and the stand-in each of them is."""
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - configuration files, not HTML
)
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)
Pem = Callable[[str], str]
"""Certificate and key of a public name, as one PEM."""


@dataclass(frozen=True)
class File:
    """One file. `owner` is user and group; its directory is made too."""

    path: str
    content: str
    mode: int = 0o644
    owner: str = "root:root"


@dataclass(frozen=True)
class HostFiles:
    """Everything that makes one host a legacy one; `onhost` carries it out.

    units     to enable and start, in this order; of `instances_of` no other instance stays enabled
    checks    commands that must succeed before `reloads` are reloaded
    ready     Unix sockets and URLs that answer once the host serves
    core_fleet  what the API is told through `api_port` with the token; None where there is no API
    """

    users: tuple[str, ...] = ()
    directories: tuple[tuple[str, str], ...] = ()
    files: tuple[File, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    absent: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    instances_of: str = ""
    checks: tuple[tuple[str, ...], ...] = ()
    reloads: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    core_fleet: tuple[str, ...] | None = None
    admin_token: str = ""
    api_port: int = API_PORT

    @property
    def digest(self) -> str:
        """Hash of all of it: a host that has this one already is left as it is."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def packages(site_has_ingress: bool, *, app: bool) -> tuple[str, ...]:
    """Debian packages of a host with or without the application's control plane."""
    if not app:
        return PACKAGES
    return (*PACKAGES, *APP_PACKAGES, *(INGRESS_PACKAGES if site_has_ingress else ()))


def files_of(site: LegacySite, name: str, pem: Pem, ca: str) -> HostFiles:
    """What one host of the site is made of; `ca` is the authority that every host trusts."""
    parts = [common(ca)]
    parts += [fleet_host(site, host, pem) for host in site.fleet if host.name == name]
    if name == site.app_host:
        parts.append(app_host(site, pem))
        if site.servers is not None:
            parts.append(ingress(site, pem))
    return merged(parts)


def common(ca: str) -> HostFiles:
    """Trust, and nginx without the page that it comes with."""
    return HostFiles(
        files=(File("/usr/local/share/ca-certificates/lab.crt", ca),),
        absent=("/etc/nginx/sites-enabled/default",),
        checks=(("nginx", "-t"),),
        reloads=("nginx",),
    )


def fleet_host(site: LegacySite, host: FleetHost, pem: Pem) -> HostFiles:
    """nginx before N worker units that share one environment file, sockets in /tmp, the outbox on disk."""
    brand, prefix = site.brand, site.brand.socket_prefix
    state = f"/var/lib/{prefix}"
    environment = {
        f"{brand.worker_env_prefix}_WORKERS": host.declared_workers,
        "MAX_CONCURRENT_CALLS": host.calls_per_worker,
        "CONFIG_URL": host.config_url,
        "RESULT_URL": site.result_url,
        "CORE_SECRET": host.core_secret,
        "MONGODB_DB": host.mongodb_db,
        "OUTBOX_DIR": f"{state}/outbox",
        "RECORDINGS_DIR": f"{state}/recordings",
        # What the stand-in must be told of its brand, and where it writes down what happened.
        "BRAND_ENV_PREFIX": brand.worker_env_prefix,
        "SECRET_HEADER": brand.secret_header,
        "STANDIN_EVENT_LOG": f"{state}/outbox/events.jsonl",
    }
    sockets = [f"/tmp/{prefix}_{n}.sock" for n in range(1, host.units + 1)]  # noqa: S108 - the application's path
    return HostFiles(
        users=(prefix,),
        directories=tuple((path, prefix) for path in (state, f"{state}/outbox", f"{state}/recordings")),
        files=(
            *_service_folder(prefix, environment, _text("core.py")),
            File(f"/etc/systemd/system/{prefix}@.service", _text("worker.service", brand=brand, prefix=prefix)),
            File(
                f"/etc/nginx/sites-available/{prefix}", _text("nginx-fleet.conf", brand=brand, prefix=prefix, host=host)
            ),
            *_letsencrypt(host.public_name, pem),
        ),
        links=((f"/etc/nginx/sites-enabled/{prefix}", f"/etc/nginx/sites-available/{prefix}"),),
        units=tuple(f"{prefix}@{n}.service" for n in range(1, host.units + 1)),
        instances_of=prefix,
        ready=(*sockets, "https://127.0.0.1/health"),
    )


def app_host(site: LegacySite, pem: Pem) -> HostFiles:
    """API, Dialler and stores as units, the Console as files; nginx serves both by name."""
    services = site.brand.services
    names = {services.api: f"api.{site.domain}", services.console: f"console.{site.domain}"}
    tls = site.servers is None
    web = _text(
        "nginx-web.conf",
        brand=site.brand,
        services=services,
        names=names,
        tls=tls,
        web_port=WEB_PORT,
        api_port=API_PORT,
    )
    parts = [
        HostFiles(
            files=(
                File(f"/etc/nginx/sites-available/{site.brand.app_stack}", web),
                *_console(f"/opt/{services.console}/dist", site.api_url),
                *(_letsencrypt(names[services.api], pem) if tls else ()),
                *(_letsencrypt(names[services.console], pem) if tls else ()),
            ),
            links=(
                (
                    f"/etc/nginx/sites-enabled/{site.brand.app_stack}",
                    f"/etc/nginx/sites-available/{site.brand.app_stack}",
                ),
            ),
            core_fleet=site.core_fleet,
            admin_token=site.admin_token,
        ),
        *(_unit(unit, f"{role} stand-in", {}, f"/usr/bin/python3 -m standin {role}") for unit, role in STORES.items()),
        _api(site),
        _dialler(site),
    ]
    return merged(parts)


def ingress(site: LegacySite, pem: Pem) -> HostFiles:
    """HAProxy with a file written by hand: two fleets, or as many as there are."""
    names = [f"{name}.{site.domain}" for name in ("calls", "api", "console")]
    configuration = _text(
        "haproxy.cfg",
        domain=site.domain,
        prefix=site.brand.socket_prefix,
        check=site.check,
        servers=site.servers,
        web_port=WEB_PORT,
    )
    return HostFiles(
        files=(
            File("/etc/haproxy/haproxy.cfg", configuration),
            *(File(f"/etc/haproxy/certs/{name}.pem", pem(name), 0o600) for name in names),
        ),
        checks=(("haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"),),
        reloads=("haproxy",),
        ready=("https://127.0.0.1/haproxy-health",),
    )


def merged(parts: Iterable[HostFiles]) -> HostFiles:
    """Several parts as one; what belongs to one part alone comes from the one that has it."""
    values: dict[str, Any] = {}
    for part in parts:
        for key, value in vars(part).items():
            if isinstance(value, tuple) and key != "core_fleet":
                values[key] = values.get(key, ()) + value
            elif value:
                values[key] = value
    return HostFiles(**values)


def _api(site: LegacySite) -> HostFiles:
    name = site.brand.services.api
    environment = {
        "MONGODB_URL": "mongodb://127.0.0.1:27017",
        "MONGODB_DB": site.mongodb_db,
        "REDIS_URL": "redis://127.0.0.1:6379/0",
        "CORE_SECRET": site.core_secret,
        "SECRET_HEADER": site.brand.secret_header,
        "ADMIN_TOKEN_FILE": f"/opt/{name}/admin_token",
        "STATE_DIR": f"/var/lib/{name}",
    }
    command = f"/usr/bin/python3 -m uvicorn main:app --host 127.0.0.1 --port {API_PORT} --no-access-log"
    after = ("redis-server.service", *(f"{unit}.service" for unit in STORES))
    unit = _unit(name, f"{site.brand.name} API", environment, command, _text("api.py"), after)
    token = File(f"/opt/{name}/admin_token", f"{site.admin_token}\n", 0o640, f"root:{name}")
    return merged([unit, HostFiles(files=(token,), ready=(f"http://127.0.0.1:{API_PORT}/health",))])


def _dialler(site: LegacySite) -> HostFiles:
    name = site.brand.services.dialler
    environment = {
        "FLEET_URLS": ",".join(site.fleet_urls),
        "API_URL": site.api_url,
        "CORE_SECRET": site.core_secret,
        "SECRET_HEADER": site.brand.secret_header,
        "HEALTH_PORT": DIALLER_PORT,
    }
    after = (f"{site.brand.services.api}.service",)
    unit = _unit(name, f"{site.brand.name} Dialler", environment, "/usr/bin/python3 -m standin dialler", after=after)
    return merged([unit, HostFiles(ready=(f"http://127.0.0.1:{DIALLER_PORT}/health",))])


def _unit(
    name: str,
    description: str,
    environment: dict[str, Any],
    command: str,
    main: str = "",
    after: tuple[str, ...] = (),
) -> HostFiles:
    """A service of one process: its folder below /opt, its state, its unit."""
    settings = environment or {"DATA_DIR": f"/var/lib/{name}"}
    unit = _text("service.service", name=name, description=description, command=command, after=after)
    return HostFiles(
        users=(name,),
        directories=((f"/var/lib/{name}", name),),
        files=(*_service_folder(name, settings, main), File(f"/etc/systemd/system/{name}.service", unit)),
        units=(f"{name}.service",),
    )


def _service_folder(name: str, environment: dict[str, Any], main: str) -> tuple[File, ...]:
    """/opt/<name> as rsync and an editor left it: the code, and one .env that holds the secrets too."""
    lines = "".join(f"{key}={value}\n" for key, value in environment.items())
    code = [File(f"/opt/{name}/standin/{path.name}", path.read_text()) for path in sorted(STANDIN.glob("*.py"))]
    return (
        File(f"/opt/{name}/.env", lines, 0o640, f"root:{name}"),
        *code,
        *([File(f"/opt/{name}/main.py", main)] if main else []),
    )


def _console(folder: str, api_url: str) -> tuple[File, ...]:
    """The Console as its build left it, with the API's URL in it."""
    found = sorted((STANDIN / "static").iterdir())
    return tuple(File(f"{folder}/{path.name}", path.read_text().replace("__VITE_API_URL__", api_url)) for path in found)


def _letsencrypt(name: str, pem: Pem) -> tuple[File, ...]:
    """Certificate and key where certbot has them."""
    chain = "".join(CERTIFICATE.findall(pem(name)))
    key = CERTIFICATE.sub("", pem(name))
    folder = f"/etc/letsencrypt/live/{name}"
    return File(f"{folder}/fullchain.pem", chain), File(f"{folder}/privkey.pem", key, 0o600)


def _text(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(f"{template}.j2").render(**values)
