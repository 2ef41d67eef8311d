"""What the lab tests' judgements say of made-up logs: each goes red on what it is there for, and only on that."""

from __future__ import annotations

from typing import Any

import pytest

from lab.calls import Started
from tests.lab.occupancy import FOREVER, Start, cut_calls, published_spans, refused_while_free

ALWAYS = {"a": {"1": [(0.0, FOREVER)]}}
BOOT = {"t": 10.0, "worker": "1", "event": "boot"}


def call(taken: float, ended: float | None, session: str = "s", word: str = "end") -> list[dict[str, Any]]:
    """One call in the log of worker 1; its start is written half a second after the slot was taken."""
    began = {"t": taken + 0.5, "worker": "1", "event": "start", "session": session, "taken": taken}
    return [began] if ended is None else [began, {"t": ended, "worker": "1", "event": word, "session": session}]


def refusal(at: float, *hosts: str) -> Start:
    """A start that is refused at this time, a tenth of a second after it was sent."""
    return Start("r", at - 0.1, at, False, hosts)


def judged(log: list[dict[str, Any]], at: float, rotation: Any = ALWAYS) -> bool:
    """Whether a refusal at this time, by host a, was one beside a free slot."""
    return bool(refused_while_free([refusal(at, "a")], {"a": log}, rotation))


def test_a_refusal_beside_an_idle_slot_is_found() -> None:
    """The slot is idle for the second before: the message names the caller and the slot."""
    said = refused_while_free([refusal(30.0, "a")], {"a": [BOOT, *call(20.0, 28.9)]}, ALWAYS)
    assert said == ["r was refused at 30.000 while a/1 were free"]


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ([BOOT, *call(20.0, 40.0)], "on a call"),
        ([BOOT, *call(20.0, None)], "on a call that has not ended"),
        ([BOOT, *call(20.0, 29.1)], "idle for less than a second"),
        ([BOOT, *call(29.9, 40.0)], "taken just before, and still fetching its configuration"),
        ([BOOT, *call(20.0, 40.0, "s"), *call(21.0, 22.0, "t")], "a doubled call ended, the first goes on"),
        ([], "nothing is known of it"),
        ([BOOT | {"t": 29.5}], "started half a second before"),
        ([BOOT, {"t": 25.0, "worker": "1", "event": "sigterm"}], "stopped"),
        ([BOOT, *call(20.0, None), BOOT | {"t": 29.9}], "killed in a call, started again just before"),
        ([BOOT, {"t": 29.5, "worker": "1", "event": "start_while_busy_refused"}], "busy by its own word"),
        ([BOOT, {"t": 29.7, "worker": "1", "event": "refused", "taken": 29.2}], "had no configuration"),
        ([BOOT | {"worker": "2"}], "another worker's log"),
    ],
)
def test_a_refusal_by_a_host_that_is_not_free_is_right(log: list[dict[str, Any]], why: str) -> None:
    """Every way in which a slot is not idle for a whole second."""
    assert not judged(log, 30.0), why


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ([BOOT], "never called"),
        ([BOOT, *call(20.0, 28.99)], "the call ended a second before"),
        ([BOOT, *call(30.01, 40.0)], "taken after the refusal"),
        ([BOOT, *call(20.0, None), BOOT | {"t": 28.0}], "killed in a call, and back for two seconds"),
        ([BOOT, {"t": 25.0, "worker": "1", "event": "sigterm"}, BOOT | {"t": 27.0}], "stopped and started again"),
        ([BOOT, *call(20.0, 22.0, word="cut")], "the call was cut long before"),
    ],
)
def test_a_slot_that_was_idle_for_a_second_is_free(log: list[dict[str, Any]], why: str) -> None:
    """Every way in which a slot becomes idle again."""
    assert judged(log, 30.0), why


def test_only_slots_in_rotation_count() -> None:
    """Withdrawn, published less than a second ago, or on a host that the caller did not ask: nobody's free slot."""
    for spans, expected in (([], False), ([(29.5, FOREVER)], False), ([(0.0, 29.9)], False), ([(28.0, 30.5)], True)):
        assert judged([BOOT], 30.0, {"a": {"1": spans}}) is expected, spans
    elsewhere = {"a": {"1": []}, "b": {"1": [(0.0, FOREVER)]}}
    for hosts, expected in ((("a",), 0), (("a", "b"), 1)):
        found = refused_while_free([refusal(30.0, *hosts)], {"a": [BOOT], "b": [BOOT]}, elsewhere)
        assert len(found) == expected


@pytest.mark.parametrize(
    ("sent", "taken", "found"), [(29.8, 30.02, False), (30.01, 30.02, True), (29.8, 30.6, True), (29.8, 20.0, True)]
)
def test_a_slot_that_another_start_was_on_its_way_to_is_not_free(sent: float, taken: float, found: bool) -> None:
    """Only if that start was sent before the refusal, and takes the slot right after it."""
    other = Start("s", sent, taken + 0.1, True, ("a",))
    log = [BOOT, *call(taken, taken + 5)]
    assert bool(refused_while_free([refusal(30.0, "a"), other], {"a": log}, ALWAYS)) is found


def test_a_start_that_was_taken_is_no_refusal() -> None:
    """However idle the slots are."""
    assert refused_while_free([Start("s", 29.9, 30.0, True, ("a",))], {"a": [BOOT]}, ALWAYS) == []


def test_spans_of_publication_are_put_together_from_looks() -> None:
    """A slot that stays over several looks has one span, one that is withdrawn and comes back has two."""
    looks = ["10.0 core_1.sock core_2.sock", "20.0 core_1.sock", "30.0 core_1.sock core_2.sock", ""]
    assert published_spans(looks) == {"1": [(0.0, FOREVER)], "2": [(0.0, 20.0), (30.0, FOREVER)]}


def started(session: str, status: int = 200) -> Started:
    """A background start of a call of 5 s."""
    return Started(status, 100.0, 0.1, session, 5.0)


def result(seconds: float, outcome: str = "completed") -> dict[str, Any]:
    """What the API holds of a call."""
    return {"outcome": outcome, "duration_seconds": seconds}


def test_a_background_call_that_lasted_and_left_its_result_is_not_cut() -> None:
    """Nor is one that was never accepted."""
    assert cut_calls([started("s"), started("full", 429)], {"s": result(5.002)}) == []


def test_a_background_call_is_cut_if_it_ends_early_or_leaves_no_result() -> None:
    """Three ways, each named with its session."""
    results = {"short": result(4.2), "killed": result(5.0, "cut")}
    assert cut_calls([started("short"), started("killed"), started("gone")], results) == [
        "short ended (completed) after 4.2 of 5.0 s",
        "killed ended (cut) after 5.0 of 5.0 s",
        "gone left no result",
    ]
