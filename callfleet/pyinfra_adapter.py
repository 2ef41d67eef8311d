"""A run of pyinfra: what each host is, what it needs, and the operations that carry it out.

Only the modules named `pyinfra_*` know pyinfra's internals; tests/test_pyinfra_adapter.py pins what they lean on.
A run keeps one record: per host the site, one snapshot, one plan. Operations ask it for the changes of their concern
and get the same answer while pyinfra prepares and while it executes, so what is listed is what is done. Between the
two, a host that has changes is probed again and refused if it is no longer what the plan was made for.
"""

from __future__ import annotations

import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import gevent
from pyinfra import context, logger
from pyinfra.api import FunctionCommand
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State

from callfleet import __version__
from callfleet.actual import Actual, ProbeRequest, Unknown
from callfleet.credentials import opened
from callfleet.desired import Context, expected_host
from callfleet.desired.ingress import ADMIN_SOCKET, CALLS, MASTER_SOCKET
from callfleet.desired.registration import api_request
from callfleet.diff import file_diff
from callfleet.errors import CallfleetError
from callfleet.expected import AGREED, MADE, Command, Directory, ExpectedHost, File, Package, Runtime, Stack, Unit
from callfleet.plan import Change, ConcernPlan, HostPlan, Word, plan
from callfleet.pyinfra_remote import StepError, ensure_locked, is_locked, read_files, release, run_script, tell
from callfleet.script import script
from callfleet.site import Site, load_site
from facts.probe import Probe

PROBE_SECONDS = 60.0
CHECKED_SECONDS = 20.0  # until the ingress has checked a server that is new to it, several times
STARTED_SECONDS = 20.0  # until a service that this run has just started can be asked
SKEW_SECONDS = 30.0
PEM = b"-----BEGIN CERTIFICATE-----"


def _end_clearly_without_an_answer() -> None:
    """pyinfra's prompt ends in a traceback when standard input is closed; say instead what to do."""
    cli, errors = sys.modules.get("pyinfra_cli.cli"), sys.modules.get("pyinfra_cli.exceptions")
    if cli is None or errors is None:
        return  # not started by pyinfra's command

    def answer() -> str:
        try:
            return input()
        except EOFError:
            text = "nobody can be asked here and -y was not given; nothing was changed. Read the plan, then add -y"
            if context.ctx_state.isset() and context.state.is_executing:  # type: ignore[no-untyped-call]
                text = "nobody can be asked whether to go on after the failure above, so it ends here; run again"
            raise errors.CliError(text) from None

    cli.input = answer  # type: ignore[attr-defined]


_end_clearly_without_an_answer()


@dataclass
class HostRun:
    """What this run knows of one host."""

    context: Context
    request: ProbeRequest
    snapshot: Actual | None = None
    error: str = ""
    untold: str = ""
    """Why what it must be cannot be told; then it was asked for the least."""
    skew: float = 0.0
    planned_fingerprint: str = ""
    checked: bool = False
    shown: set[str] = field(default_factory=set)
    carried_out: list[Change] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    canary: bool | None = None
    registered_at_first: frozenset[str] = frozenset()
    planned: Planned | None = None
    only: frozenset[str] | None = None
    """The concerns that this run is about; None: all of them."""


@dataclass(frozen=True)
class Planned:
    """A plan, and all that it was made from besides the site: the same inputs give the same plan."""

    snapshot: Actual
    registered: frozenset[str]
    registered_before: frozenset[str]
    drained: dict[str, bool]
    plan: HostPlan


_runs: WeakKeyDictionary[State, dict[str, HostRun]] = WeakKeyDictionary()
_sites: dict[str, Site] = {}


def site_of(host: PyinfraHost) -> Site:
    """The site that the host's inventory was loaded from."""
    path = str(host.data.site_file)
    if path not in _sites:
        _sites[path] = load_site(Path(path))
    return _sites[path]


def use_site(site: Site) -> None:
    """From now on hosts of this site's file are runs of `site`: what a file would declare, before it is written."""
    _sites[str(site.path)] = site


def run_of(host: PyinfraHost) -> HostRun:
    """The record of this host in the current run; reads nothing from the host."""
    runs = _runs.setdefault(host.state, {})
    if host.name not in runs:
        site = site_of(host)
        store = opened(site)
        made = Context(site, site.host(host.name), store.secret, store.credential)
        try:
            runs[host.name] = HostRun(made, _request(made))
        except (CallfleetError, ValueError) as error:
            # A secret or certificate is of no use: the host can be looked at, and nothing is planned for it.
            runs[host.name] = HostRun(made, _least(made), untold=str(error))
    return runs[host.name]


def _least(made: Context) -> ProbeRequest:
    """What to ask a host whose expected state cannot be told: its slots and proxies."""
    roles, stack = made.host.roles, made.site.brand.stack
    front = ((ADMIN_SOCKET,), (MASTER_SOCKET,)) if roles & {"ingress", "app"} else ((), ())
    own = (f"/run/{stack}/proxy/admin.sock", f"/run/{stack}/proxy/master.sock") if "fleet" in roles else ()
    return ProbeRequest(
        stacks=(stack,) if own else (),
        haproxy_admin=(*front[0], *own[:1]),
        haproxy_master=(*front[1], *own[1:]),
        haproxy_sessions=own[1:],
    )


def _request(made: Context) -> ProbeRequest:
    """What to ask a host: exactly what its expected state talks about."""
    items = expected_host(made).items()
    stacks = tuple(item.name for item in items if isinstance(item, Stack))
    facts = [item.fact.partition(":") for item in items if isinstance(item, Command)]
    proxies = [argument.partition(":")[0] for kind, _, argument in facts if kind == "proxy"]
    hosted = [f"/run/{item.name}/proxy" for item in items if isinstance(item, Stack) and item.proxy_config]
    masters = [MASTER_SOCKET for socket in proxies if socket == ADMIN_SOCKET]
    proxies += [f"{folder}/admin.sock" for folder in hosted]
    sessions = tuple(f"{folder}/master.sock" for folder in hosted)
    return ProbeRequest(
        files=tuple(
            dict.fromkeys(
                [item.path for item in items if isinstance(item, File | Directory)]
                + [argument for kind, _, argument in facts if kind == "file"]
                + [path for item in items if isinstance(item, Unit) for path in item.config]
            )
        ),
        contents=("/etc/docker/daemon.json", "/etc/callfleet/firewall.loaded", AGREED, *map(MADE.format, stacks)),
        units=tuple(dict.fromkeys(item.name for item in items if isinstance(item, Unit))),
        packages=tuple(dict.fromkeys(item.name for item in items if isinstance(item, Package))),
        stacks=stacks,
        certificates=tuple(
            dict.fromkeys(item.path for item in items if isinstance(item, File) and PEM in item.content)
        ),
        haproxy_admin=tuple(dict.fromkeys(proxies)),
        haproxy_certificates=tuple(
            f"{one.kind} {one.path}" for item in items if isinstance(item, Runtime) for one in item.certificates
        ),
        haproxy_master=(*dict.fromkeys(masters), *sessions),
        haproxy_sessions=sessions,
        api=api_request(made) if "app" in made.host.roles else None,
    )


# Reading a host


def snapshot(host: PyinfraHost) -> Actual:
    """One probe of the host, taken at most once for planning."""
    run = run_of(host)
    if run.snapshot is None:
        run.snapshot = _probe(host, run)
    return run.snapshot


def _probe(host: PyinfraHost, run: HostRun) -> Actual:
    _tune(host)
    began = time.time()
    try:
        with gevent.Timeout(PROBE_SECONDS, exception=TimeoutError):
            actual: Actual = host.get_fact(Probe, run.request)
    except Exception as error:  # an exception here would stop the run for every host
        # Some errors of a link have no text, and an empty one would pass for none.
        run.error = f"the probe failed: {type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, TimeoutError):
            run.error = f"the probe got no answer within {PROBE_SECONDS:.0f} s"
        return Actual.unread(run.error, run.request)
    run.skew = _skew(actual, began)
    if run.skew > SKEW_SECONDS:
        run.error = f"its clock is {run.skew:.0f} s off ours: certificates and events would be wrong; set its clock"
    if isinstance(actual.os, Unknown):
        run.error = f"the probe could not be read: {actual.os.reason}"
    return actual


def _skew(actual: Actual, began: float) -> float:
    """Seconds by which the host's clock lies outside of the time in which it was asked; 0 where it did not say."""
    if isinstance(actual.clock, Unknown):
        return 0.0
    return max(began - 1 - actual.clock.unix, actual.clock.unix - time.time(), 0.0)


def _tune(host: PyinfraHost) -> None:
    """No delay for small packets, and an end to waiting for a peer that is gone. paramiko sets neither."""
    client = getattr(host.connector, "client", None)
    transport = client.get_transport() if client is not None else None
    if transport is None:
        return
    transport.set_keepalive(15)
    sock = transport.sock
    if isinstance(sock, socket.socket) or hasattr(sock, "setsockopt"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)


# Deciding


def _registered(host: PyinfraHost, hopeful: bool) -> frozenset[str]:
    """Fleet hosts that may get calls: hopefully all those of this run, else those whose canary call succeeded.

    A host that is not in this run keeps what it has: registered if this host has it registered.
    """
    state = host.state
    site = run_of(host).context.site
    active = {one.name for one in state.inventory.get_active_hosts()}
    before = _registered_before(host)
    runs = _runs.get(state, {})
    allowed = set()
    for fleet_host in site.fleet_hosts:
        name = fleet_host.name
        if name not in active:
            passed = name in before
        elif hopeful:
            passed = True
        else:
            other = runs.get(name)
            passed = other is not None and (other.canary if other.canary is not None else _canary_known(other, name))
        if passed:
            allowed.add(name)
    return frozenset(allowed)


def _registered_before(host: PyinfraHost) -> frozenset[str]:
    """Fleet hosts that this host has registered by its own mark or in its running proxy, and that are still declared.

    The proxy has one that the mark lacks where a run ended in between.
    """
    mark, proxy = snapshot(host).site, snapshot(host).proxies
    found = set() if mark is None or isinstance(mark, Unknown) else set(mark.get("registered", ()))
    front = None if isinstance(proxy, Unknown) else proxy.get(ADMIN_SOCKET)
    if front is not None and not isinstance(front, Unknown):
        found |= {server.name for server in front.servers if server.backend == CALLS}
    return frozenset({one.name for one in run_of(host).context.site.fleet_hosts} & found)


def _drained(host: PyinfraHost) -> dict[str, bool]:
    """Fleet hosts of this run that an operator has taken out of service as a whole, or has not."""
    site, found = run_of(host).context.site, {}
    for name, run in _runs.get(host.state, {}).items():
        workers, drains = run.context.host.workers, None
        if run.snapshot is not None and workers:
            drains = run.snapshot.drains(site.brand.stack)
        if drains is not None and not isinstance(drains, Unknown):
            found[name] = {str(number) for number in range(1, workers + 1)} <= set(drains)
    return found


def _canary_known(run: HostRun, name: str) -> bool:
    """A canary recorded by an earlier run, on a host where this run had nothing to change."""
    if run.snapshot is None:
        return False
    canary = run.snapshot.canary(run.context.site.brand.stack)
    return canary is not None and not isinstance(canary, Unknown) and bool(canary.get("ok"))


def changes(host: PyinfraHost, name: str) -> ConcernPlan:
    """The changes of one concern on one host."""
    return host_plan(host).concern(name)


def host_plan(host: PyinfraHost, *, hopeful: bool = False) -> HostPlan:
    """All changes of a host, from the snapshot of this run and those fleet hosts that may be registered by now.

    `hopeful`: as if every canary call were going to succeed, which is what a plan shows.
    """
    run, actual = run_of(host), snapshot(host)
    registered, before = _registered(host, hopeful or not host.state.is_executing), _registered_before(host)
    known, drained = run.planned, _drained(host)
    made_from = (registered, before, drained)
    # Every operation asks, and rendering a whole host each time was two thirds of the controller's work.
    same = known is not None and known.snapshot is actual
    if known is None or not same or (known.registered, known.registered_before, known.drained) != made_from:
        made = replace(run.context, registered=registered, registered_before=before, drained=drained)
        wanted = _part(expected_host(made, actual), run.only)
        known = Planned(actual, registered, before, drained, plan(wanted, actual))
        run.planned = known
    return known.plan


def _part(expected: ExpectedHost, only: frozenset[str] | None) -> ExpectedHost:
    """The concerns that a run is about: what else a host may need is left to an apply."""
    if only is None:
        return expected
    return replace(expected, concerns=tuple(concern for concern in expected.concerns if concern.name in only))


# Operations


def carry_out(
    name: str, act: Callable[[PyinfraHost, ConcernPlan], None] | None = None
) -> Generator[FunctionCommand, None, None]:
    """The body of every operation: say why nothing is to do, or do the changes of concern `name`.

    `act` carries them out where more than one script is needed. Code here runs once while pyinfra prepares and once
    while it executes, so it only reads.
    """
    host: PyinfraHost = context.host
    decided, error = decide(host)
    if decided is None:
        yield FunctionCommand(fail, (error,), {})
        return
    todo = decided.concern(name)
    if not todo.changes:
        host.noop(f"{name} is as declared")
        return
    if not host.state.is_executing:
        _show(host, todo)
    yield FunctionCommand(_carry_out, (name, act or run_changes), {})


def locked() -> Generator[FunctionCommand, None, None]:
    """The first operation: a host that has changes is locked before anything is written on any host."""
    host: PyinfraHost = context.host
    decided, error = decide(host, hopeful=True)
    if decided is None:
        yield FunctionCommand(fail, (error,), {})
    elif decided.changes:
        yield FunctionCommand(_lock, (), {})
    else:
        host.noop("nothing to change here")


def _lock(state: State, host: PyinfraHost) -> bool:
    try:
        ensure_locked(host)
        _still_as_planned(host, run_of(host))
    except CallfleetError as error:
        return fail(state, host, str(error))
    return True


def unlocked() -> Generator[FunctionCommand, None, None]:
    """The last operation: the lock is given back."""
    host: PyinfraHost = context.host
    decided, _ = decide(host)
    executing = host.state.is_executing
    if not (is_locked(host) if executing else decided is not None and decided.changes):
        host.noop("nothing was locked here")
        return
    yield FunctionCommand(lambda state, host: release(host), (), {})


def decide(host: PyinfraHost, *, hopeful: bool = False) -> tuple[HostPlan | None, str]:
    """All changes of a host, or why they cannot be told. Never raises: that would stop the run for every host."""
    try:
        run, actual = run_of(host), snapshot(host)
        if run.error or run.untold:
            return None, run.error or run.untold
        if newer := _newer(actual):
            return None, f"{newer} wrote this host, and this is {__version__}: upgrade callfleet here, then run again"
        decided = host_plan(host, hopeful=hopeful)
        if not run.carried_out:
            run.registered_at_first = _registered_before(host)
        if decided.changes and not host.state.is_executing and not run.planned_fingerprint:
            run.planned_fingerprint = actual.fingerprint()
    except CallfleetError as error:
        return None, str(error)
    except Exception as error:  # see above
        logger.debug(traceback.format_exc())
        return None, f"what this host needs could not be decided: {type(error).__name__}: {error}"
    return decided, ""


def _newer(actual: Actual) -> str:
    """The version that wrote the host's mark, if it is newer than this one: its files may mean what we cannot know."""
    mark = actual.site
    if mark is None or isinstance(mark, Unknown):
        return ""
    said = str(mark.get("callfleet", ""))
    return f"callfleet {said}" if _version(said) > _version(__version__) else ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _carry_out(state: State, host: PyinfraHost, name: str, act: Callable[[PyinfraHost, ConcernPlan], None]) -> bool:
    run = run_of(host)
    try:
        ensure_locked(host)
        _still_as_planned(host, run)
        todo = changes(host, name)
        _show(host, todo)
        todo = _decide_again(host, todo)
        if todo.blocked:
            raise StepError("; ".join(str(change) for change in todo.blocked))
        if todo.changes:
            act(host, todo)
        run.carried_out += todo.changes
    except CallfleetError as error:
        return fail(state, host, f"{name}: {error}")
    return True


def fail(state: State, host: PyinfraHost, reason: str) -> bool:
    """Fails this host's operation, and no other host's, with a reason."""
    run_of(host).errors.append(reason)
    tell(host, logger.error, reason, "red")
    return False


def _decide_again(host: PyinfraHost, todo: ConcernPlan) -> ConcernPlan:
    """What was blocked because the host could not tell may be tellable now: this run has just mended what was asked."""
    run = run_of(host)
    deadline = time.monotonic() + STARTED_SECONDS
    while run.carried_out and todo.blocked and all(change.kind == "setting" for change in todo.blocked):
        fresh = _probe(host, run)
        if run.error:
            raise StepError(run.error)
        run.snapshot = fresh
        todo = changes(host, todo.name)
        if not todo.blocked:
            _list(host, todo)
        elif time.monotonic() > deadline:
            break
        else:
            gevent.sleep(1)
    return todo


def _still_as_planned(host: PyinfraHost, run: HostRun) -> None:
    """Before the first write, and under the lock: the host must still be what the shown plan was made for.

    Where no plan was shown, it is made anew: another run may have had the host until just now.
    """
    if run.checked:
        return
    run.checked = True
    fresh = _probe(host, run)
    if run.error:
        raise StepError(f"{run.error}; nothing was done here, run again")
    if run.planned_fingerprint and fresh.fingerprint() != run.planned_fingerprint:
        raise StepError("the host changed since the plan was shown; nothing was done here, run again")
    run.snapshot = fresh


def _list(host: PyinfraHost, todo: ConcernPlan) -> None:
    for change in todo.changes:
        logger.info(f"{host.print_prefix}  {change}")


def _show(host: PyinfraHost, todo: ConcernPlan) -> None:
    """The plan, a line a change, once; with --diff the content too, secrets left out."""
    run = run_of(host)
    if todo.name in run.shown:
        return
    run.shown.add(todo.name)
    _list(host, todo)
    if host.state.config.DIFF:
        changed = [c for c in todo.changes if c.kind == "file" and isinstance(c.item, File)]
        shown = [c for c in changed if isinstance(c.item, File) and not c.item.secret]
        readable = [change.subject for change in shown if change.word is Word.UPDATE]
        before = read_files(host, readable) if readable else {}
        for change in changed:
            if isinstance(change.item, File):
                for line in file_diff(change.item, before.get(change.subject)):
                    logger.info(f"{host.print_prefix}    {line}")


def run_changes(host: PyinfraHost, todo: ConcernPlan) -> None:
    """Carry out plain changes in one remote script."""
    run_script(host, script(todo.changes))


def look_again(host: PyinfraHost) -> list[Change]:
    """Probe once more and plan once more: what is left to do. Raises StepError when the host does not answer."""
    run = run_of(host)
    run.snapshot = _probe(host, run)
    if run.error:
        raise StepError(run.error)
    return list(host_plan(host).changes)


def not_reached(host: PyinfraHost) -> list[str]:
    """Servers that this run registered with the ingress on `host`, and that its own health check does not reach.

    To be asked after `look_again`. Waits for the checks of servers that are new.
    """
    run = run_of(host)
    fresh = _registered(host, hopeful=False) - run.registered_at_first
    if "ingress" not in run.context.host.roles or not fresh:
        return []
    deadline = time.monotonic() + CHECKED_SECONDS
    while (lines := _down(run, fresh)) and time.monotonic() < deadline:
        gevent.sleep(1)
        run.snapshot = _probe(host, run)
        if run.error:
            raise StepError(run.error)
    return lines


def _down(run: HostRun, names: frozenset[str]) -> list[str]:
    proxy = None if run.snapshot is None else run.snapshot.proxy(ADMIN_SOCKET)
    if proxy is None or isinstance(proxy, Unknown):
        return ["the ingress does not say which fleet hosts it reaches"]
    hint = "look at its certificates, its firewall and /health/fleet"
    return [
        f"the ingress does not reach {one.name} ({one.backend}: {one.status}): {hint}"
        for one in proxy.servers
        if one.name in names and not one.status.startswith("UP")
    ]


def half_registrations(host: PyinfraHost) -> list[str]:
    """Fleet hosts that this run registered on one side only, because the other side was not part of it.

    To be asked before `look_again`: afterwards the host's own mark names them too.
    """
    site = run_of(host).context.site
    active = {one.name for one in host.state.inventory.get_active_hosts()}
    here = run_of(host).context.host
    names = sorted(_registered(host, hopeful=False) - _registered_before(host))
    lines = []
    missing_ingress = [one.name for one in site.ingress_hosts if one.name not in active]
    app = site.app_host
    if "ingress" in here.roles and app is not None and app.name not in active and names:
        there = f"{app.name} (API, Dialler) is not in this run"
        lines.append(f"half registration: {', '.join(names)} inbound only, {there}")
    if "app" in here.roles and missing_ingress and names:
        there = f"{', '.join(missing_ingress)} not in this run"
        lines.append(f"half registration: {', '.join(names)} outbound only, {there}")
    return lines
