"""How the ingress checks hosts and spreads calls. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from callfleet.adopt import ingress as ingresses
from callfleet.adopt.contradictions.finding import Finding, Side, contradiction, numbers, weakness
from callfleet.adopt.ingress import Backend, Ingress
from callfleet.adopt.platform import Platform

SHORT_CHECK = 5.0
"""Seconds. A busy worker answers its health check after 3 to 6 s."""


def call_backends(platform: Platform) -> Iterator[tuple[Ingress, Backend]]:
    """Every backend that carries calls."""
    for ingress in platform.ingresses:
        for backend in ingress.backends:
            yield ingress, backend


def checks(platform: Platform) -> Iterator[Finding]:
    """A check takes an idle host for idle, whatever its size and however its answer is laid out."""
    for ingress, backend in call_backends(platform):
        hosts = [
            one for one in platform.fleet_hosts
            if any(each.ingress is ingress and each.backend is backend for each in one.inbound)
        ]  # fmt: skip
        most = max([one.workers or 0 for one in hosts] + [each.maxconn or 0 for each in backend.servers])
        if (wanted := ingresses.expectation(backend.section)) is not None:
            yield from _expectation(ingress, backend, wanted, most)
        aside = [server for server in backend.servers if {"disabled", "backup"} & set(server.options)]
        if aside:
            yield contradiction(
                "ingress-server", "", "a server gets no calls, or only when all others are down",
                [Side(f"{ingress.place(each.line)}: server {each.name}",
                      ", ".join(sorted({"disabled", "backup"} & set(each.options)))) for each in aside],
                "in callfleet all hosts of an ingress are alike; one that is to take no calls is drained (host drain)",
            )  # fmt: skip
        checked = [server for server in backend.servers if "check" in server.options]
        if not checked:
            yield contradiction(
                "no-check", "", "the ingress sends calls to hosts without a health check",
                [Side(f"{ingress.place(backend.servers[0].line)}", f"backend {backend.name}")],
                "add check to its servers; callfleet's own ingress does",
            )  # fmt: skip
        elif any(server.options.get("fall", "3") == "1" for server in checked):
            yield contradiction(
                "fall-1", "", "one slow answer takes a host out, and all its load goes elsewhere",
                [Side(f"{ingress.place(each.line)}", "fall 1") for each in checked
                 if each.options.get("fall", "3") == "1"],
                "fall 2 at least",
            )  # fmt: skip
        yield from _check_timeouts(ingress, backend, checked)
        balance = backend.section.last("balance")
        if balance is not None and balance.words[1:2] in (("leastconn",), ("first",), ("source",), ("random",)):
            yield weakness(
                "balance", "", f"{balance.words[1]} counts only the calls that the ingress routed itself",
                [Side(f"{ingress.place(balance)}", balance.text)], "callfleet's own ingress uses roundrobin",
            )  # fmt: skip


def _expectation(ingress: Ingress, backend: Backend, wanted: ingresses.Expectation, workers: int) -> Iterator[Finding]:
    where = Side(f"{ingress.place(wanted.line)}", wanted.line.text)
    counts = range(1, workers + 1)
    compact = [wanted.takes(ingresses.fleet_health(free, workers)) for free in counts]
    if any(each is None for each in compact):
        yield weakness("check-unknown", "", "the check's pattern cannot be tried here", [where], "compare it by hand")
        return
    down = [free for free, good in zip(counts, compact, strict=True) if not good]
    if down:
        yield contradiction(
            "check-cap", "", f"a host with {numbers(down)} of {workers} workers free is taken for down",
            [where, Side(f"backend {backend.name}", f"hosts of up to {workers} workers")],
            "callfleet's own check asks for liveness only",
        )  # fmt: skip
    good = [free for free, fine in zip(counts, compact, strict=True) if fine][:1]
    for free in good:
        others = (
            ingresses.fleet_health(free, workers, spaced=True),
            ingresses.fleet_health(free, workers, first=True),
        )
        if not all(wanted.takes(body) for body in others):
            yield weakness(
                "check-json", "", "the check depends on how the answer's JSON is laid out: blanks or another order take"
                " every host down at once", [where], "callfleet's own check asks for liveness only",
            )  # fmt: skip


def _check_timeouts(ingress: Ingress, backend: Backend, checked: Sequence[object]) -> Iterator[Finding]:
    stated = ingresses.timeout(backend.section, "check")
    if not checked or (stated and stated[0] >= SHORT_CHECK):
        return
    section = backend.section
    server = backend.servers[0]
    sides = [Side(f"{ingress.place(stated[1])}", stated[1].text)] if stated else [
        Side(f"{ingress.place(server.line)}", f"inter {server.options.get('inter', '2s')}, no timeout check")
    ]  # fmt: skip
    yield weakness(
        "check-timeout", "", f"backend {section.name}: a busy host that answers its check late is taken for down",
        sides, f"timeout check {SHORT_CHECK:g}s; callfleet's own ingress says it",
    )  # fmt: skip
