"""What callfleet leans on in pyinfra 3.10, pinned; and that one host's trouble stays its own."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pyinfra
import pytest
from pyinfra import context
from pyinfra.api import Config, FunctionCommand, Inventory, State, StringCommand, operation
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import StateStage
from pyinfra.connectors.ssh import SSHConnector
from renderings import Dummies, expected
from site_files import REPOSITORY, valid, write_site

import callfleet.pyinfra_adapter as adapter
from callfleet.actual import Actual, Clock, Os, Unknown
from callfleet.credentials import opened, unusable
from callfleet.errors import CallfleetError
from callfleet.expected import Command, Concern, ExpectedHost, Item, Stack
from callfleet.plan import ConcernPlan
from callfleet.site import load_site
from operations import baseline, verify

SOURCES = [
    *(REPOSITORY / "operations").glob("*.py"),
    *(REPOSITORY / "callfleet").glob("*.py"),
    *(REPOSITORY / "callfleet/desired").glob("*.py"),
]


@pytest.fixture
def state() -> Iterator[State]:
    """A run whose one host is this machine, connected."""
    made = State(Inventory((["@local"], {})), Config())
    made.current_stage = StateStage.Connect
    connect_all(made)
    made.current_stage = StateStage.Prepare
    yield made
    disconnect_all(made)


def test_a_run_about_some_concerns_plans_no_other() -> None:
    """Unrelated drift is left to an apply."""
    made = expected(load_site(REPOSITORY / "inventories/prod.yml"), "calls-1")
    part = adapter._part(made, frozenset({"front", "mark"}))
    assert [concern.name for concern in part.concerns] == ["front", "mark"]
    assert adapter._part(made, None) is made


def test_the_version_is_the_one_that_is_pinned_here() -> None:
    """Version 4 moves to asyncio; another minor version has other internals."""
    assert metadata.version("pyinfra").startswith("3.10.")


# How pyinfra runs an operation


def test_a_generator_runs_to_its_first_yield_and_again_from_the_start(state: State) -> None:
    """Code before the first yield runs while preparing and while executing, told apart by `is_executing`."""
    seen: list[tuple[str, bool]] = []

    @operation()
    def watched() -> Iterator[FunctionCommand]:
        seen.append(("before", context.host.state.is_executing))
        yield FunctionCommand(lambda: None, (), {})
        seen.append(("after", context.host.state.is_executing))

    add_op(state, watched, name="watched")
    assert seen == [("before", False)]
    run_ops(state)
    assert seen == [("before", False), ("before", True), ("after", True)]


def test_with_yes_nothing_runs_before_execution(state: State) -> None:
    """`-y` turns change detection off: the first look happens while executing."""
    state.check_for_changes = False
    seen: list[bool] = []

    @operation()
    def watched() -> Iterator[FunctionCommand]:
        seen.append(context.host.state.is_executing)
        yield FunctionCommand(lambda: None, (), {})

    add_op(state, watched, name="watched")
    assert seen == []
    run_ops(state)
    assert seen == [True]


def test_a_function_with_state_and_host_is_called_with_them(state: State) -> None:
    """By the names of its parameters, with our arguments behind; False fails the operation."""
    seen: list[Any] = []

    def act(state: State, host: Any, name: str) -> bool:
        seen.append((state, host.name, name))
        return False

    @operation()
    def acting() -> Iterator[FunctionCommand]:
        yield FunctionCommand(act, ("x",), {})

    add_op(state, acting, name="acting")
    with pytest.raises(pyinfra.api.exceptions.PyinfraError, match="No hosts remaining"):
        run_ops(state)
    assert seen == [(state, "@local", "x")]
    assert [host.name for host in state.failed_hosts] == ["@local"]
    for ours in (adapter._carry_out, adapter.fail, verify._verify):
        assert list(inspect.signature(ours).parameters)[:2] == ["state", "host"]


def test_an_exception_in_a_function_fails_its_host_and_one_in_a_generator_the_run(state: State) -> None:
    """Why every decision of ours is caught before the first yield."""

    def broken() -> None:
        raise RuntimeError("in the function")

    @operation()
    def inside() -> Iterator[FunctionCommand]:
        yield FunctionCommand(broken, (), {})

    @operation()
    def outside() -> Iterator[FunctionCommand]:
        raise RuntimeError("in the generator")
        yield

    with pytest.raises(RuntimeError, match="in the generator"):
        add_op(state, outside, name="outside")
    add_op(state, inside, name="inside")
    with pytest.raises(pyinfra.api.exceptions.PyinfraError, match="No hosts remaining"):
        run_ops(state)


def test_standard_input_reaches_the_command(state: State) -> None:
    """`_stdin` is how a script travels: on no command line, in no file."""
    (host,) = state.inventory
    arguments, _ = pop_global_arguments(state, host, {})
    connector = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}
    assert "_stdin" in CONNECTOR_ARGUMENT_KEYS
    good, output = host.run_shell_command(StringCommand("sh", "-s"), **(connector | {"_stdin": "echo it; exit 0"}))
    assert (good, output.stdout_lines) == (True, ["it"])
    assert "_stdin" in inspect.getsource(SSHConnector.run_shell_command)


def test_what_else_is_used_is_there(state: State) -> None:
    """Names that the adapter reads from pyinfra's objects."""
    (host,) = state.inventory
    assert {one.name for one in state.inventory.get_active_hosts()} == {"@local"}
    assert state.is_executing is False
    assert state.config.DIFF is False
    assert callable(host.noop)
    assert callable(host.log_styled)
    assert isinstance(host.print_prefix, str)
    assert {"client", "make_paramiko_kwargs"} <= set(dir(SSHConnector))
    assert host.data.get("no_such_key") is None


def test_a_noop_is_no_change(state: State) -> None:
    """An operation that says why nothing is to do counts as unchanged."""

    @operation()
    def nothing() -> Iterator[FunctionCommand]:
        context.host.noop("it is as declared")
        return
        yield

    (found,) = add_op(state, nothing, name="nothing").values()
    assert found.will_change is False


@pytest.mark.parametrize("elsewhere", [False, True])
def test_our_packages_come_from_this_checkout(elsewhere: bool, tmp_path: Path) -> None:
    """pyinfra appends the working directory at the end of sys.path, so another package of the same name could win."""
    packages = ("operations", "facts", "callfleet")
    folder = tmp_path / "elsewhere"
    for name in packages:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
    (tmp_path / "inventory.py").write_text("hosts = ['@local']\n")
    code = "import importlib\n" + "".join(
        f"print('found', importlib.import_module('{name}').__path__[0])\n" for name in packages
    )
    (tmp_path / "deploy.py").write_text(code)
    environment = os.environ | {"PYINFRA_PROGRESS": "off"}
    environment.pop("PYTHONPATH", None)
    if elsewhere:  # the control: this is how it looks when another package wins
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [Path(sys.executable).with_name("pyinfra"), f"{tmp_path}/inventory.py", f"{tmp_path}/deploy.py", "--dry"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    found = re.findall(r"^found (.*)$", done.stdout, re.MULTILINE)
    root = folder if elsewhere else REPOSITORY
    assert [Path(path) for path in found] == [root / name for name in packages], done.stderr


# One host's trouble


class FakeHosts:
    """Two hosts of the tests' site, on this machine, whose probes answer what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = valid()
        site["stage"] = "lab"
        self.site = write_site(folder, site)
        for name in ("core_secret", "wildcard.pem", "ca.pem", "i.pem", "a.pem", "b.pem"):
            self.site.with_name(name).write_text("word\n")
            self.site.with_name(name).chmod(0o600)
        monkeypatch.setenv("ADMIN_TOKEN", "word")
        self.state = State(Inventory((["a", "b"], {"site_file": str(self.site)})), Config())
        for host in self.state.inventory:
            host.connected = True
            self.state.activate_host(host)
        self.state.current_stage = StateStage.Prepare
        self.answers: dict[str, Callable[[], Actual]] = {}
        monkeypatch.setattr(adapter, "_tune", lambda host: None)
        monkeypatch.setattr(adapter, "ensure_locked", lambda host: None)
        for host in self.state.inventory:
            monkeypatch.setattr(host, "get_fact", lambda fact, request, name=host.name: self.answers[name]())

    def run(self, act: Any) -> tuple[set[str], set[str]]:
        """Run one operation on both; names of the hosts that failed, and of those that went through."""
        with context.ctx_state.use(self.state):
            add_op(self.state, act, name="one")
            run_ops(self.state)
        failed = {host.name for host in self.state.failed_hosts}
        return failed, {host.name for host in self.state.inventory} - failed


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHosts:
    """Two hosts that answer like bare ones."""
    made = FakeHosts(tmp_path, monkeypatch)
    bare = Actual(os=Os("debian", "13", "trixie"))
    made.answers = {"a": lambda: bare, "b": lambda: bare}
    nothing = ExpectedHost("x", (Concern("baseline", ()),))
    monkeypatch.setattr(adapter, "expected_host", lambda context, actual=None: nothing)
    return made


def raising(error: BaseException) -> Callable[[], Actual]:
    """A probe that ends in this exception."""

    def probe() -> Actual:
        raise error

    return probe


@pytest.mark.parametrize(
    "answer",
    [
        raising(OSError("the link died")),
        raising(TimeoutError()),
        raising(EOFError()),
        raising(ValueError("the probe would be too long")),
        lambda: Actual.unread("the probe did not answer"),
    ],
    ids=["link", "timeout", "eof", "value", "unread"],
)
def test_a_probe_that_fails_fails_its_host_alone(answer: Callable[[], Actual], fake: FakeHosts) -> None:
    """The other host goes through, and the run ends by itself."""
    fake.answers["a"] = answer
    assert fake.run(baseline.prepare) == ({"a"}, {"b"})


@pytest.mark.parametrize("act", [baseline.prepare, verify.site], ids=["carry out", "verify"])
def test_an_exception_while_deciding_fails_its_host_alone(
    act: Any, fake: FakeHosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of one host that cannot be understood must not stop the fleet."""

    def decide(context: Any, actual: Actual | None = None) -> ExpectedHost:
        if actual is not None and context.host.name == "a":
            raise ValueError("daemon.json is nonsense")
        return ExpectedHost("x", ())

    monkeypatch.setattr(adapter, "expected_host", decide)
    assert fake.run(act) == ({"a"}, {"b"})
    assert "daemon.json is nonsense" in caplog.text


def test_an_exception_before_the_probe_fails_its_host_alone(fake: FakeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that cannot be read is found here only if it went away after the site was checked."""

    def decide(context: Any, actual: Actual | None = None) -> ExpectedHost:
        if context.host.name == "a":
            raise KeyError("gone")
        return ExpectedHost("x", ())

    monkeypatch.setattr(adapter, "expected_host", decide)
    assert fake.run(baseline.prepare) == ({"a"}, {"b"})


def test_a_host_whose_certificate_is_gone_can_be_looked_at_and_is_not_planned(
    fake: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for its slots and proxies, and says why there is no plan; also if the certificate comes back."""

    def decide(context: Any, actual: Actual | None = None) -> ExpectedHost:
        raise CallfleetError("file:a.pem: there is no file")

    monkeypatch.setattr(adapter, "expected_host", decide)
    host = next(iter(fake.state.inventory))
    request = adapter.run_of(host).request
    assert (len(request.stacks), len(request.haproxy_admin), request.files) == (1, 1, ())
    monkeypatch.setattr(adapter, "expected_host", lambda context, actual=None: one_change())
    assert adapter.decide(host) == (None, "file:a.pem: there is no file")
    assert not isinstance(adapter.snapshot(host).os, Unknown)


def one_change(name: str = "baseline") -> ExpectedHost:
    """A host that has one thing to do."""
    return ExpectedHost("x", (Concern(name, (Command("s", "file:/no", "present", "true"),)),))


def unlike(name: str) -> Actual:
    """A bare host with another name."""
    return Actual(os=Os("debian", "13", "trixie"), hostname=name, files={"/no": None})


def test_a_host_that_changed_since_its_plan_is_refused(fake: FakeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done there, the other host is converged, and what was shown is what is done."""
    monkeypatch.setattr(adapter, "expected_host", lambda context, actual=None: one_change())
    ran: list[str] = []
    monkeypatch.setattr(adapter, "run_changes", lambda host, todo: ran.append(host.name))
    answers = {"a": iter([unlike("a"), unlike("somebody else")]), "b": iter([unlike("b"), unlike("b")])}
    fake.answers = {name: (lambda each=each: next(each)) for name, each in answers.items()}
    assert fake.run(baseline.prepare) == ({"a"}, {"b"})
    assert ran == ["b"]


def test_a_blocked_concern_does_nothing(fake: FakeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is not acted upon, and not passed over either."""
    monkeypatch.setattr(adapter, "expected_host", lambda context, actual=None: one_change())
    fake.answers = {"a": lambda: Actual(os=Os("d", "13", "t")), "b": lambda: unlike("b")}
    ran: list[str] = []
    monkeypatch.setattr(adapter, "run_changes", lambda host, todo: ran.append(host.name))
    assert fake.run(baseline.prepare) == ({"a"}, {"b"})
    assert ran == ["b"]


def test_a_plan_is_made_once_while_nothing_changes_and_again_when_who_is_registered_does(
    fake: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation asks for it; rendering a host each time was most of a run's work."""
    made: list[frozenset[str]] = []

    def decide(context: Any, actual: Actual | None = None) -> ExpectedHost:
        if actual is not None:
            made.append(context.registered)
        return ExpectedHost("x", ())

    monkeypatch.setattr(adapter, "expected_host", decide)
    host = next(one for one in fake.state.inventory if one.name == "a")
    fake.answers["a"] = lambda: Actual(os=Os("debian", "13", "trixie"), site={"registered": ["b"]})
    assert adapter.host_plan(host) is adapter.host_plan(host)
    assert made == [frozenset({"a", "b"})]
    fake.state.is_executing = True
    adapter.host_plan(host)
    assert made[1:] == [frozenset()], "while executing, a host without a canary call is not registered"
    for one in fake.state.inventory:
        adapter.run_of(one).canary = True
    adapter.host_plan(host)
    assert made[2:] == [frozenset({"a", "b"})]
    adapter.run_of(host).snapshot = None
    adapter.host_plan(host)
    assert len(made) == 4


def test_a_host_outside_the_run_keeps_its_registration(fake: FakeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under --limit, who was not looked at is neither added nor dropped."""
    host, other = sorted(fake.state.inventory, key=lambda one: one.name)
    fake.state.active_hosts.discard(other)
    for registered, wanted in (([], {"a"}), (["b"], {"a", "b"})):
        adapter.run_of(host).snapshot = Actual(site={"registered": registered})
        assert adapter._registered(host, hopeful=True) == wanted


def test_secrets_are_resolved_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that asks its user for something asks once, for the check before connecting and for all hosts."""
    site = valid()
    site["secrets"]["core_secret"] = "command:sh -c 'echo asked >> asked; echo word'"
    path = write_site(tmp_path, site)
    unusable(load_site(path))
    for _ in range(2):
        assert opened(load_site(path)).secret("core_secret") == "word"
    assert path.with_name("asked").read_text() == "asked\n"
    unusable(load_site(path))
    assert path.with_name("asked").read_text() == "asked\nasked\n", "the next run asks again"


# Lint


def calls(path: Path) -> list[ast.Call]:
    """Every call in a source file."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def dotted(node: ast.expr) -> str:
    """The written name of what is called."""
    return ast.unparse(node)


def test_every_operation_in_deploy_has_a_name_and_a_line_of_its_own() -> None:
    """Unnamed ones print their arguments; two on one line would be merged into one."""
    deploy = REPOSITORY / "deploy.py"
    tree = ast.parse(deploy.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(found) >= 12
    for call in found:
        assert [keyword.arg for keyword in call.keywords] == ["name"], ast.unparse(call)
    lines = [call.lineno for call in found]
    assert len(set(lines)) == len(lines)
    assert len({ast.unparse(call.keywords[0].value) for call in found}) == len(found)
    top = {type(node) for node in tree.body}
    assert top <= {ast.Expr, ast.Import, ast.ImportFrom}, "no loop, no condition: order is read off the page"


def test_every_operation_is_in_deploy() -> None:
    """One that is written and never called changes nothing, and nobody would notice."""
    called = {dotted(call.func) for call in calls(REPOSITORY / "deploy.py")}
    written = set()
    for path in (REPOSITORY / "operations").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any("operation" in dotted(one) for one in node.decorator_list):
                written.add(f"{path.stem}.{node.name}")
    assert called == written


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_shell_operation_and_no_command_line_made_from_values(path: Path) -> None:
    """`server.shell` is never used; what runs is a constant command that reads its script from standard input."""
    for call in calls(path):
        name = dotted(call.func)
        assert not name.endswith("server.shell"), f"{path.name}:{call.lineno}"
        if name in ("StringCommand", "QuoteString"):
            assert all(isinstance(one, ast.Constant) for one in call.args), f"{path.name}:{call.lineno}"
            assert not call.keywords, f"{path.name}:{call.lineno}"
        for keyword in call.keywords:
            assert keyword.arg not in ("_env", "_sudo_password"), (
                f"{path.name}:{call.lineno}: visible in a process list"
            )
    imports = re.findall(r"^(?:from|import) (pyinfra[\w.]*)", path.read_text(), re.MULTILINE)
    assert not any(one.startswith("pyinfra.operations") for one in imports)


def test_only_the_adapter_knows_pyinfras_internals() -> None:
    """Elsewhere: what an operation is made of, and the current host."""
    allowed = {"pyinfra", "pyinfra.api", "pyinfra.api.host", "pyinfra.api.state"}
    for path in SOURCES:
        if not path.name.startswith("pyinfra_"):
            imports = set(re.findall(r"^(?:from|import) (pyinfra[\w.]*)", path.read_text(), re.MULTILINE))
            assert imports <= allowed, path


def test_no_command_that_is_run_holds_a_secret(tmp_path: Path) -> None:
    """Scripts name the files in which root keeps a secret, and never the secret."""
    site = load_site(write_site(tmp_path, valid()))
    for host in site.hosts:
        dummies = Dummies()
        items: tuple[Item, ...] = expected(site, host.name, dummies).items()
        for item in items:
            shown = [getattr(item, name, "") for name in ("script", "check", "wanted")]
            for value in dummies.used.values():
                assert value.decode() not in "".join(shown), item
        assert any(isinstance(item, Stack | Command) for item in items)


def test_the_helper_for_one_concern_is_empty_where_a_host_has_none() -> None:
    """An operation that does not concern a host is a noop there."""
    assert adapter.HostPlan("x", ()).concern("fleet") == ConcernPlan("fleet", ())


@pytest.mark.parametrize(("at", "skew"), [(1000, 0), (1009, 0), (940, 59), (1100, 90)])
def test_a_clock_is_off_only_outside_of_the_time_in_which_it_was_asked(
    at: int, skew: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked from 1000 to 1010 seconds: a slow answer is no wrong clock. Whole seconds leave one to doubt."""
    monkeypatch.setattr("callfleet.pyinfra_adapter.time.time", lambda: 1010.0)
    assert adapter._skew(replace(Actual(), clock=Clock(at, True)), 1000.0) == skew
