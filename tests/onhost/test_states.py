"""The words for a slot: which readings give which word, and that doubt is busy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from callfleet.onhost.states import MAY_STOP, Process, Seen, Word, word
from callfleet.onhost.steps import Step, step

FREE = Seen(Process.RUNNING, None, calls=0, connections=0, published=False, served=True, declared=False)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"published": True}, Word.IDLE),
        ({"published": True, "calls": 1}, Word.ON_A_CALL),
        ({"published": True, "connections": None}, Word.IDLE),
        ({"published": True, "calls": None}, Word.UNKNOWN),
        ({}, Word.DRAINED),
        ({"calls": 1}, Word.DRAINING),
        ({"connections": 1}, Word.DRAINING),
        ({"connections": None}, Word.UNKNOWN),
        ({"calls": None}, Word.UNKNOWN),
        ({"served": False}, Word.UNPUBLISHED),
        ({"served": False, "declared": True}, Word.DRAINED),
        ({"served": False, "connections": 1}, Word.DRAINING),
        ({"served": False, "calls": None}, Word.UNPUBLISHED),
        ({"served": False, "calls": None, "connections": 1}, Word.UNKNOWN),
        ({"process": Process.UNCLEAR}, Word.UNKNOWN),
        ({"process": Process.STOPPED, "listening": False, "calls": None}, Word.DEAD),
        ({"process": Process.STOPPED, "listening": True, "calls": None}, Word.UNKNOWN),
        ({"process": Process.STOPPED, "listening": None, "calls": None}, Word.UNKNOWN),
        ({"process": Process.STOPPED, "listening": False, "connections": 1}, Word.UNKNOWN),
    ],
)
def test_a_reading_gives_its_word(change: dict[str, object], expected: Word) -> None:
    """Each word keeps its promise for the readings it stands for."""
    assert word(replace(FREE, **change)) is expected  # type: ignore[arg-type]


def test_nothing_with_a_call_or_a_connection_may_ever_be_stopped() -> None:
    """Over every reading there is: a call, a connection, a public name or an unclear process forbids stopping."""
    both = (True, False)
    for process, listening, calls, count, published, served, declared in product(
        Process, (*both, None), (None, 0, 1), (None, 0, 1), both, both, both
    ):
        found = word(Seen(process, listening, calls, count, published, served, declared))
        if found in MAY_STOP and process is not Process.STOPPED:
            assert not calls
            assert count == 0
            assert not published
            assert process is Process.RUNNING
            assert calls == 0 or not served
        if found in MAY_STOP and process is Process.STOPPED:
            assert (listening, count) == (False, 0)


@pytest.mark.parametrize(
    ("state", "label", "wanted", "published", "declared", "proven", "exists", "expected"),
    [
        (Word.IDLE, "a", "a", True, False, True, True, Step.KEEP),
        (Word.UNKNOWN, "a", "a", True, False, True, True, Step.KEEP),
        (Word.IDLE, "a", "b", True, False, True, True, Step.SWAP),
        (Word.DEAD, None, "a", False, False, False, False, Step.START),
        (Word.DEAD, "a", "a", False, False, True, True, Step.START),
        (Word.DEAD, "a", "b", False, False, True, True, Step.SWAP),
        (Word.DRAINED, "a", "a", False, True, True, True, Step.KEEP),
        (Word.DRAINED, "a", "a", False, True, False, True, Step.FINISH),
        (Word.DRAINED, "a", "a", False, False, True, True, Step.FINISH),
        (Word.DRAINING, "a", "a", False, False, True, True, Step.RETURN),
        (Word.DRAINING, "a", "a", False, True, False, True, Step.KEEP),
        (Word.UNPUBLISHED, "a", "a", False, False, True, True, Step.FINISH),
        (Word.IDLE, "a", None, True, False, True, True, Step.REMOVE),
    ],
)
def test_the_next_step(
    state: Word, label: str, wanted: str, published: bool, declared: bool, proven: bool, exists: bool, expected: Step
) -> None:
    """What a converge does follows from the reading alone."""
    assert step(state, label, wanted, published, declared, proven, exists) is expected
