"""What carries a lab's label is found and removed; what does not is never touched."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab import cgroups, mounts, network
from lab.model import Lab, label

RULES = f"""-P FORWARD ACCEPT
-A FORWARD -i docker0 -j ACCEPT
-A FORWARD -i cfl1 -m comment --comment {label("demo")} -j ACCEPT
-A FORWARD -i cfl2 -m comment --comment {label("demo-two")} -j ACCEPT
-A FORWARD -i eth0 -m comment --comment "about {label("demo")}" -j ACCEPT
"""
LINKS = (
    '[{"ifname": "eth0"}, {"ifname": "cfl1", "ifalias": "callfleet-lab-demo"},'
    ' {"ifname": "cfl2", "ifalias": "callfleet-lab-demo-two"}]'
)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been run, on a machine with the rules and links above."""
    ran: list[str] = []

    def tool(*command: str) -> str:
        ran.append(" ".join(command))
        if "-S" in command:
            return RULES if "filter" in command else ""
        return LINKS if "-json" in command else ""

    def succeeds(*command: str) -> bool:
        ran.append(" ".join(command))
        return True

    monkeypatch.setattr(network, "tool", tool)
    monkeypatch.setattr(network, "succeeds", succeeds)
    return ran


def test_only_rules_and_links_with_exactly_this_label_go(commands: list[str]) -> None:
    """A lab whose name begins alike, Docker's rules and a comment that merely mentions the label stay."""
    network.remove("demo")
    changes = [c for c in commands if " -D " in c or "delete" in c]
    assert changes == [
        "iptables -w -t filter -D FORWARD -i cfl1 -m comment --comment callfleet-lab-demo -j ACCEPT",
        "ip link delete cfl1",
    ]


def test_bridges_tell_which_labs_left_something(commands: list[str]) -> None:
    """`down --all` finds a lab whose directory is gone."""
    assert network.labelled() == {"demo", "demo-two"}


def test_every_rule_carries_the_label() -> None:
    """A rule without it could never be removed."""
    for _, rule in network._rules(Lab("demo", 1, "trixie", ("hub",))):
        assert rule[rule.index("--comment") + 1] == label("demo")


def test_processes_are_found_by_group_and_killed_keeper_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper would boot the host again. A neighbour with a longer name lives."""
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    walked = list({sleepers[0].pid, sleepers[1].pid})
    if walked[0] == sleepers[0].pid:  # the keeper is the one that a walk over both would meet last
        sleepers[0], sleepers[1] = sleepers[1], sleepers[0]
    groups = [f"{label('demo')}/hub/keeper", f"{label('demo')}/hub/host", f"{label('demo-two')}/hub/host"]
    for group, sleeper in zip(groups, sleepers, strict=True):
        (tmp_path / group).mkdir(parents=True)
        (tmp_path / group / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    killed: list[int] = []

    def kill(pid: int, signum: int) -> None:
        assert signum == signal.SIGKILL
        killed.append(pid)
        real_kill(pid, signum)
        for path in tmp_path.rglob("cgroup.procs"):  # what the kernel does in a real hierarchy
            if path.read_text() == f"{pid}\n":
                path.write_text("")

    real_kill = os.kill
    monkeypatch.setattr(os, "kill", kill)
    assert cgroups.processes(label("demo")) == {sleepers[0].pid, sleepers[1].pid}
    assert cgroups.kill(label("demo"))
    assert killed == [sleepers[0].pid, sleepers[1].pid]
    assert sleepers[2].poll() is None
    monkeypatch.undo()
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()


def test_a_process_that_does_not_die_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`down` says so instead of deleting under it."""
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [tmp_path])
    monkeypatch.setattr(cgroups, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(os, "kill", lambda pid, signum: None)
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / "cgroup.procs").write_text("424242\n")
    begun = time.monotonic()
    assert not cgroups.kill("stuck")
    assert time.monotonic() - begun < 5


def test_mounts_below_are_listed_deepest_first_without_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/labs/demo-two` is not below `/labs/demo`; a name with a space is read as the kernel writes it."""
    table = "".join(
        f"1 1 0:1 / {point} rw - overlay x rw\n"
        for point in ("/", "/labs/demo/a", "/labs/demo/a/b", "/labs/demo-two/c", r"/labs/demo/with\040space")
    )
    monkeypatch.setattr(Path, "read_text", lambda self: table)
    found = mounts.below(Path("/labs/demo"))
    assert found[0] == Path("/labs/demo/a/b")
    assert set(found) == {Path("/labs/demo/a/b"), Path("/labs/demo/a"), Path("/labs/demo/with space")}


def test_delete_refuses_while_something_is_mounted_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting through a mount would delete somebody else's files."""
    (tmp_path / "kept").touch()
    monkeypatch.setattr(mounts, "below", lambda directory: [directory / "mounted"])
    monkeypatch.setattr(mounts, "succeeds", lambda *command: False)
    with pytest.raises(mounts.LabError, match="cannot be unmounted"):
        mounts.delete(tmp_path)
    assert (tmp_path / "kept").exists()
