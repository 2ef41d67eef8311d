"""What a converge does to a slot, decided from what was seen. Pure."""

from __future__ import annotations

from enum import StrEnum

from .states import Word


class Step(StrEnum):
    """The next step of one slot."""

    KEEP = "keep"
    """It is as wanted."""
    START = "start"
    """No process and what it would start as is right: start, canary, publish."""
    FINISH = "finish"
    """It runs as wanted but does not serve: canary, publish."""
    RETURN = "return"
    """It runs as wanted, was withdrawn by a run that did not end, and has a call: publish it again."""
    SWAP = "swap"
    """It is made from something else than wanted."""
    REMOVE = "remove"
    """There are more slots than wanted."""


def step(
    state: Word, label: str | None, wanted: str | None, published: bool, declared: bool, proven: bool, exists: bool
) -> Step:
    """The next step of a slot.

    `label` is what its container was made from, `wanted` what it should be (None: no such slot), `proven` whether
    a canary passed with `wanted`, `exists` whether there is a container at all.
    """
    if wanted is None:
        return Step.REMOVE
    if not exists:
        return Step.START
    if label != wanted:
        return Step.SWAP
    if state is Word.DEAD:
        return Step.START
    if published or (declared and proven):
        return Step.KEEP
    if state is Word.DRAINING:
        return Step.KEEP if declared else Step.RETURN
    return Step.FINISH


SWAP_ORDER = (Word.DEAD, Word.UNPUBLISHED, Word.DRAINED, Word.IDLE)
"""Slots to swap at once, best first: those that carry nothing now, then those that could take a call."""
