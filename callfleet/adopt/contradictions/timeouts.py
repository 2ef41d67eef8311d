"""How long a call may be silent. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from callfleet.adopt import ingress as ingresses
from callfleet.adopt.contradictions.finding import Finding, Side, contradiction, weakness
from callfleet.adopt.contradictions.front import idle_timeout, routes
from callfleet.adopt.contradictions.ingress import call_backends
from callfleet.adopt.fleet import CALL_ROUTES
from callfleet.adopt.platform import Platform


def timeouts(platform: Platform, longest: int) -> Iterator[Finding]:
    """A call may be as long as it may be, also where one side is silent."""
    said: list[tuple[str, Side, bool]] = []
    for one, _, path, route in routes(platform, *CALL_ROUTES):
        value, place, stated = idle_timeout(route)
        if value < longest:
            text = f"proxy_read_timeout {value:g} s" if stated else f"{value:g} s, nginx's default"
            said.append((one.name, Side(f"{one.name}: {place}: {path.rpartition('/')[0]}", text), stated))
    for ingress, backend in call_backends(platform):
        timeout = ingresses.timeout(backend.section, "tunnel")
        if timeout is None:
            found = [ingresses.timeout(backend.section, "server")]
            found += [ingresses.timeout(front, "client") for front in ingresses.frontends_of(ingress, backend)]
            timeout = min((each for each in found if each), key=lambda each: each[0], default=None)
        if timeout and timeout[0] < longest:
            value, line = timeout
            said.append((backend.name, Side(f"{ingress.place(line)}", line.text), True))
    stated_sides = [side for _, side, stated in said if stated]
    default_sides = [side for _, side, stated in said if not stated]
    what = f"a call that is silent is cut before the longest call ({longest} s) ends"
    todo = "above the longest call, if calls may be silent; the inventory keeps it (calls.tunnel_timeout_seconds)"
    if stated_sides:
        yield contradiction("timeout-short", "", what, stated_sides, todo)
    if default_sides:
        yield weakness("timeout-default", "", what, default_sides, todo)
