"""Bring a stack to what stack.json wants without ending a call."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from . import canary, sockets
from .errors import SlotError
from .rollout import Rollout
from .run import Outcome, Run
from .services import each, settle_guarded, settle_plain, settle_proxy
from .slots import Slot, is_declared, observe, prepare, relink, unmark
from .states import Word
from .steps import Step, step
from .swap import bring_up, describe, put_back, remove

STARTS_AT_ONCE = 8


def converge(run: Run, deadline_seconds: float) -> None:
    """The whole of it, in an order in which something serves at every moment. Run under the stack's lock."""
    until = time.monotonic() + deadline_seconds
    prepare(run.stack)
    relink(run.stack)
    each(run, "plain", settle_plain)
    try:
        started = start_missing(run)
        finish_unpublished(run, started)
        each(run, "proxy", settle_proxy)
        swap_changed(run, until)
        remove_surplus(run)
    finally:
        record_canaries(run)
    each(run, "guarded", settle_guarded)


def start_missing(run: Run) -> list[int]:
    """Slots without a process are started together, replacing nothing. Returns those started."""
    slots, steps = look(run)
    missing = []
    for n in of(steps, Step.START):
        if slots[n].word is Word.DEAD:
            missing.append(n)
        else:
            run.settle(run.stack.service_of(n), Outcome.PENDING, f"not started, {describe(slots[n])}")
    if not missing:
        return []
    run.guard()
    clear(run, missing)
    services = [run.stack.service_of(n) for n in missing]
    run.docker.start(services, recreate=False)
    for service in services:
        run.changed(service, "started", config=run.stack.wanted(service))
    return missing


def clear(run: Run, dead: list[int]) -> None:
    """Remove the names of dead sockets: a worker without root's rights could not bind over them."""
    for n in dead:
        sockets.unlink(run.stack, n)
        sockets.remove_dead(run.stack, n)


def finish_unpublished(run: Run, started: list[int]) -> None:
    """Slots that run as wanted but do not serve get their canary call and are published.

    `started` ones are among them even if they are gone again: that is a failure to be told.
    """
    slots, steps = look(run)
    for n in of(steps, Step.RETURN):
        run.guard()
        put_back(run, slots[n], why="withdrawn by a run that did not end")
        run.settle(run.stack.service_of(n), Outcome.CHANGED, "published again")
    for n in of(steps, Step.KEEP):
        unmark(run.stack, n)
        run.settle(run.stack.service_of(n), Outcome.UNCHANGED, slots[n].word.value)
    ready = sorted({*of(steps, Step.FINISH), *started})
    run.guard()
    with ThreadPoolExecutor(max_workers=STARTS_AT_ONCE) as pool:
        list(pool.map(lambda n: bring_up(run, n), ready))


def swap_changed(run: Run, until: float) -> None:
    """Slots made from something else than wanted are swapped as they become free."""
    _, steps = look(run)
    Rollout(run, set(of(steps, Step.SWAP)), until).work()


def remove_surplus(run: Run) -> None:
    """Slots beyond the wanted number go when they carry nothing and their results are delivered."""
    slots, steps = look(run)
    for n in of(steps, Step.REMOVE):
        service = run.stack.service_of(n)
        try:
            busy = slots[n].word in (Word.ON_A_CALL, Word.UNKNOWN)
            why = describe(slots[n]) if busy else remove(run, n)
            run.settle(service, *((Outcome.PENDING, f"not removed, {why}") if why else (Outcome.CHANGED, "removed")))
        except SlotError as error:
            run.settle(service, Outcome.FAILED, str(error))
            run.guard()


def record_canaries(run: Run) -> None:
    if run.canaries:
        canary.record(run.stack, {label for _, label in run.canaries}, [n for n, _ in run.canaries])


def look(run: Run) -> tuple[dict[int, Slot], dict[int, Step]]:
    """Every slot and its next step. SlotError when Docker does not answer: then nothing can be decided."""
    slots = observe(run.stack, run.docker, containers=run.docker.containers())
    proven = canary.proven(run.stack)
    steps = {}
    for n, slot in slots.items():
        wanted = run.stack.wanted(run.stack.service_of(n)) if n in run.stack.numbers else None
        steps[n] = step(
            slot.word,
            slot.label,
            wanted,
            slot.seen.published,
            is_declared(run.stack, n),
            wanted in proven,
            slot.container is not None,
        )
    return slots, steps


def of(steps: dict[int, Step], wanted: Step) -> list[int]:
    return sorted(n for n, found in steps.items() if found is wanted)
