"""The `callfleet` command as operators run it: its output, its exit codes, its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from site_files import REPOSITORY, valid, write_site


def callfleet(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal."""
    return subprocess.run(
        [sys.executable, "-c", "from callfleet.cli import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_validate_lists_hosts_and_the_next_command(tmp_path: Path) -> None:
    """A valid site is summed up in a few lines on standard output."""
    done = callfleet("validate", str(write_site(tmp_path, valid())))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "acme: valid. 4 hosts, 12 call slots, release 2026.11.20."
    assert "Next: callfleet plan" in done.stdout


def test_validate_json_is_one_document(tmp_path: Path) -> None:
    """For programs: standard output holds JSON and nothing else."""
    done = callfleet("validate", str(write_site(tmp_path, valid())), "--json")
    answer = json.loads(done.stdout)
    assert (answer["schema"], answer["site"], len(answer["hosts"])) == (1, "acme", 4)
    assert answer["hosts"][0]["url"] == "https://a.acme.test"
    assert answer["to_edit"] == []


@pytest.mark.parametrize("name", ["local", "staging", "prod"])
def test_shipped_sites_are_found_by_name(name: str) -> None:
    """And those with documentation addresses say what to edit before anything can be applied."""
    done = callfleet("validate", name)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{name}: valid.")
    assert ("Before it can be applied, edit:" in done.stdout) == (name != "local")


def test_mistakes_are_listed_with_their_place_and_no_traceback(tmp_path: Path) -> None:
    """Exit code 1, every mistake at once, on standard error."""
    wrong = valid() | {"stage": "production"}
    wrong["fleets"]["eu1"]["hosts"]["a"]["workers"] = 0
    done = callfleet("validate", str(write_site(tmp_path, wrong)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert "acme.yml" in done.stderr
    assert "stage" in done.stderr


def test_a_site_that_does_not_exist_is_an_error_that_names_it() -> None:
    """No traceback, exit code 1."""
    done = callfleet("validate", "nowhere")
    assert done.returncode == 1
    assert "nowhere.yml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["validate"], ["nonsense"], ["validate", "prod", "--nonsense"]])
def test_wrong_usage_has_a_code_of_its_own(arguments: list[str]) -> None:
    """64: a script can tell a typing mistake from a site that is wrong."""
    done = callfleet(*arguments)
    assert (done.returncode, done.stdout) == (64, "")


def test_every_command_has_help() -> None:
    """`-h` works at every level and shows an example or a sentence."""
    listed = callfleet("-h").stdout
    for command in ("validate", "lab"):
        assert command in listed
        done = callfleet(command, "-h")
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) > 3


def test_importing_the_command_connects_to_nothing_and_needs_no_site(tmp_path: Path) -> None:
    """Run from an empty folder it still answers."""
    assert callfleet("--version", cwd=tmp_path).stdout.startswith("callfleet, version ")
