"""Our mark on a host: which site it belongs to, which release it was brought to, and who is registered through it.

The app host's mark holds the registered URLs too: what the API lists of a host that is no longer declared is then known
as ours, and taken out.
"""

from __future__ import annotations

import json

from callfleet import __version__
from callfleet.actual import Actual, Unknown
from callfleet.desired.context import Context
from callfleet.expected import Concern, File

SITE = "/etc/callfleet/site.json"


def concern(context: Context, actual: Actual | None) -> Concern:
    """Written last: a host that carries the mark was converged to the end."""
    mark: dict[str, object] = {
        "schema": 1,
        "site": context.site.name,
        "host": context.host.name,
        "release": context.site.release.release,
        "callfleet": __version__,
    }
    if context.host.roles & {"ingress", "app"}:
        mark["registered"] = [host.name for host in context.registered_hosts]
    if "app" in context.host.roles:
        mark["urls"] = [host.url for host in context.registered_hosts]
    return Concern("mark", (File(SITE, (json.dumps(mark, indent=1, sort_keys=True) + "\n").encode()),))


def registered_urls(actual: Actual | None) -> frozenset[str]:
    """The URLs that a host's mark says were registered by us; none where it does not say."""
    mark = None if actual is None or isinstance(actual.site, Unknown) else actual.site
    urls = (mark or {}).get("urls", ())
    return frozenset(url for url in urls if isinstance(url, str)) if isinstance(urls, list | tuple) else frozenset()
