"""What a real site's files disagree about, each to be had by name: what an import must notice.

Those about one fleet host are about the last one; two are about the first, so that no host is missing in every list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from lab.errors import LabError
from lab.legacy.site import WORKERS, LegacySite

FIRST, LAST = 0, -1
WRONG_SECRET = "of-another-day"  # noqa: S105 - it opens nothing
HIDDEN_BY = {"fleet-urls": "inbound-only", "retry-tries": "no-retry"}


@dataclass(frozen=True)
class Contradiction:
    """One of them: what is wrong in a sentence, the change that makes it so, and the hosts that it takes at least.

    Two are a hub with the ingress and a fleet host, three are the hub and two fleet hosts.
    """

    says: str
    seed: Callable[[LegacySite], LegacySite]
    hosts: int = 1


def check_contradictions(names: Collection[str], hosts: int) -> None:
    """Raises LabError for a name that there is not, or one that a lab of so many hosts cannot have."""
    for name in names:
        if name not in CONTRADICTIONS:
            raise LabError(f"no contradiction is named {name!r}; there are {', '.join(CONTRADICTIONS)}")
        if hosts < CONTRADICTIONS[name].hosts:
            why = f"{name}: {CONTRADICTIONS[name].says}"
            raise LabError(f"{why}; that takes a lab of {CONTRADICTIONS[name].hosts} hosts", "--hosts 3")
    for name, other in HIDDEN_BY.items():
        if {name, other} <= set(names):
            raise LabError(f"{name} would not be seen beside {other}", "ask for one of them")


def seeded(site: LegacySite, names: Collection[str]) -> LegacySite:
    """The site with these contradictions, whatever their order."""
    for name in CONTRADICTIONS:
        if name in names:
            site = CONTRADICTIONS[name].seed(site)
    return site


def _host(which: int, **changes: Any) -> Callable[[LegacySite], LegacySite]:
    """Changes of one fleet host's own files."""

    def seed(site: LegacySite) -> LegacySite:
        fleet = list(site.fleet)
        fleet[which] = replace(fleet[which], **changes)
        return replace(site, fleet=tuple(fleet))

    return seed


def _unlisted(which: int, *lists: str) -> Callable[[LegacySite], LegacySite]:
    """A fleet host that is missing in `core_fleet`, `fleet_urls` or both."""

    def seed(site: LegacySite) -> LegacySite:
        url = site.fleet[which].url
        changes: dict[str, Any] = {name: tuple(one for one in getattr(site, name) if one != url) for name in lists}
        return replace(site, **changes)

    return seed


def _outbound_only(site: LegacySite) -> LegacySite:
    return replace(site, servers=tuple(one for one in site.servers or () if one.name != site.fleet[FIRST].name))


def _maxconn(site: LegacySite) -> LegacySite:
    servers = site.servers or ()
    return replace(site, servers=(*servers[:-1], *(replace(one, maxconn=16) for one in servers[-1:])))


CONTRADICTIONS: dict[str, Contradiction] = {
    "units": Contradiction("one worker unit fewer runs than the host declares", _host(LAST, units=WORKERS - 1)),
    "declared-workers": Contradiction(
        "<BRAND>_WORKERS says 16, so health tells of capacity that is not there", _host(LAST, declared_workers=16)
    ),
    "upstream": Contradiction(
        "nginx's upstream lacks the last worker's socket", _host(LAST, upstream_servers=WORKERS - 1)
    ),
    "maxconn": Contradiction("the ingress allows 16 calls to a host of 4 workers", _maxconn, hosts=2),
    "inbound-only": Contradiction(
        "a host is at the ingress, but neither in core_fleet nor in FLEET_URLS",
        _unlisted(LAST, "core_fleet", "fleet_urls"),
        hosts=2,
    ),
    "outbound-only": Contradiction(
        "a host is in core_fleet and FLEET_URLS, but not at the ingress",
        _outbound_only,
        hosts=3,
    ),
    "core-fleet": Contradiction(
        "a host is in FLEET_URLS, but not in core_fleet", _unlisted(FIRST, "core_fleet"), hosts=3
    ),
    "fleet-urls": Contradiction(
        "a host is in core_fleet, but not in FLEET_URLS", _unlisted(LAST, "fleet_urls"), hosts=3
    ),
    "core-secret": Contradiction("a host's core secret is not the API's", _host(LAST, core_secret=WRONG_SECRET)),
    "config-url": Contradiction(
        "a host fetches bot configurations from another URL",
        _host(LAST, config_url="https://old-api.example.com/api/v1/config"),
        hosts=3,
    ),
    "mongodb-db": Contradiction("a host's MONGODB_DB is not the API's", _host(LAST, mongodb_db="staging")),
    "calls-per-worker": Contradiction("MAX_CONCURRENT_CALLS is 2", _host(LAST, calls_per_worker=2)),
    "no-retry": Contradiction("the retry block is missing: 429 although workers are free", _host(LAST, retry_tries=0)),
    "retry-tries": Contradiction("fewer tries than workers", _host(LAST, retry_tries=2)),
    "retry-dispatch": Contradiction(
        "/livekit/dispatch has the retry block: a caller's leg is hung up, then sent on",
        _host(LAST, retry_dispatch=True),
    ),
    "keepalive": Contradiction(
        "nginx keeps idle connections to workers: they reach a slot that is withdrawn", _host(LAST, keepalive=8)
    ),
    "no-zone": Contradiction(
        "max_conns counts per nginx process: calls reach busy workers beside free ones", _host(LAST, zone=False)
    ),
    "connection-header": Contradiction(
        'Connection is "upgrade" for every request, which breaks the POST routes', _host(LAST, connection='"upgrade"')
    ),
    "check-cap": Contradiction(
        "the ingress' check ends below the worker count: an idle host is down",
        lambda site: replace(site, check="[1-3]"),
        hosts=2,
    ),
}
