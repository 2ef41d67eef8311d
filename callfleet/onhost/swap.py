"""The steps of one slot: start it, try it, publish it, swap it, remove it."""

from __future__ import annotations

from . import canary, sockets
from .compose import STOPPED, Container
from .errors import Interrupted, SlotError
from .run import Outcome, Run
from .slots import Slot, forget, mark, may_stop, observe, publish, unmark, withdraw
from .states import Process, Word
from .worker import ask


def bring_up(run: Run, n: int) -> None:
    """A slot that runs as wanted: wait for it, place the canary call, publish it. On failure it stays unpublished."""
    service = run.stack.service_of(n)
    try:
        container = _ready(run, n)
        run.event(service, "canary", "calling")
        canary.call(run.stack, n)
        run.changed(service, "canary passed", config=container.config)
        run.canaries.add((n, container.config or ""))
        published = publish(run.stack, n, container, "passed its canary call")
        unmark(run.stack, n)
        run.settle(service, Outcome.CHANGED, "published" if published else "ready; stays withdrawn by a declared drain")
    except Interrupted:
        raise
    except SlotError as error:
        _fail(run, n, error)


def _ready(run: Run, n: int) -> Container:
    """The slot's container once its worker answers. SlotError when it does not within limits.start_seconds."""
    stack, service = run.stack, run.stack.service_of(n)
    problem = ""

    def answers() -> bool:
        nonlocal problem
        answer = ask(stack.own_socket(n), n, stack.health)
        problem = answer.problem or (f"it says {answer.calls} calls before its first" if answer.calls else "")
        return answer.calls == 0

    if not run.wait_for(answers, stack.limits.start_seconds):
        raise SlotError(f"not ready after {stack.limits.start_seconds:g} s: {problem}")
    running = [c for c in run.docker.containers().get(service, []) if c.running]
    if len(running) != 1:
        raise SlotError(f"{len(running)} containers run for {service}, expected 1")
    if running[0].config != stack.wanted(service):
        raise SlotError(
            f"its container carries {running[0].config}, stack.json wants {stack.wanted(service)}: "
            "compose file and stack.json do not belong together"
        )
    return running[0]


def _fail(run: Run, n: int, error: SlotError) -> None:
    service = run.stack.service_of(n)
    lines: list[str] = []
    try:
        for container in run.docker.containers().get(service, [])[-1:]:
            lines = run.docker.last_lines(container)
    except SlotError:
        pass
    unmark(run.stack, n)
    run.changed(service, "canary failed", error=str(error))
    said = "; its last lines:\n  " + "\n  ".join(lines) if lines else ""
    run.settle(service, Outcome.FAILED, f"{error}; left unpublished{said}")


def swap(run: Run, n: int) -> bool:
    """Replace a slot that carries nothing by what is wanted. False, and it serves on, when it proved busy after all."""
    stack, service = run.stack, run.stack.service_of(n)
    run.guard()
    slot = withdraw_proven(run, n, "swap")
    if slot is None:
        return False
    mark(stack, n, "stopping", slot.container)
    try:
        stop_worker(run, slot)
        run.docker.start([service], recreate=True)
    except SlotError as error:
        _fail(run, n, error)
        return True
    run.changed(service, "started", config=stack.wanted(service))
    bring_up(run, n)
    return True


def withdraw_proven(run: Run, n: int, why: str) -> Slot | None:
    """Withdraw slot n and prove that it carries nothing. None when it does not; it is then left as it was found."""
    before = observe(run.stack, run.docker, [n])[n]
    mark(run.stack, n, "withdrawn", before.container)
    withdraw(run.stack, n, why)
    free, slot = may_stop(run.stack, run.docker, n, run.stack.limits.settle_seconds)
    if free:
        return slot
    put_back(run, slot, before.seen.published)
    return None


def put_back(run: Run, slot: Slot, was_published: bool = True, why: str = "left serving") -> None:
    """Left serving: what was published before is published again, unless declared drained meanwhile."""
    unmark(run.stack, slot.n)
    container, has_socket = slot.container, sockets.identity(run.stack.own_socket(slot.n)) is not None
    if was_published and has_socket and container is not None and container.running:
        publish(run.stack, slot.n, container, why)


def stop_worker(run: Run, slot: Slot) -> None:
    """Stop a slot that was proven to carry nothing: TERM at once, since its own stop signal is one it ignores."""
    stack, service = run.stack, run.stack.service_of(slot.n)
    container = slot.container
    if container and (slot.seen.process is not Process.STOPPED or container.status == "restarting"):
        run.docker.stop(container, "TERM", stack.limits.stop_seconds)
        run.changed(service, "stopped", container=container.id[:12], config=container.config)
    sockets.unlink(stack, slot.n)
    sockets.remove_dead(stack, slot.n)


def remove(run: Run, n: int) -> str:
    """Take a slot away that is no longer wanted. Why it is left as it is, empty when it is gone.

    Its worker may be the only one that delivers the results of its calls, so it stays until those have gone that wait
    once it is free.
    """
    run.guard()
    published = observe(run.stack, run.docker, [n])[n].seen.published
    slot = withdraw_proven(run, n, "no longer wanted")
    if slot is None:
        return describe(observe(run.stack, run.docker, [n])[n])
    if slot.seen.process is Process.RUNNING and (left := _undelivered(run)):
        put_back(run, slot, published)
        return f"{left} call results wait in the outbox"
    mark(run.stack, n, "stopping", slot.container)
    stop_worker(run, slot)
    for container in run.docker.containers().get(run.stack.service_of(n), []):
        if container.status not in STOPPED:
            raise SlotError(f"{run.stack.service_of(n)}: {container.id[:12]} came up again; run it again")
        run.docker.remove(container)
    forget(run.stack, n)
    run.changed(run.stack.service_of(n), "removed")
    return ""


def _undelivered(run: Run) -> int:
    """How many of the results that wait now still wait a little later; one that does not leave may be this slot's."""
    outbox = run.stack.outbox
    if outbox is None:
        return 0
    before = outbox.waiting()
    run.wait_for(lambda: not before & outbox.waiting(), run.stack.limits.settle_seconds)
    return len(before & outbox.waiting())


def describe(slot: Slot) -> str:
    """Why a slot is left alone, for people."""
    if slot.word is Word.UNKNOWN:
        return f"unknown, which counts as busy: {slot.problem or 'no clear answer'}"
    calls = slot.seen.calls
    return f"{slot.word.value}" + (f" ({calls})" if calls else "")
