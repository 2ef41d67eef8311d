"""pyinfra inside the `callfleet` command: connect to a site's hosts, read them, and run deploy.py over them.

The same inventory, operations and order as `pyinfra inventories/<site>.py deploy.py`. One of the modules that know
pyinfra's internals.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import gevent
import pyinfra
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_inventory, ctx_state

from callfleet.actual import Actual
from callfleet.desired import expected_host
from callfleet.desired.context import Context
from callfleet.errors import CallfleetError
from callfleet.expected import ExpectedHost, File
from callfleet.inventory import groups, refuse_unedited, refuse_unusable
from callfleet.plan import HostPlan, Word
from callfleet.pyinfra_adapter import decide, run_of, snapshot, use_site
from callfleet.pyinfra_remote import StepError, ask, read_files, release_all, run_record, run_script, stream
from callfleet.site import Site
from callfleet.templates import ROOT

T = TypeVar("T")
K = TypeVar("K")


@dataclass
class Look:
    """What one host is and needs. `plan` is None where `error` says why it cannot be told."""

    host: str
    plan: HostPlan | None
    error: str
    actual: Actual
    context: Context
    before: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a run ended on one host: changed, unchanged, pending, failed or not reached."""

    host: str
    outcome: str
    changes: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class Session:
    """A site's hosts, connected. A context manager: locks are given back and connections closed at its end.

    `limit` names hosts, fleets or roles; `only` the concerns that a run is about, None: all. The site may be one that
    is not written to its file yet. Without `credentials` hosts are only to be asked: whether the site's secrets and
    certificates are of use does not matter then, and a plan that needs one that is not there cannot be told.
    """

    def __init__(
        self,
        site: Site,
        limit: Collection[str] = (),
        *,
        quiet: bool = True,
        only: Collection[str] | None = None,
        credentials: bool = True,
    ) -> None:
        refuse_unedited(site)
        chosen_names = limited(site, limit) if limit else None
        if credentials:
            refuse_unusable(site, chosen_names)
        use_site(site)
        self.site = site
        self.unreached: dict[str, str] = {}
        self._reached: list[PyinfraHost] = []
        _log(quiet)
        hub = gevent.get_hub()
        # Ctrl-C is told by who ends, not by gevent with a traceback.
        hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)
        made = groups(site)
        named: dict[str, Any] = {name: (hosts, {}) for name, hosts in made.items() if name != "all"}
        inventory = Inventory((made["all"], {}), **named)  # type: ignore[no-untyped-call]
        config = Config()  # type: ignore[no-untyped-call]
        self.state = State(check_for_changes=True)
        self.state.cwd = str(ROOT)
        for context, value in ((ctx_state, self.state), (ctx_config, config), (ctx_inventory, inventory)):
            context.set(value)  # type: ignore[no-untyped-call]
        chosen = None if chosen_names is None else [host for host in inventory if host.name in chosen_names]
        self.state.init(inventory, config, initial_limit=chosen)
        self.state.add_callback_handler(_Connections(self.unreached))  # type: ignore[no-untyped-call]
        if only is not None:
            for host in inventory:
                run_of(host).only = frozenset(only)

    def __enter__(self) -> Session:
        self.state.set_stage(StateStage.Connect)
        try:
            connect_all(self.state)
        except PyinfraError:
            if self.hosts:
                raise
        self.state.set_stage(StateStage.Prepare)
        return self

    def __exit__(self, *_: object) -> None:
        release_all()
        if self.state.activated_hosts:
            disconnect_all(self.state)

    @property
    def hosts(self) -> list[PyinfraHost]:
        """The hosts that were reached and have not failed, in the order of the site file."""
        active = {host.name: host for host in self.state.active_hosts}
        return [active[host.name] for host in self.site.hosts if host.name in active]

    def name_plan(self, plan: str) -> None:
        """The plan's word in locks and journals, instead of a random one."""
        run_record(self.state).plan = plan

    def each(self, act: Callable[[PyinfraHost], T], hosts: Iterable[PyinfraHost] | None = None) -> dict[str, T]:
        """Do something on all hosts at once; what it returned by host name. An exception of one is raised."""

        def there(host: PyinfraHost) -> T:
            with ctx_host.use(host):
                return act(host)

        jobs = {host.name: gevent.spawn(there, host) for host in (self.hosts if hosts is None else hosts)}
        gevent.joinall(list(jobs.values()), raise_error=True)
        return {name: job.value for name, job in jobs.items()}

    def ask(self, host: str, script: str) -> str:
        """Run a script that reads on one host; its output. StepError, with the host's name, when it fails."""
        with self._there(host) as found:
            return ask(found, script)

    def stream(self, jobs: Mapping[K, tuple[str, str, Callable[[int, bytes], None]]]) -> dict[K, int | StepError]:
        """Run scripts (host, script, who hears it) all at once, to their ends; exit codes, or why there is none."""
        hosts = {host.name: host for host in self.hosts}

        def there(name: str, script: str, heard: Callable[[int, bytes], None]) -> int | StepError:
            if name not in hosts:
                return StepError(f"not reached: {self.unreached.get(name, 'it failed')}")
            try:
                with ctx_host.use(hosts[name]):
                    return stream(hosts[name], script, heard)
            except StepError as error:
                return error

        running = {key: gevent.spawn(there, *job) for key, job in jobs.items()}
        gevent.joinall(list(running.values()), raise_error=True)
        return {key: job.value for key, job in running.items()}

    # Looking

    def look(self, *, content: bool = False) -> dict[str, Look]:
        """Probe and plan every host; with `content` also read the files that would change, for their diffs."""
        self.each(snapshot)  # a plan asks other hosts' snapshots too

        def look(host: PyinfraHost) -> Look:
            plan, error = decide(host, hopeful=True)
            found = Look(host.name, plan, error, snapshot(host), run_of(host).context)
            if content and plan is not None:
                paths = [c.subject for c in plan.changes if c.word is Word.UPDATE and isinstance(c.item, File)]
                secret = {c.subject for c in plan.changes if isinstance(c.item, File) and c.item.secret}
                if readable := [path for path in paths if path not in secret]:
                    found.before = read_files(host, readable)
            return found

        return self.each(look)

    def answers(self, scripts: Mapping[str, str]) -> dict[str, str]:
        """Run a reading script on each of the named hosts that were reached, all at once; their outputs."""
        chosen = [host for host in self.hosts if host.name in scripts]
        return self.each(lambda host: ask(host, scripts[host.name]), chosen)

    def outcomes(self, script: str, seconds: float) -> dict[str, str | StepError]:
        """Run a reading script on every host that was reached, all at once; its output, or why there is none."""

        def one(host: PyinfraHost) -> str | StepError:
            try:
                return ask(host, script, seconds=seconds)
            except StepError as error:
                return error

        return self.each(one)

    def probe(self) -> dict[str, tuple[Actual, str, float]]:
        """What each host is, without a plan: the probe's answer, why it cannot be worked with, its clock's skew."""

        def one(host: PyinfraHost) -> tuple[Actual, str, float]:
            actual = snapshot(host)
            return actual, run_of(host).error, run_of(host).skew

        return self.each(one)

    def run(self, host: str, script: str) -> list[str]:
        """Run a script that writes on one host, under the lock, to its end; its output. StepError as above."""
        with self._there(host) as found:
            return run_script(found, script)

    @contextmanager
    def _there(self, name: str) -> Iterator[PyinfraHost]:
        found = next((one for one in self.hosts if one.name == name), None)
        if found is None:
            raise StepError(f"{name}: not reached: {self.unreached.get(name, 'it failed')}")
        try:
            with ctx_host.use(found):
                yield found
        except StepError as error:
            raise StepError(f"{name}: {error}") from error

    def expected(self, host: str) -> ExpectedHost:
        """What one host must be, made from nothing found."""
        return expected_host(run_of(next(one for one in self.hosts if one.name == host)).context)

    def forget(self) -> None:
        """The next look probes again; a host that did not answer may answer then."""
        for host in self.hosts:
            run = run_of(host)
            run.snapshot, run.error = None, ""

    # Acting

    def apply(self) -> list[Ended]:
        """Run deploy.py over the hosts, as plain pyinfra does; how it ended on each host of the run."""
        from pyinfra_cli.util import load_deploy_file

        for host in self.hosts:
            run_of(host).shown |= {concern.name for concern in _concerns(host)}
        self._reached = self.hosts
        try:
            load_deploy_file(self.state, str(ROOT / "deploy.py"))
            self.state.set_stage(StateStage.Execute)
            run_ops(self.state)
        except PyinfraError as error:
            if self.hosts:
                raise CallfleetError(f"the run ended early: {error}") from error
        return self.ended()

    def ended(self) -> list[Ended]:
        """How it ended so far, on each host of the run."""
        away = [Ended(name, "not reached", errors=(why,)) for name, why in self.unreached.items()]
        return [*map(self._ended, self._reached), *away]

    def _ended(self, host: PyinfraHost) -> Ended:
        run = run_of(host)
        failed = host in self.state.failed_hosts
        outcome = "failed" if failed else "pending" if run.pending else "changed" if run.carried_out else "unchanged"
        changes = tuple(str(change) for change in run.carried_out)
        return Ended(host.name, outcome, changes, tuple(run.pending), tuple(run.errors))


def _concerns(host: PyinfraHost) -> Any:
    decided, _ = decide(host, hopeful=True)
    return decided.concerns if decided else ()


def limited(site: Site, patterns: Collection[str]) -> set[str]:
    """Hosts that are named: by host, fleet or role. CallfleetError for any other name, and for nobody."""
    known: dict[str, list[str]] = {host.name: [host.name] for host in site.hosts}
    for fleet in site.fleets:
        known.setdefault(fleet.name, []).extend(fleet.hosts)
    for role in ("fleet", "ingress", "app"):
        known.setdefault(role, []).extend(host.name for host in site.hosts if role in host.roles)
    if unknown := [name for name in patterns if name not in known]:
        raise CallfleetError(
            f"{site.name} has no host, fleet or role named {', '.join(unknown)}. It has: {', '.join(sorted(known))}"
        )
    if not (found := {host for name in patterns for host in known[name]}):
        raise CallfleetError(f"no host of {site.name} is meant by {', '.join(patterns)}: nothing to look at or to do")
    return found


class _Connections(BaseStateCallback):
    """Keeps why a host could not be reached."""

    def __init__(self, unreached: dict[str, str]) -> None:
        self.unreached = unreached

    def host_connect_error(self, state: State, host: PyinfraHost, error: object) -> None:  # type: ignore[override]
        said = str(error)
        if "host key" in said.lower():
            said += f" Next, if it was changed or is new: callfleet host pin {host.name}"
        self.unreached[host.name] = said


def _log(quiet: bool) -> None:
    """pyinfra's own lines on standard error, as its command shows them; none of them when `quiet`."""
    from pyinfra_cli.log import setup_logging

    pyinfra.is_cli = True
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    logger = logging.getLogger("pyinfra")
    logger.handlers.clear()
    if quiet:
        logger.setLevel(logging.CRITICAL)
        logger.addHandler(logging.NullHandler())
    else:
        setup_logging(logging.INFO, None)
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
