"""Control groups of the lab's hosts: they bound a host, and they are the label by which its processes are found.

Below `callfleet-lab-<lab>/<host>` the keeper and the host have a group each, because a version 2 group with children
may not have processes of its own. Every mounted hierarchy has the same tree.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

KEEPER = "keeper"
PAYLOAD = "host"
WANTED = "+cpuset +cpu +io +memory +pids"
KILL_SECONDS = 10.0


def hierarchies() -> list[Path]:
    """Roots of all mounted control group hierarchies of either version."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            roots.append(Path(fields.split()[4]))
    return roots


def create(label: str) -> None:
    """Make the label's groups in every hierarchy, ready to take processes."""
    for root in hierarchies():
        group = root
        for part in Path(label).parts:
            _enable(group)
            group = _child(group, part)
        _enable(group)
        for leaf in (KEEPER, PAYLOAD):
            _child(group, leaf)


def enter(label: str, leaf: str) -> None:
    """Move this process into the label's group."""
    for root in hierarchies():
        (root / label / leaf / "cgroup.procs").write_text(f"{os.getpid()}\n")


def processes(label: str) -> set[int]:
    """Process ids in the label's groups, at any depth and in any hierarchy."""
    found: set[int] = set()
    for root in hierarchies():
        for listing in (root / label).rglob("cgroup.procs"):
            with suppress(OSError):
                found.update(int(pid) for pid in listing.read_text().split())
    return found - {0}


def kill(label: str) -> bool:
    """Kill every process of the label, keeper first, until none is left; False if some stay after KILL_SECONDS."""
    deadline = time.monotonic() + KILL_SECONDS
    keepers = {path for root in hierarchies() for path in (root / label).rglob(f"{KEEPER}/cgroup.procs")}
    first = {int(pid) for path in keepers for pid in path.read_text().split()}
    while left := processes(label):
        for pid in (first & left) or left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def remove(label: str) -> None:
    """Remove the label's empty groups; a group that still has processes stays."""
    for root in hierarchies():
        groups = [path for path in (root / label).rglob("*") if path.is_dir()]
        for group in [*sorted(groups, reverse=True), root / label]:
            with suppress(OSError):
                group.rmdir()


def _child(group: Path, name: str) -> Path:
    child = group / name
    child.mkdir(exist_ok=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1: a process cannot enter while they are empty
        mine = child / setting
        if not (group / "cgroup.controllers").exists() and mine.exists() and not mine.read_text().strip():
            mine.write_text((group / setting).read_text())
    return child


def _enable(group: Path) -> None:
    """Version 2: pass on the controllers. Each alone, because one that is missing would refuse them all."""
    control = group / "cgroup.subtree_control"
    if control.exists():
        for controller in WANTED.split():
            with suppress(OSError):
                control.write_text(controller)
