"""What a run costs on the wire, and what a host that does not answer costs the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from callfleet.lock import RENEW_SECONDS
from lab import cgroups, hosts
from tests.lab.fleet import ROOT, STACK, WORKERS, Converge, Fleet

CONNECT_SECONDS = 4
PROBE_SECONDS = 60
# What a run of the other hosts takes beside the waiting, on a machine that is busy with other things.
OTHERS_SECONDS = 40


def counted(fleet: Fleet, report: Path, *arguments: str) -> tuple[Converge, list[dict[str, Any]]]:
    """pyinfra with every SSH channel written down."""
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("counted.py")),
            str(report),
            f"inventories/{fleet.lab.site}.py",
            "deploy.py",
            *arguments,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYINFRA_PROGRESS": "off", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    channels = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    return Converge(done.returncode, done.stdout + done.stderr, time.monotonic() - began), channels


@pytest.mark.parametrize("how", ["-y", "--dry"])
def test_a_run_with_nothing_to_do_costs_one_command_per_host(fleet: Fleet, tmp_path: Path, how: str) -> None:
    """One probe and nothing else, without SFTP, on sockets that do not wait for more to send."""
    fleet.converge()
    done, channels = counted(fleet, tmp_path / "channels", how)
    assert done.code == 0, done.output[-3000:]
    assert Counter(one["peer"] for one in channels) == {host.address: 1 for host in fleet.lab.hosts}
    assert {one["kind"] for one in channels} == {"exec_command"}
    assert all(one["nodelay"] for one in channels)
    assert all(0 < one["user_timeout"] <= 60_000 for one in channels)
    assert all(one["argument_bytes"] < 120_000 for one in channels), "the kernel takes 128 KiB as one argument"


def test_a_file_that_changes_costs_few_commands_and_no_upload(fleet: Fleet, tmp_path: Path) -> None:
    """Probe, lock, probe under the lock, the script, the look afterwards, unlock; the counter sees them (control)."""
    name = fleet.fleet_names[0]
    fleet.converge()
    fleet.ssh(name, "echo '# by hand' >> /etc/apt/apt.conf.d/60callfleet")
    done, channels = counted(fleet, tmp_path / "channels", "-y")
    assert done.code == 0, done.output[-3000:]
    assert done.planned == {f"{name}: update file /etc/apt/apt.conf.d/60callfleet: content differs"}
    counts = Counter(one["peer"] for one in channels)
    address = fleet.lab.host(name).address
    renewals = range(int(done.seconds // RENEW_SECONDS) + 1)  # a lock that is held for longer is renewed
    assert counts.pop(address) - 6 in renewals
    assert set(counts.values()) == {1}
    assert {one["kind"] for one in channels} == {"exec_command"}


@contextmanager
def quick_timeout(fleet: Fleet) -> Iterator[None]:
    """The site with a short limit for connecting."""

    def change(data: dict[str, Any]) -> None:
        data["ssh"]["connect_timeout_seconds"] = CONNECT_SECONDS

    with fleet.edited(change):
        yield


@contextmanager
def something_to_do(fleet: Fleet, *names: str) -> Iterator[None]:
    """A harmless difference on these hosts, by which one sees that they were converged."""
    for name in names:
        fleet.ssh(name, "echo '# by hand' >> /etc/apt/apt.conf.d/60callfleet")
    yield
    for name in names:
        assert "by hand" not in fleet.ssh(name, "cat /etc/apt/apt.conf.d/60callfleet"), f"{name} was held up"


def test_a_host_without_power_is_named_and_does_not_hold_up_the_others(fleet: Fleet) -> None:
    """The others are converged, the run fails and says who, within the site's limit."""
    off, on = fleet.fleet_names
    hosts.power_off(fleet.lab.host(off))
    try:
        with quick_timeout(fleet), something_to_do(fleet, "hub", on):
            done = fleet.pyinfra("-y", timeout=CONNECT_SECONDS + OTHERS_SECONDS)
        assert done.code == 1
        assert f"[{off}]" in done.output
        assert "Could not connect" in done.output or "timed out" in done.output
        assert "Traceback" not in done.output
        assert done.seconds < CONNECT_SECONDS + OTHERS_SECONDS
    finally:
        hosts.start(fleet.lab.host(off))
        hosts.wait_for_ssh(fleet.lab.host(off))
    serving_again(fleet, off)
    assert fleet.converge().changed == 0


def serving_again(fleet: Fleet, name: str) -> None:
    """Until a host that was started has published every slot, which its own unit does without a run."""
    active = f"systemctl is-active stack@{STACK}.service || true"
    fleet.until(lambda: fleet.ssh(name, active).strip() == "active", 90, f"{name} is back")
    fleet.until(lambda: [slot["state"] for slot in fleet.slots(name)] == ["idle"] * WORKERS, 30, f"slots of {name}")


@contextmanager
def frozen(fleet: Fleet, name: str) -> Iterator[None]:
    """Every process of a host stopped: its kernel still answers, and nothing else does."""
    pids = sorted(cgroups.processes(f"{fleet.lab.host(name).label}/{cgroups.PAYLOAD}"))
    assert pids
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those of these processes that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def test_a_host_that_accepts_and_says_nothing_is_given_up(fleet: Fleet) -> None:
    """Its TCP port opens, no SSH greeting comes: the same limit holds."""
    name, on = fleet.fleet_names
    with quick_timeout(fleet), something_to_do(fleet, "hub", on), frozen(fleet, name):
        done = fleet.pyinfra("-y", timeout=CONNECT_SECONDS + OTHERS_SECONDS)
    assert done.code == 1
    assert f"[{name}]" in done.output
    assert "Traceback" not in done.output
    fleet.until(lambda: hosts.answers(fleet.lab.host(name)), 30, f"{name} is back")


@pytest.mark.long
def test_a_probe_that_never_ends_is_given_up(fleet: Fleet) -> None:
    """A command on the host that hangs: that host fails with a sentence, the others are converged."""
    name, on = fleet.fleet_names
    # One of the commands that the probe runs without a limit of its own: it does not come back within the probe's.
    fleet.ssh(name, "printf '#!/bin/sh\\nexec sleep 75\\n' > /usr/local/bin/uname; chmod +x /usr/local/bin/uname")
    try:
        with something_to_do(fleet, "hub", on):
            done = fleet.pyinfra("-y", timeout=PROBE_SECONDS + OTHERS_SECONDS)
        assert done.code == 1
        assert f"[{name}]" in done.output
        assert "the probe" in done.output
        assert "Traceback" not in done.output
    finally:
        fleet.ssh(name, "rm -f /usr/local/bin/uname")
    fleet.converge()


@pytest.mark.long
def test_a_link_that_goes_silent_in_a_run_ends_for_its_host_alone(fleet: Fleet, tmp_path: Path) -> None:
    """Packets vanish after the connection is up: the kernel gives the socket up, the others are converged."""
    name, on = fleet.fleet_names
    address = fleet.lab.host(name).address
    rule = [
        "-s",
        address,
        "-p",
        "tcp",
        "--sport",
        "22",
        "-m",
        "comment",
        "--comment",
        f"callfleet-test-{fleet.lab.name}",
    ]
    with something_to_do(fleet, "hub", on):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("counted.py")), str(tmp_path / "channels"),
             f"inventories/{fleet.lab.site}.py", "deploy.py", "-y"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYINFRA_PROGRESS": "off", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            fleet.until((tmp_path / "channels").exists, 60, "the run is connected")
            subprocess.run(["iptables", "-w", "-I", "INPUT", *rule, "-j", "DROP"], check=True)
            output, _ = process.communicate(timeout=PROBE_SECONDS + 2 * OTHERS_SECONDS)
        finally:
            subprocess.run(["iptables", "-w", "-D", "INPUT", *rule, "-j", "DROP"], check=False)
            process.kill()
    assert process.returncode == 1, output[-3000:]
    assert f"[{name}]" in output
    assert "Traceback" not in output
