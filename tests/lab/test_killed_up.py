"""A `lab up` that is killed in the middle, for real: `lab down` leaves nothing of it on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import cgroups, inventory, network, paths
from lab.model import DEFAULT_SUITE, Lab, label
from tests.lab.conftest import NAME, lab_command
from tests.lab.fleet import ROOT

KILLED = f"{NAME}k"


def told(*command: str) -> list[str]:
    """A command's output, by lines."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def processes() -> set[int]:
    """Processes whose control group carries the label, by the kernel's own word on each; the dead do not count."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            groups, state = (process / "cgroup").read_text(), (process / "stat").read_text().rpartition(") ")[2][0]
        except OSError:
            continue
        if f"/{label(KILLED)}/" in groups and state not in "ZX":
            found.add(int(process.name))
    return found


def namespaces() -> set[str]:
    """Network namespaces in which a process lives."""
    return {line.strip() for line in told("lsns", "--noheadings", "--type", "net", "--output", "NS")}


def namespace(pid: str) -> str:
    """The network namespace of a process; empty when it is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())[5:-1]
    except OSError:
        return ""


def remains() -> dict[str, list[str]]:
    """Everything on this machine that belongs to the lab, by kind; kinds without anything are left out."""
    links = json.loads("".join(told("ip", "-json", "link", "show")))
    mine = {link["ifname"] for link in links if link.get("ifalias") == label(KILLED)}
    folders = [paths.labs() / KILLED, paths.labs() / f".trash-{KILLED}"]
    found = {
        "links": [link["ifname"] for link in links if link["ifname"] in mine or link.get("master") in mine],
        "rules": [
            line
            for table in network.TABLES
            for line in told("iptables", "-w", "-t", table, "-S")
            if label(KILLED) in line
        ],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{KILLED}/" in line],
        "groups": [str(path) for root in cgroups.hierarchies() for path in root.glob(f"{label(KILLED)}*")],
        "processes": sorted(map(str, processes())),
        "directories": [str(path) for path in folders if path.exists()],
        "site files": [str(path) for path in inventory.files(Lab(KILLED, 0, DEFAULT_SUITE, ())) if path.exists()],
    }  # fmt: skip
    return {kind: things for kind, things in found.items() if things}


def bridge() -> bool:
    """The network is there, and no host yet."""
    return bool(remains().get("links"))


def booted() -> bool:
    """A host's own processes run, mounted and in a namespace of its own."""
    found = remains()
    spaces = {namespace(pid) for pid in found.get("processes", [])} - {"", namespace("self")}
    return bool(found.get("mounts") and spaces) and len(found["processes"]) > 4


@pytest.mark.parametrize("point", [bridge, booted])
def test_nothing_is_left_of_an_up_that_was_killed(point: Callable[[], bool]) -> None:
    """kill -9 once the network, or a host, is there: the look finds it (control), and nothing any more after `down`."""
    lab_command("down", "--name", KILLED)
    assert remains() == {}
    before = namespaces()
    command = [sys.executable, "-m", "lab", "up", "--name", KILLED, "--hosts", "2"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as up:
        end = time.monotonic() + 60
        while not point():
            assert up.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
        up.kill()
        assert up.wait() == -9
    left = remains()
    try:
        assert "site files" not in left, "it was done already"
        assert {"links", "directories"} <= left.keys()
        if point is booted:
            assert {"rules", "mounts", "groups", "processes"} <= left.keys()
            own = set(filter(None, map(namespace, left["processes"]))) - before
            assert own, "a booted host has a namespace of its own"
    finally:
        lab_command("down", "--name", KILLED)
    assert remains() == {}
    if point is booted:
        assert not own & namespaces()
