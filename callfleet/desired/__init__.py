"""Turns a site into the expected state of each of its hosts. Pure: data in, data out."""

from __future__ import annotations

from callfleet.actual import Actual
from callfleet.desired import app, baseline, docker, firewall, fleet, ingress, logs, mark, program, registration
from callfleet.desired.context import Context
from callfleet.expected import ExpectedHost

__all__ = ["Context", "expected_host"]

# One line a noun, in the order in which a converge carries them out. deploy.py says the same to pyinfra.
CONCERNS = (
    baseline.concern,
    docker.concern,
    program.concern,
    firewall.concern,
    logs.concern,
    app.concern,
    ingress.front,
    fleet.concern,
    ingress.ingress,
    registration.outbound_api,
    registration.outbound_dialler,
    mark.concern,
)


def expected_host(context: Context, actual: Actual | None = None) -> ExpectedHost:
    """Everything that must hold on `context.host`.

    `actual` is read only where what is there must be kept: the operator's own keys in daemon.json, foreign URLs in the
    API's fleet list. Without it the same items come out, made from nothing found.
    """
    found = (build(context, actual) for build in CONCERNS)
    return ExpectedHost(context.host.name, tuple(concern for concern in found if concern is not None))
