"""Judging starts by the workers' own logs: who was refused beside a free slot, which background call was cut. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.calls import Started

Event = Mapping[str, Any]
Span = tuple[float, float]
Rotation = Mapping[str, Mapping[str, Sequence[Span]]]
"""By host and worker id: when the slot was published, in seconds since 1970."""

FREE_SECONDS = 1.0
"""A slot that was idle for so long before a refusal was free; what is younger is a race that nobody can win."""
CLAIM_SECONDS = 0.5
"""A slot whose next call was on its way already is not free: the proxy has chosen it, its worker does not know yet."""
EARLY_SECONDS = 0.05
"""A timer may fire by this much too soon without the call having been cut."""
FOREVER = float("inf")


@dataclass(frozen=True)
class Start:
    """A start as its caller saw it: when it was sent and answered, and the hosts that could have taken it."""

    session: str
    began_at: float
    answered_at: float
    taken: bool
    hosts: tuple[str, ...]


def occupied(log: Iterable[Event]) -> list[Span]:
    """When a worker was not known to be idle, by its own log (oldest first): on a call, stopped, or not yet started.

    A call that never ended lasts until the next process; a start met while busy is a moment of it.
    """
    spans: list[Span] = []
    calls: dict[str, float] = {}
    down: float | None = -FOREVER
    for event in log:
        word, at = event["event"], float(event["t"])
        if word == "boot":
            spans += [(began, at) for began in calls.values()]
            if down is not None:
                spans.append((down, at))
            calls, down = {}, None
        elif word == "sigterm":
            down = at
        elif word == "start":
            calls[event["session"]] = float(event["taken"])
        elif word in ("end", "cut"):
            spans.append((calls.pop(event["session"], at), at))
        elif word == "refused":
            spans.append((float(event["taken"]), at))
        elif word.startswith("start_while_busy"):
            spans.append((at, at))
    spans += [(began, FOREVER) for began in calls.values()]
    return spans if down is None else [*spans, (down, FOREVER)]


def refused_while_free(starts: Sequence[Start], logs: Mapping[str, Sequence[Event]], rotation: Rotation) -> list[str]:
    """Refusals while some slot in rotation was idle for the whole second before, each with the slots it could have had.

    A slot that one of the other starts was on its way to is not free.
    """
    began = {start.session: start.began_at for start in starts}
    workers = {
        (host, worker): [event for event in logs[host] if event["worker"] == worker]
        for host, slots in rotation.items()
        for worker in slots
    }
    spans = {slot: occupied(log) for slot, log in workers.items()}
    found = []
    for start in starts:
        free = []
        for (host, worker), log in workers.items():
            if start.taken or host not in start.hosts:
                continue
            at, since = start.answered_at, start.answered_at - FREE_SECONDS
            published = any(begin <= since and at <= end for begin, end in rotation[host][worker])
            idle = not any(begin <= at and since <= end for begin, end in spans[host, worker])
            if published and idle and not claimed(log, at, began):
                free.append(f"{host}/{worker}")
        if free:
            found.append(f"{start.session} was refused at {start.answered_at:.3f} while {', '.join(free)} were free")
    return found


def claimed(log: Iterable[Event], at: float, began: Mapping[str, float]) -> bool:
    """Whether a start that was sent before `at` takes this worker right after it."""
    return any(
        at <= event["taken"] <= at + CLAIM_SECONDS and began.get(event["session"], FOREVER) <= at
        for event in log
        if event["event"] == "start"
    )


def published_spans(lines: Iterable[str]) -> dict[str, list[Span]]:
    """When each slot was published, from lines of a time and the sockets' names that were there from then on.

    What the first line names counts as having been there before.
    """
    looks = [(float(line.split()[0]), line.split()[1:]) for line in lines if line.strip()]
    looks = [(0.0, looks[0][1]), *looks[1:]]
    ends = [at for at, _ in looks[1:]] + [FOREVER]
    found: dict[str, list[Span]] = {}
    for (begin, names), end in zip(looks, ends, strict=True):
        for name in names:
            spans = found.setdefault(name.removesuffix(".sock").rpartition("_")[2], [])
            joins = bool(spans) and spans[-1][1] == begin
            spans.append((spans.pop()[0] if joins else begin, end))
    return found


def cut_calls(started: Iterable[Started], results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Accepted background calls that ended early or left no result with the API (`results` by session)."""
    found = []
    for call in started:
        if call.status != 200:
            continue
        result = results.get(call.session)
        if result is None:
            found.append(f"{call.session} left no result")
        elif result["outcome"] != "completed" or result["duration_seconds"] < call.planned - EARLY_SECONDS:
            found.append(
                f"{call.session} ended ({result['outcome']}) after {result['duration_seconds']} of {call.planned} s"
            )
    return found
