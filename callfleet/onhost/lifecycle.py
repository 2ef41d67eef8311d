"""What stack@.service runs: bring the stack up without replacing anything, take it down without ending a call."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from . import sockets
from .compose import STOPPED
from .errors import Interrupted, SlotError
from .keeper import publish_ready
from .run import Outcome, Run
from .services import busy
from .slots import is_declared, mark, may_stop, observe, prepare, unmark, withdraw
from .states import MAY_STOP, Word
from .swap import describe, stop_worker

LOOK_SECONDS = 1.0
TELL_EVERY = 30


def up(run: Run) -> None:
    """Start what is down and publish what is ready, from what is on this host alone: no registry, no canary call.

    A slot whose label never passed a canary call here stays unpublished; a converge tries it.
    """
    prepare(run.stack)
    for n, slot in observe(run.stack, run.docker).items():
        if slot.word is Word.DEAD:
            sockets.unlink(run.stack, n)
            sockets.remove_dead(run.stack, n)
    run.guard()
    start_what_is_down(run)
    reasons: dict[int, str] = {}

    def all_out() -> bool:
        nonlocal reasons
        reasons = publish_ready(run.stack, run.docker)
        return not any(reason.startswith("waits") for reason in reasons.values())

    run.wait_for(all_out, run.stack.limits.start_seconds, every=0.5)
    for n in run.stack.numbers:
        outcome = Outcome.PENDING if n in reasons and not is_declared(run.stack, n) else Outcome.UNCHANGED
        run.settle(run.stack.service_of(n), outcome, reasons.get(n, "published"))


def start_what_is_down(run: Run) -> None:
    """Start what does not run, replacing nothing. What runs is not named: a proxy may have two containers."""
    found = run.docker.containers()
    every = [*run.stack.services, *(run.stack.service_of(n) for n in run.stack.numbers)]
    if missing := [name for name in every if not any(one.running for one in found.get(name, []))]:
        run.docker.start(missing, recreate=False)


def down(run: Run) -> None:
    """Stop everything in the order of a call: what starts calls, the workers as their calls end, the proxy, the rest.

    There is no limit of its own: systemd's stop limit lies above the longest call.
    """
    stop_guarded(run)
    stop_slots(run)
    for kind in ("proxy", "plain"):
        for service in run.stack.of_kind(kind):
            stop_service(run, service.name)


def stop_guarded(run: Run) -> None:
    for service in run.stack.of_kind("guarded"):
        quiet, told = service.quiet, ""
        while quiet and _is_up(run, service.name) and (reason := busy(run, quiet)):
            if reason != told:
                run.event(service.name, "waiting", reason)
            told = reason
            run.pause(LOOK_SECONDS)
        stop_service(run, service.name)


def stop_slots(run: Run) -> None:
    """Withdraw all slots, then stop each as soon as it is proven to carry nothing."""
    slots = observe(run.stack, run.docker)
    run.guard()
    for n, slot in slots.items():
        mark(run.stack, n, "withdrawn", slot.container)
        withdraw(run.stack, n, "down")
    left, rounds = set(slots), 0
    with ThreadPoolExecutor(max_workers=16) as pool:
        while left:
            seen = observe(run.stack, run.docker, left)
            ready = [n for n in left if seen[n].word in MAY_STOP]
            left -= {n for n, gone in zip(ready, pool.map(lambda n: _stop_slot(run, n), ready), strict=True) if gone}
            for n in left if rounds % TELL_EVERY == 0 else ():
                run.event(run.stack.service_of(n), "waiting", describe(seen[n]))
            if left:
                rounds += 1
                run.pause(LOOK_SECONDS)


def _stop_slot(run: Run, n: int) -> bool:
    free, slot = may_stop(run.stack, run.docker, n)
    if not free:
        return False
    service = run.stack.service_of(n)
    mark(run.stack, n, "stopping", slot.container)
    try:
        stop_worker(run, slot)
        run.settle(service, Outcome.CHANGED, "stopped")
    except Interrupted:
        raise
    except SlotError as error:
        run.settle(service, Outcome.FAILED, str(error))
    unmark(run.stack, n)
    return True


def stop_service(run: Run, name: str) -> None:
    """Stop a service by its own stop signal and grace; for the proxy that is the one that lets connections end."""
    run.guard()
    for container in run.docker.containers().get(name, []):
        if container.status not in STOPPED or container.status == "restarting":
            run.docker.stop(container)
            run.changed(name, "stopped", config=container.config)
            run.settle(name, Outcome.CHANGED, "stopped")


def _is_up(run: Run, name: str) -> bool:
    return any(c.running for c in run.docker.containers().get(name, []))
