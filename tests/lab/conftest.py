"""One lab of three real hosts for the whole run, converged once from bare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from lab.model import Lab
from tests.lab.fleet import STACK, Fleet
from tests.lab.look import FIGURES, in_rotation

# Tests send Ctrl-C to commands, which a shell's background job and all that it starts would ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)

FAILED = pytest.StashKey[bool]()
NAME = os.environ.get("CALLFLEET_TEST_LAB", "test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder needs lab hosts."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests measured."""
    if FIGURES:
        terminalreporter.section("figures")
        for figure in FIGURES:
            terminalreporter.line(figure)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fixtures are told when their test has failed."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


def lab_command(*arguments: str) -> None:
    """`callfleet lab ARGUMENTS`; its output only when it fails."""
    done = subprocess.run([sys.executable, "-m", "lab", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"lab {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def bare() -> Iterator[Fleet]:
    """Three bare hosts. A lab that is kept (CALLFLEET_KEEP_LAB=1) is used as it is found."""
    keep = os.environ.get("CALLFLEET_KEEP_LAB") == "1"
    if not keep:
        lab_command("down", "--name", NAME)
    lab_command("up", "--name", NAME, "--hosts", "3")
    yield Fleet(Lab.load(NAME))
    if not keep:
        lab_command("down", "--name", NAME)


@pytest.fixture(scope="session")
def converged(bare: Fleet) -> Fleet:
    """The same hosts after one converge."""
    done = bare.converge()
    assert done.pending == [], done.output[-3000:]
    return bare


@pytest.fixture
def repair(converged: Fleet, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Repairs what the test left if it has failed, so that the next one tells of itself."""

    def repair() -> None:
        if FAILED in request.node.stash:
            for host in converged.fleet_names:
                converged.ssh(host, f"slotctl ready {STACK} --wait 30", check=False)
            converged.pyinfra("-y")

    return repair


@pytest.fixture
def fleet(converged: Fleet, repair: Callable[[], None]) -> Iterator[Fleet]:
    """The converged hosts, idle before and after each test; no background call of a test may have been cut."""
    converged.wait_idle()
    converged.until(lambda: in_rotation(converged), 30, "the proxies have seen every slot")
    yield converged
    repair()
    converged.wait_idle()
    assert converged.cut() == []
