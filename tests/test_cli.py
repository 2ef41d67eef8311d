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
        [sys.executable, "-c", "from callfleet.__main__ import main; main()", *arguments],
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


VERBS = [
    ["plan"],
    ["apply"],
    ["status"],
    ["history"],
    ["logs"],
    ["exec"],
    ["explain"],
    ["host", "drain"],
    ["host", "ready"],
    ["host", "add"],
    ["host", "remove"],
    ["host", "replace"],
    ["host", "resize"],
    ["fleet", "add"],
    ["fleet", "remove"],
    ["doctor"],
    ["certificates", "list"],
    ["certificates", "authority"],
    ["certificates", "issue"],
    ["certificates", "obtain"],
    ["validate"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself_with_examples(verb: list[str]) -> None:
    """What it does, how it is called, and for what acts which exit codes it has."""
    done = callfleet(*verb, "--help")
    assert done.returncode == 0
    assert f"callfleet {' '.join(verb)} " in done.stdout.partition("Examples:")[2]
    assert verb == ["validate"] or verb == ["explain"] or "Exit codes:" in done.stdout


@pytest.mark.parametrize("arguments", [["plan"], ["apply"], ["plan", "prod", "--wrong"], ["host", "drain"], ["nosuch"]])
def test_a_wrong_call_is_64(arguments: list[str]) -> None:
    """Usage on standard error, nothing on standard output."""
    done = callfleet(*arguments)
    assert done.returncode == 64, done.stderr
    assert "Usage:" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "prod"],
        ["apply", "prod", "--yes"],
        ["status", "prod", "--json"],
        ["history", "prod"],
        ["explain", "eu1-a", "--site", "prod"],
        ["logs", "eu1-a/3", "--site", "prod"],
        ["exec", "eu1", "--site", "prod", "--", "uptime"],
        ["host", "drain", "eu1-a"],
        ["host", "ready", "eu1", "--site", "staging"],
        ["host", "remove", "eu1-a", "--yes"],
        ["host", "remove", "eu1-a", "--lost", "--yes"],
        ["host", "resize", "eu1-a", "--workers", "6", "--yes"],
        ["doctor", "prod"],
    ],
    ids=" ".join,
)
def test_shipped_sites_are_not_connected_to(arguments: list[str]) -> None:
    """Their addresses belong to nobody: every verb says what to edit, and ends at once."""
    done = callfleet(*arguments)
    assert done.returncode == 1
    assert "still has values from the documentation" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_site_that_is_not_there_is_named() -> None:
    """With the file that was looked for."""
    done = callfleet("plan", "nosuch")
    assert done.returncode == 1
    assert "inventories/nosuch.yml" in done.stderr


def test_fleets_come_and_go_in_the_file(tmp_path: Path) -> None:
    """An empty one is added and removed; one with hosts is refused, with what to do first."""
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    before = path.read_text()
    done = callfleet("fleet", "add", "us1", "--site", str(path), "--public-name", "us1.acme.test")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Next: callfleet host add NAME ADDRESS --fleet us1" in done.stdout
    assert callfleet("validate", str(path)).returncode == 0
    assert callfleet("fleet", "add", "us1", "--site", str(path)).returncode == 1
    assert callfleet("fleet", "remove", "us1", "--site", str(path)).returncode == 0
    assert path.read_text() == before
    full = callfleet("fleet", "remove", "eu1", "--site", str(path))
    assert full.returncode == 1
    assert "callfleet host remove a" in full.stderr
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["host", "remove", "nosuch"], "has no host nosuch"),
        (["host", "remove", "front"], "Only hosts that carry calls and nothing else"),
        (["host", "resize", "a", "--workers", "4"], "has 4 workers already"),
        (["host", "resize", "a", "--workers", "400"], "at most 11 workers on this host"),
        (["host", "add", "c", "10.1.0.13", "--fleet", "us1"], "callfleet fleet add us1"),
        (["host", "add", "c", "10.1.0.11", "--fleet", "eu1"], "an address of its own for each host"),
    ],
)
def test_what_the_site_forbids_is_refused_before_anything_connects(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    """In words, with the file as it was."""
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    before = path.read_text()
    done = callfleet(*arguments, "--site", str(path), "--yes")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == before


def test_a_file_of_hosts_with_mistakes_is_told_as_a_whole(tmp_path: Path) -> None:
    """Every mistake with its line; nothing is connected to."""
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("hosts:\n  c: {address: nowhere, fleet: eu1}\n  d: {fleet: eu1, colour: red}\n")
    done = callfleet("host", "add", "--file", str(hosts), "--site", str(path), "--yes")
    assert done.returncode == 1
    for part in ("hosts.c.address", "hosts.d.address", "hosts.d.colour", "hosts.yml:2"):
        assert part in done.stderr


@pytest.mark.parametrize("garbage", ["", "{", "[]", "5"])
def test_a_saved_plan_that_is_garbage_is_refused_before_anything_connects(garbage: str, tmp_path: Path) -> None:
    """What it is, and how to make one."""
    (tmp_path / "plan").write_text(garbage)
    done = callfleet("apply", "prod", "--plan", str(tmp_path / "plan"))
    assert done.returncode == 1
    assert "is no saved plan" in done.stderr
    assert "--out" in done.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("callfleet ", {"plan", "apply", "status", "host"}), ("callfleet plan ", {"prod", "staging"})],
)
def test_the_shell_completes_verbs_and_sites(words: str, wanted: set[str]) -> None:
    """As bash asks for it."""
    done = subprocess.run(
        [sys.executable, "-m", "callfleet"],
        env=os.environ
        | {"_CALLFLEET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wanted <= {line.partition(",")[2] for line in done.stdout.splitlines()}, done.stderr
