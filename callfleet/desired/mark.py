"""Our mark on a host: which site it belongs to, which release it was brought to, and who is registered through it."""

from __future__ import annotations

import json

from callfleet import __version__
from callfleet.actual import Actual
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
    return Concern("mark", (File(SITE, (json.dumps(mark, indent=1, sort_keys=True) + "\n").encode()),))
