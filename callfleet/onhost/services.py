"""Services that are no call slots: plain ones, guarded ones, and the host's proxy."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable

from . import proxy as haproxy
from .compose import Container
from .errors import Interrupted, SlotError
from .run import Outcome, Run
from .stack import Proxy, Quiet, Service

TAKE_OVER_SECONDS = 30.0
QUIET_SECONDS = 5.0
QUIET_APART_SECONDS = 1.0
QUIET_LARGEST = 65536


def settle_plain(run: Run, service: Service) -> None:
    """A plain service runs as wanted and is healthy, if it has a health check."""
    running = _running(run, service.name)
    if running and running.config == run.stack.wanted(service.name):
        run.settle(service.name, Outcome.UNCHANGED)
    else:
        run.guard()
        _start(run, service.name)


def settle_guarded(run: Run, service: Service) -> None:
    """A guarded service is replaced only while it says, twice in a row, that nothing depends on it."""
    running = _running(run, service.name)
    if running and running.config == run.stack.wanted(service.name):
        run.settle(service.name, Outcome.UNCHANGED)
    elif running is None:
        run.guard()
        _start(run, service.name)
    elif service.quiet is None or (reason := busy(run, service.quiet)):
        run.settle(
            service.name, Outcome.PENDING, f"left running: {reason if service.quiet else 'it has no quiet rule'}"
        )
    else:
        _replace(run, running)


def settle_proxy(run: Run, service: Service) -> None:
    """The proxy runs from the wanted image with the wanted configuration; calls through it go on.

    A definition that changed while calls are on is started in a second container on the same port; the first then takes
    no more connections and ends with its last one.
    """
    name, spec, changed = service.name, run.stack.proxy, False
    running, former = _proxies(run, name)
    if running is None:
        run.guard()
        _start(run, name)
        return
    if spec and spec.config_hash and not haproxy.is_current(spec):
        changed = _reload(run, name, spec, running)
    if former:
        _let_go(run, name, spec, former)
    elif running.config == run.stack.wanted(name):
        run.settle(name, Outcome.CHANGED if changed else Outcome.UNCHANGED)
    elif spec is None:
        run.settle(name, Outcome.PENDING, "left running: it cannot be asked whether connections go through it")
    else:
        _turn_over(run, name, spec, running)


def _proxies(run: Run, name: str) -> tuple[Container | None, list[Container]]:
    """The container that takes connections, and those before it. What has ended beside a running one is removed."""
    found = run.docker.containers().get(name, [])
    running = sorted((c for c in found if c.running), key=lambda c: (c.config == run.stack.wanted(name), c.started))
    if not running:
        return None, []
    for one in found:
        if one.status in ("exited", "dead", "created"):
            run.docker.remove(one)
            run.changed(name, "former container removed", container=one.id[:12])
    return running[-1], running[:-1]


def _turn_over(run: Run, name: str, spec: Proxy, old: Container) -> None:
    """Start the new one beside the old one, see that it took over, and let the old one go."""
    run.guard()
    haproxy.remember(spec)
    run.docker.start_beside(name)
    run.changed(name, "started beside the former one", config=run.stack.wanted(name))
    _let_go(run, name, spec, [old])


def _let_go(run: Run, name: str, spec: Proxy | None, former: list[Container]) -> None:
    """Only once another process than the remembered one answers; a run that died in between is completed here."""
    if spec is None or not run.wait_for(lambda: haproxy.took_over(spec), TAKE_OVER_SECONDS):
        said = f"the second container did not take over within {TAKE_OVER_SECONDS:g} s"
        raise SlotError(f"{said}; the former one serves on")
    for one in former:
        _retire(run, one)
    run.settle(name, Outcome.CHANGED, "turned over; the former one ends with its last connection")


def _retire(run: Run, old: Container) -> None:
    """Close its listeners and let it end with its last connection. Not through Docker, which would call it stopped."""
    run.docker.keep_stopped(old)
    os.kill(old.pid, signal.SIGUSR1)
    run.changed(old.service, "former container leaves", container=old.id[:12])


def _reload(run: Run, name: str, spec: Proxy, running: Container) -> bool:
    """Reload the proxy. False when its file is one for another image, which is to replace this one."""
    try:
        haproxy.check(spec, run.docker, running)
    except SlotError:
        if running.config == run.stack.wanted(name):
            raise
        return False
    run.guard()
    haproxy.reload(spec, running)
    run.changed(name, "configuration reloaded", config=spec.config_hash)
    return True


def busy(run: Run, quiet: Quiet) -> str | None:
    """Why a guarded service may not be stopped now; None when it said quiet twice. No answer is busy."""
    for reading in range(2):
        if reading:
            run.pause(QUIET_APART_SECONDS)
        if reason := _busy(quiet):
            return reason
    return None


def _busy(quiet: Quiet) -> str | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(quiet.url, timeout=QUIET_SECONDS) as answer:
            value = json.loads(answer.read(QUIET_LARGEST))
    except (OSError, ValueError) as error:
        return f"unknown, which counts as busy: {quiet.url}: {error}"
    if not isinstance(value, dict) or quiet.field not in value:
        return f"unknown, which counts as busy: {quiet.url} has no {quiet.field}"
    got = value[quiet.field]
    if type(got) is not type(quiet.equals) or got != quiet.equals:
        return f"{quiet.field} is {got!r}, to be {quiet.equals!r}"
    return None


def _running(run: Run, name: str) -> Container | None:
    found = [c for c in run.docker.containers().get(name, []) if c.running]
    if len(found) > 1:
        raise SlotError(f"{len(found)} containers run for {name}, expected 1: {', '.join(c.id[:12] for c in found)}")
    return found[0] if found else None


def _replace(run: Run, running: Container) -> None:
    run.guard()
    run.docker.stop(running)
    run.changed(running.service, "stopped", config=running.config)
    _start(run, running.service)


def _start(run: Run, name: str) -> None:
    run.docker.start([name], recreate=True)
    run.changed(name, "started", config=run.stack.wanted(name))
    state, limit = "not running", run.stack.limits.start_seconds

    def up() -> bool:
        nonlocal state
        state = _state(run, name)
        return state in ("running", "healthy")

    if run.wait_for(up, limit):
        run.settle(name, Outcome.CHANGED, state)
    else:
        lines = [line for c in run.docker.containers().get(name, [])[-1:] for line in run.docker.last_lines(c)]
        run.settle(name, Outcome.FAILED, f"{state} after {limit:g} s; its last lines:\n  " + "\n  ".join(lines))


def _state(run: Run, name: str) -> str:
    """Running without a health check, its health, or not running. SlotError when it is not what was wanted."""
    found, wanted = _running(run, name), run.stack.wanted(name)
    if found and found.config != wanted:
        raise SlotError(f"{name} carries {found.config}, stack.json wants {wanted}: compose file and it disagree")
    return "not running" if found is None else found.health or "running"


def each(run: Run, kind: str, settle: Callable[[Run, Service], None]) -> None:
    """Settle all services of a kind; the failure of one is noted and does not keep the others from it."""
    for service in run.stack.of_kind(kind):
        try:
            settle(run, service)
        except Interrupted:
            raise
        except SlotError as error:
            run.settle(service.name, Outcome.FAILED, str(error))
