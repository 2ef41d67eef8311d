"""What does not agree with what, on a platform that was built by hand; each by name, with its places. Pure.

A *contradiction* loses calls, capacity or results today, or cannot be written into one site file. A *weakness* works,
and callfleet does otherwise: it is told, and stands in nobody's way.
"""

from __future__ import annotations

from datetime import datetime

from callfleet.adopt.contradictions import certificates, front, ingress, registration, timeouts, values, workers
from callfleet.adopt.contradictions.finding import Finding, Side, Weight, numbers
from callfleet.adopt.platform import Platform

__all__ = ["Finding", "Side", "Weight", "find", "numbers"]


def find(platform: Platform, *, longest_call: int, now: datetime) -> list[Finding]:
    """All of them, in the order of what they are about. `longest_call` in seconds."""
    kinds = (
        workers.worker_counts, workers.gaps, workers.calls_per_worker, workers.maxconns, workers.private_directories,
        registration.registrations, registration.lists, registration.strangers, values.shared, values.environments,
        values.diallers, front.retries, front.dispatch, front.upstreams, front.connection, front.bodies, ingress.checks,
    )  # fmt: skip
    found = [finding for kind in kinds for finding in kind(platform)]
    found += timeouts.timeouts(platform, longest_call)
    return [*found, *certificates.certificates(platform, now)]
