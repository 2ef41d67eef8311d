"""The slots for Prometheus: what the workers say, unknown as absent, and a keeper that answers while it keeps."""

from __future__ import annotations

import re
from http.client import HTTPConnection
from pathlib import Path

import pytest

from callfleet.onhost import metrics
from callfleet.onhost.states import Word
from callfleet.onhost.worker import UnixConnection
from tests.onhost.conftest import NAME, Host, wait_until


def get(path: Path, what: str = metrics.PATH) -> tuple[int, str]:
    """Status and text of one question, as the host proxy asks it."""
    line: HTTPConnection = UnixConnection(path, 30)
    line.request("GET", what)
    answer = line.getresponse()
    return answer.status, answer.read().decode()


def value(text: str, name: str, **labels: str) -> float | None:
    """One sample; None when it is not there."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2])) == labels:
            return float(found[3])
    return None


def test_the_keeper_tells_what_the_slots_do(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call, a drain and a dead worker show; each slot is in one state; other paths are nothing."""
    host.declare(slots=3)
    assert host.slotctl("converge") == 0
    host.start("keep")
    socket = host.stack.metrics_socket
    wait_until(socket.exists)
    assert host.slotctl("drain", "2") == 0
    with host.call(1):
        wait_until(lambda: host.states() == {1: "on a call", 2: "drained", 3: "idle"})
        wait_until(lambda: value(get(socket)[1], "callfleet_slot_calls", stack=NAME, slot="1") == 1)
        status, text = get(socket)
        assert status == 200
        for slot, state in {"1": "on a call", "2": "drained", "3": "idle"}.items():
            said = {word: value(text, "callfleet_slot_state", stack=NAME, slot=slot, state=word.value) for word in Word}
            assert said == {word: float(word == state) for word in Word}
        assert value(text, "callfleet_slot_drained", stack=NAME, slot="2") == 1
        assert value(text, "callfleet_slots", stack=NAME, state="idle") == 1
        assert value(text, "callfleet_slots_read", stack=NAME) == 1
        assert get(socket, "/other")[0] == 404
    assert not host.was_cut()


def test_what_was_not_read_is_absent(host: Host) -> None:
    """No number stands for what nobody said."""
    host.declare(slots=1)
    text = metrics.text(NAME, None)
    assert value(text, "callfleet_slots_read", stack=NAME) == 0
    assert "callfleet_slot_state" not in text
    host.slotctl("converge")
    host.kill()
    (host.root / "bin/docker").write_text("#!/bin/sh\nexit 1\n")
    assert value(metrics.Reading(host.stack)(), "callfleet_slots_read", stack=NAME) == 0


def test_many_askers_cost_one_reading(host: Host) -> None:
    """Within a few seconds nothing is read again."""
    host.declare(slots=1)
    host.slotctl("converge")
    reading = metrics.Reading(host.stack)
    first = reading()
    host.forget_calls()
    assert [reading() for _ in range(5)] == [first] * 5
    assert host.docker_calls() == []
