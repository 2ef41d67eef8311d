"""Background calls, whose POST is answered at once: no connection shows whether they go on.

A background call is *cut* if it ends early or leaves no result. The first is judged from the workers' own log, the
second from the API's answer. Here a call lasts until its caller hangs up, so that whatever happens falls into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.fleet import STACK, Fleet

RESULTS = "http://127.0.0.1:8080/api/v1/call-results"
LONGEST = 500.0
"""Below the bots' longest call; no test lasts that long."""
END_SECONDS = 10.0
RESULT_SECONDS = 30.0
"""In which a result must have arrived: one that waited in an outbox comes with its worker's next retry."""


@contextmanager
def background(fleet: Fleet, host: str, n: int = 1) -> Iterator[list[str]]:
    """n background calls at a host that must come through the block; yields their sessions."""
    sessions = begin(fleet, host, n)
    try:
        yield sessions
    finally:
        ended = [hang_up(fleet, host, session) for session in sessions]
    assert ended == [True] * n, "a call was over before its caller hung up"
    for session in sessions:
        came_through(fleet, host, session)


def begin(fleet: Fleet, host: str, n: int = 1) -> list[str]:
    """Place n calls that last until `hang_up`; their sessions."""
    answers = fleet.attach(host, n, LONGEST)
    assert [answer.status for answer in answers] == [200] * n, answers
    # They end when their caller hangs up, which `came_through` judges.
    fleet.background = [call for call in fleet.background if call not in answers]
    return [answer.session for answer in answers]


def hang_up(fleet: Fleet, host: str, session: str) -> bool:
    """End a call as its caller; whether it was still on, by its log and by its worker's answer."""
    before = logged(fleet, host, session)
    if [line["event"] for line in before] != ["start"]:
        return False
    worker = before[0]["worker"]
    socket = f"/run/{STACK}/slots/{worker}/*_{worker}.sock"
    ask = f"curl -fsS -m 5 --unix-socket {socket} -X POST 'http://worker/standin/hangup?session_id={session}'"
    return session in fleet.ssh(host, ask, check=False)


def came_through(fleet: Fleet, host: str, session: str) -> None:
    """A call ended because its caller hung up, and the API has its result. Fails for one that was cut."""
    fleet.until(lambda: len(logged(fleet, host, session)) > 1, END_SECONDS, f"{session} ends")
    start, end = logged(fleet, host, session)
    assert (start["event"], end["event"], end["outcome"]) == ("start", "end", "completed"), (start, end)
    assert (start["worker"], start["pid"]) == (end["worker"], end["pid"]), (start, end)
    fleet.until(lambda: result(fleet, session), RESULT_SECONDS, f"the API has the result of {session}")
    stored = result(fleet, session)
    assert (stored["outcome"], stored["worker_id"]) == ("completed", end["worker"]), stored
    # The end is logged once the result is safe on disk.
    assert abs(stored["duration_seconds"] - (end["t"] - start["taken"])) < 3.0, (start, end, stored)


def logged(fleet: Fleet, host: str, session: str) -> list[dict[str, Any]]:
    """What the workers of a host wrote about the beginning and the end of a call."""
    about = [line for line in fleet.events(host) if line.get("session") == session]
    return [line for line in about if line["event"] in ("start", "end", "cut")]


def result(fleet: Fleet, session: str) -> dict[str, Any]:
    """What the API holds about a call, asked of itself; empty when it has nothing."""
    ask = "curl -sS -m 10 --retry 9 --retry-delay 1 --retry-connrefused -w '\\n%{http_code}'"
    body, _, code = fleet.ssh("hub", f"{ask} '{RESULTS}?session_id={session}'").rpartition("\n")
    return dict(json.loads(body)) if code == "200" else {}
