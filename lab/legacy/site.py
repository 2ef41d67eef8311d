"""What the files of a legacy site say, host by host. Pure: contradictions change it before any file is made."""

from __future__ import annotations

from dataclasses import dataclass

from callfleet.site.defaults import Brand
from lab.brands import brand_of
from lab.model import Lab

WORKERS = 4
CHECK = r"([1-9]|1[0-6])"
"""How many free slots the ingress takes for a host with room: the pattern ends at 16."""
API_PORT = 8080
DIALLER_PORT = 8090
WEB_PORT = 8081


@dataclass(frozen=True)
class FleetHost:
    """One fleet host by its own files: units that run, CXBCORE_WORKERS, servers of nginx's upstream.

    `retry_tries` is 0 where the block for busy workers is missing, `keepalive` 0 where nginx keeps no connection.
    Without `zone` each process of nginx counts a worker's connections for itself.
    """

    name: str
    address: str
    public_name: str
    core_secret: str
    config_url: str
    mongodb_db: str
    units: int = WORKERS
    declared_workers: int = WORKERS
    upstream_servers: int = WORKERS
    calls_per_worker: int = 1
    retry_tries: int = WORKERS
    retry_dispatch: bool = False
    keepalive: int = 0
    connection: str = "$connection_upgrade"
    zone: bool = True

    @property
    def url(self) -> str:
        """What the API and the Dialler call it by."""
        return f"https://{self.public_name}"


@dataclass(frozen=True)
class Server:
    """One fleet host as the ingress knows it."""

    name: str
    address: str
    maxconn: int = WORKERS


@dataclass(frozen=True)
class LegacySite:
    """The whole site. `servers` is None where there is no ingress: everything is on one host then."""

    brand: Brand
    domain: str
    app_host: str
    core_secret: str
    admin_token: str
    mongodb_db: str
    fleet: tuple[FleetHost, ...]
    servers: tuple[Server, ...] | None
    core_fleet: tuple[str, ...]
    fleet_urls: tuple[str, ...]
    check: str = CHECK

    @property
    def api_url(self) -> str:
        """The API's base URL."""
        return f"https://api.{self.domain}"

    @property
    def result_url(self) -> str:
        """Where workers post call results."""
        return f"{self.api_url}/api/v1/call-results"


def site_of(lab: Lab) -> LegacySite:
    """The lab as a legacy site without a contradiction. Reads the lab's secrets."""
    secret = lab.secret("core_secret").read_text().strip()
    database = f"{lab.brand}_lab"
    fleet = tuple(
        FleetHost(
            host.name,
            host.address,
            f"{host.name}.{lab.domain}",
            secret,
            f"https://api.{lab.domain}/api/v1/config",
            database,
        )
        for host in lab.fleet_hosts
    )
    urls = tuple(host.url for host in fleet)
    return LegacySite(
        brand_of(lab.brand),
        lab.domain,
        lab.hub.name,
        secret,
        lab.secret("api_admin_token").read_text().strip(),
        database,
        fleet,
        None if lab.hub in lab.fleet_hosts else tuple(Server(host.name, host.address) for host in fleet),
        urls,
        urls,
    )
