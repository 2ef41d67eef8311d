"""A worker's answer counts only when it is complete and plausible."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from callfleet.onhost.stack import Health
from callfleet.onhost.worker import ask, judge

GOOD = {"status": "ok", "worker_calls": 0, "worker_id": "3"}


@pytest.mark.parametrize("calls", [0, 1])
def test_a_good_answer(calls: int) -> None:
    """The number of calls is taken as said."""
    assert judge(200, json.dumps({**GOOD, "worker_calls": calls}).encode(), 3, Health()).calls == calls


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, GOOD),
        (204, GOOD),
        (200, {**GOOD, "worker_id": "4"}),
        (200, {**GOOD, "worker_id": 3}),
        (200, {**GOOD, "worker_calls": "0"}),
        (200, {**GOOD, "worker_calls": False}),
        (200, {**GOOD, "worker_calls": 0.0}),
        (200, {**GOOD, "worker_calls": -1}),
        (200, {**GOOD, "worker_calls": None}),
        (200, {**GOOD, "status": "starting"}),
        (200, {"status": "ok"}),
        (200, [GOOD]),
        (200, 0),
    ],
)
def test_a_strange_answer_is_not_a_number_of_calls(status: int, body: object) -> None:
    """Wrong worker, wrong type, wrong status: unknown, with a reason."""
    answer = judge(status, json.dumps(body).encode(), 3, Health())
    assert answer.calls is None
    assert answer.problem


def test_no_json_and_too_much_are_unknown() -> None:
    """A truncated answer and an endless one are no answer."""
    assert judge(200, b'{"status":"ok","worker_calls":0', 3, Health()).calls is None
    assert judge(200, b" " * 70000, 3, Health()).calls is None


def test_a_worker_that_drips_bytes_is_given_up(tmp_path: Path) -> None:
    """The time limit is for the whole answer, not for each byte of it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen()

    def drip() -> None:
        line, _ = server.accept()
        try:
            for _ in range(100):
                line.send(b"H")
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    before = time.monotonic()
    assert ask(tmp_path / "s", 3, Health(answer_seconds=0.4)).calls is None
    assert time.monotonic() - before < 4  # all of it takes five
    server.close()


def test_nobody_there(tmp_path: Path) -> None:
    """A missing socket is no answer, and no exception."""
    assert ask(tmp_path / "none", 1, Health()).calls is None
