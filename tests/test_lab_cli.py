"""`callfleet lab` says clearly where it cannot run, and ends with the right exit code."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import hosts, lifecycle, requirements
from lab.cli import lab as command
from lab.errors import LabError
from lab.keeper import command as container
from lab.model import LabHost, allocate


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lab's state in a directory of the test's own."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence and the next command, exit code 1, no traceback."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(command, ["up"])
    assert result.exit_code == 1
    assert "needs root" in result.output
    assert "next: sudo" in result.output


def test_on_another_system_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried first."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LabError, match="this is darwin"):
        requirements.check_machine()


def test_a_state_directory_on_an_overlay_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlays do not nest: hosts would not boot, with an error that nobody understands."""
    monkeypatch.setattr(requirements, "tool", lambda *words: "overlayfs\n")
    with pytest.raises(LabError, match="CALLFLEET_LAB_DIR"):
        requirements.check_state()


def test_missing_packages_are_installed_with_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package that has the program, and nothing if all are there."""
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(requirements, "tool", lambda *words, env: ran.append(words))
    monkeypatch.setattr(requirements, "KEYRING", "/")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "systemd-nspawn" else f"/bin/{name}")
    requirements.install_missing(lambda step: None)
    assert [words[-1] for words in ran] == ["update", "systemd-container"]
    ran.clear()
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    requirements.install_missing(lambda step: None)
    assert ran == []


def test_missing_packages_without_apt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot help itself it says what is missing."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LabError, match="systemd-container"):
        requirements.install_missing(lambda step: None)


def test_an_unknown_lab_is_an_error_with_a_next_step() -> None:
    """`ssh` to a lab that is not there."""
    result = CliRunner().invoke(command, ["ssh", "--name", "nope", "hub"])
    assert result.exit_code == 1
    assert "callfleet lab up --name nope" in result.output


def test_ctrl_c_ends_cleanly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130 and how to go on."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle, "up", interrupted)
    result = CliRunner().invoke(command, ["up"])
    assert result.exit_code == 130
    assert "callfleet lab down" in result.output


def test_ssh_uses_nothing_of_the_callers_configuration() -> None:
    """The lab's key and pinned host keys only; a host key that is not pinned is refused."""
    words = hosts.ssh_command(allocate("demo", 1, "trixie").hub)
    assert words[:3] == ["ssh", "-F", "none"]
    assert "StrictHostKeyChecking=yes" in words
    assert words[-1] == "root@10.77.1.10"


def test_the_containers_name_and_disks_are_the_hosts_own() -> None:
    """Docker's directory is bound from a real file system."""
    host = LabHost("demo", 7, "eu1-a", 11, "trixie")
    words = container(host)
    assert "--machine=7-eu1-a" in words
    assert f"--bind={host.directory}/docker:/var/lib/docker" in words
    assert "--register=no" in words


def test_the_repository_names_no_mirror() -> None:
    """Package hosts come from the machine, never from this code."""
    sources = [*Path(hosts.__file__).parent.glob("*.py"), *Path(hosts.__file__).parent.glob("*.j2")]
    assert all("debian.org" not in path.read_text() for path in sources)
