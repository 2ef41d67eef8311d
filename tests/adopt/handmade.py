"""A platform built by hand, as its hosts would tell it: two fleet hosts, and one with ingress, API and Dialler.

`platform()` agrees with itself in everything; tests change one text or one fact at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from callfleet.actual import Listener, Memory, Unknown
from callfleet.adopt import fleet, haproxy, ingress
from callfleet.adopt.contradictions import Finding, find
from callfleet.adopt.fleet import Names
from callfleet.adopt.found import EnvironmentFile, Files, Found, Unit, Value
from callfleet.adopt.platform import Platform, assemble

NOW = datetime.now(UTC)
DOMAIN = "acme.test"
ADDRESSES = {"eu1-a": "10.1.0.11", "eu1-b": "10.1.0.12", "hub": "10.1.0.2"}
KNOWN = {
    **{f"{name}.{DOMAIN}": [address] for name, address in ADDRESSES.items()},
    **{f"{name}.{DOMAIN}": [ADDRESSES["hub"]] for name in ("calls", "api", "console")},
}
NAMES = Names(frozenset({"cxb-api"}), frozenset({"cxb-dialler"}), frozenset({"cxbcore"}))

NGINX_MAIN = """
user www-data;
worker_processes auto;
events { worker_connections 768; }
http {
    sendfile on;
    include /etc/nginx/mime.types;
    include /etc/nginx/conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
}
"""

NGINX_FLEET = """
map $http_upgrade $connection_upgrade { default upgrade; '' close; }

upstream cxbcore {
    zone cxbcore 64k;
    least_conn;
    server unix:/tmp/cxbcore_1.sock max_conns=1 fail_timeout=10;
    server unix:/tmp/cxbcore_2.sock max_conns=1 fail_timeout=10;
    server unix:/tmp/cxbcore_3.sock max_conns=1 fail_timeout=10;
    server unix:/tmp/cxbcore_4.sock max_conns=1 fail_timeout=10;
}

server {
    listen 80;
    return 301 https://$host$request_uri;
}

server {
    listen 443 ssl;
    server_name NAME;
    ssl_certificate /etc/letsencrypt/live/NAME/fullchain.pem;
    ssl_certificate_key /etc/letsencrypt/live/NAME/privkey.pem;
    client_max_body_size 64k;
    proxy_read_timeout 3600s;
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;

    location ~ ^/(ws|exotel)/ { proxy_pass http://cxbcore; }
    location = /attach {
        proxy_pass http://cxbcore;
        proxy_next_upstream error timeout http_429 non_idempotent;
        proxy_next_upstream_tries 4;
    }
    location = /livekit/dialout {
        proxy_pass http://cxbcore;
        proxy_next_upstream error timeout http_429 non_idempotent;
        proxy_next_upstream_tries 4;
    }
    location = /livekit/widget {
        proxy_pass http://cxbcore;
        proxy_next_upstream error timeout http_429 non_idempotent;
        proxy_next_upstream_tries 4;
    }
    location = /livekit/dispatch { proxy_pass http://cxbcore; }
    location /health { proxy_pass http://cxbcore; }
}
"""

NGINX_WEB = """
server {
    listen 127.0.0.1:8081;
    server_name api.acme.test;
    location / { proxy_pass http://127.0.0.1:8080; }
}
server {
    listen 127.0.0.1:8081;
    server_name console.acme.test;
    root /opt/cxb-console/dist;
    location / { try_files $uri /index.html; }
}
"""

HAPROXY = r"""
global
    maxconn 4000
    user haproxy

defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
    timeout check 10s

frontend public
    bind *:443 ssl crt /etc/haproxy/certs/
    acl is_call path_beg /ws/ /exotel/
    acl is_web hdr(host) -i api.acme.test console.acme.test
    acl is_carrier hdr(host) -i calls.acme.test
    http-request deny deny_status 404 unless is_call or is_web
    use_backend web if is_web
    use_backend eu1 if is_call is_carrier

backend eu1
    balance roundrobin
    option httpchk GET /health/fleet
    http-check expect rstring "\"fleet_available\": ?[1-9]"
    server eu1-a 10.1.0.11:443 ssl verify none check inter 5s fall 2 rise 2 maxconn 4
    server eu1-b 10.1.0.12:443 ssl verify none check inter 5s fall 2 rise 2 maxconn 4

backend web
    server nginx 127.0.0.1:8081
"""

WORKER = {
    "CXBCORE_WORKERS": "4",
    "MAX_CONCURRENT_CALLS": "1",
    "CONFIG_URL": "https://api.acme.test/api/v1/config",
    "CORE_SECRET": "*the-core-secret",
    "MONGODB_DB": "acme",
    "OUTBOX_DIR": "/var/lib/cxbcore/outbox",
    "LOG_LEVEL": "info",
    "STT_API_KEY": "*the-stt-key",
}
API = {
    "MONGODB_URL": "mongodb://127.0.0.1:27017",
    "MONGODB_DB": "acme",
    "CORE_SECRET": "*the-core-secret",
    "ADMIN_TOKEN_FILE": "/opt/cxb-api/admin_token",
}
DIALLER = {
    "FLEET_URLS": "https://eu1-a.acme.test,https://eu1-b.acme.test",
    "CORE_SECRET": "*the-core-secret",
    "HEALTH_PORT": "8090",
}


@dataclass
class Handmade:
    """What may be changed before the platform is looked at. `*text` in an environment is a secret."""

    running: dict[str, set[int]] = field(default_factory=lambda: {"eu1-a": {1, 2, 3, 4}, "eu1-b": {1, 2, 3, 4}})
    listening: dict[str, set[int]] = field(default_factory=dict)
    nginx: dict[str, str] = field(
        default_factory=lambda: {name: NGINX_FLEET.replace("NAME", f"{name}.{DOMAIN}") for name in ("eu1-a", "eu1-b")}
    )
    web: str = NGINX_WEB
    haproxy: str = HAPROXY
    worker: dict[str, dict[str, str]] = field(default_factory=lambda: {"eu1-a": dict(WORKER), "eu1-b": dict(WORKER)})
    api: dict[str, str] = field(default_factory=lambda: dict(API))
    dialler: dict[str, str] = field(default_factory=lambda: dict(DIALLER))
    core_fleet: tuple[str, ...] | Unknown | None = ("https://eu1-a.acme.test", "https://eu1-b.acme.test")
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    unit: dict[str, str] = field(default_factory=dict)
    changes: dict[str, dict[str, object]] = field(default_factory=dict)

    def found(self) -> list[Found]:
        """The hosts' answers."""
        hosts = [self._fleet(name) for name in ("eu1-a", "eu1-b")]
        hosts.append(self._hub())
        return [replace(each, **self.changes.get(each.name, {})) for each in hosts]  # type: ignore[arg-type]

    def platform(self) -> Platform:
        """All of it, understood."""
        machines = [fleet.understand(each, NAMES) for each in self.found()]
        ingresses = []
        for machine in machines:
            held = machine.found.haproxy
            if isinstance(held, Files):
                config = haproxy.parse([(path, held.texts[path]) for path in held.main])
                ingresses.append(ingress.understand(machine.name, config, held.texts))
        return assemble(machines, ingresses, KNOWN, "main")

    def findings(self) -> list[Finding]:
        """What contradicts."""
        return find(self.platform(), longest_call=600, now=NOW)

    def _fleet(self, name: str) -> Found:
        public = f"{name}.{DOMAIN}"
        running = self.running[name]
        listening = self.listening.get(name, running)
        sockets = frozenset(f"/tmp/cxbcore_{number}.sock" for number in listening)
        units = {unit.name: unit for unit in (worker_unit(number, **self.unit) for number in sorted(running))}
        return Found(
            name=name,
            address=ADDRESSES[name],
            hostname=name,
            memory=Memory(8 * 1024**3, 4 * 1024**3),
            cpus=4,
            addresses=frozenset({ADDRESSES[name]}),
            listeners=(Listener("0.0.0.0", 22, (("sshd", 1),)), Listener("0.0.0.0", 443, (("nginx", 2),))),
            datagrams=(),
            units=units,
            environments={"/opt/cxbcore/.env": environment("/opt/cxbcore/.env", self.worker[name])},
            sockets=sockets,
            listening=sockets,
            nginx=nginx_files({"/etc/nginx/sites-enabled/cxbcore": self.nginx[name]}),
            haproxy=None,
            certificates={
                f"/etc/letsencrypt/live/{public}/fullchain.pem": pem(
                    self.names.get(name, (public,)), self.days.get(name, 80)
                )
            },
            ours=False,
        )

    def _hub(self) -> Found:
        units = {
            "cxb-api.service": service("cxb-api", "/usr/bin/python3 -m uvicorn main:app --host 127.0.0.1 --port 8080"),
            "cxb-dialler.service": service("cxb-dialler", "/usr/bin/python3 -m dialler"),
            "backup.service": service("backup", "/usr/local/bin/backup"),
        }
        return Found(
            name="hub",
            address=ADDRESSES["hub"],
            hostname="hub",
            memory=Memory(8 * 1024**3, 4 * 1024**3),
            cpus=4,
            addresses=frozenset({ADDRESSES["hub"]}),
            listeners=(
                Listener("0.0.0.0", 443, (("haproxy", 5),)),
                Listener("0.0.0.0", 7880, (("livekit-server", 9),)),
            ),
            datagrams=(),
            units=units,
            environments={
                "/opt/cxb-api/.env": environment("/opt/cxb-api/.env", self.api),
                "/opt/cxb-dialler/.env": environment("/opt/cxb-dialler/.env", self.dialler),
            },
            sockets=frozenset(),
            listening=frozenset(),
            nginx=nginx_files({"/etc/nginx/sites-enabled/web": self.web}),
            haproxy=Files(("/etc/haproxy/haproxy.cfg",), {"/etc/haproxy/haproxy.cfg": self.haproxy}),
            certificates={
                f"/etc/haproxy/certs/{name}.pem": pem(
                    self.names.get(name, (f"{name}.{DOMAIN}",)), self.days.get(name, 80)
                )
                for name in ("calls", "api", "console")
            },
            ours=False,
            core_fleet=self.core_fleet,
        )


def nginx_files(sites: Mapping[str, str]) -> Files:
    """nginx as Debian lays it out."""
    return Files(
        ("/etc/nginx/nginx.conf",), {"/etc/nginx/nginx.conf": NGINX_MAIN, "/etc/nginx/mime.types": "", **sites}
    )


def worker_unit(number: int, **properties: str) -> Unit:
    """One running instance."""
    command = f"/opt/cxbcore/venv/bin/uvicorn main:app --uds /tmp/cxbcore_{number}.sock --workers 1"
    return Unit(
        f"cxbcore@{number}.service",
        {
            "Id": f"cxbcore@{number}.service", "ActiveState": "active", "UnitFileState": "enabled", "User": "cxbcore",
            "ExecStart": f"{{ path=/usr/bin/python3 ; argv[]={command} ; ignore_errors=no ; status=0/0 }}",
            "EnvironmentFiles": "/opt/cxbcore/.env (ignore_errors=no)", "LimitNOFILE": "65536",
        } | properties,
    )  # fmt: skip


def service(name: str, command: str) -> Unit:
    """A running service of one process."""
    return Unit(
        f"{name}.service",
        {
            "Id": f"{name}.service", "ActiveState": "active", "UnitFileState": "enabled",
            "ExecStart": f"{{ path={command.split()[0]} ; argv[]={command} ; ignore_errors=no }}",
            "EnvironmentFiles": f"/opt/{name}/.env (ignore_errors=no)",
        },
    )  # fmt: skip


def environment(path: str, values: Mapping[str, str]) -> EnvironmentFile:
    """An environment file; `*text` is a secret."""
    held = {}
    for name, text in values.items():
        if text.startswith("*"):
            held[name] = Value(name, None, hashlib.sha256(text.encode()).hexdigest(), f"{path}: {name}")
        else:
            held[name] = Value(name, text, text, f"{path}: {name}")
    return EnvironmentFile(path, held)


@cache
def pem(names: tuple[str, ...], days: int) -> bytes:
    """A certificate for these names that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "none")])
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(NOW - timedelta(days=100)).not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)
