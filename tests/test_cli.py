"""The `callfleet` command as operators run it: its output, its exit codes, its errors."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from site_files import REPOSITORY, valid, write_site

from callfleet.cli import cli
from tests.test_certificates import DAY, NOW, made
from tests.test_inventory import _local, _with_inventory


def callfleet(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal."""
    return subprocess.run(
        [sys.executable, "-c", "from callfleet.__main__ import main; main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "ADMIN_TOKEN": "word", "COLUMNS": "200"},
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
    ["host", "pin"],
    ["fleet", "add"],
    ["fleet", "remove"],
    ["doctor"],
    ["import"],
    ["certificates", "list"],
    ["certificates", "authority"],
    ["certificates", "issue"],
    ["certificates", "obtain"],
    ["lab", "up"],
    ["lab", "status"],
    ["lab", "ssh"],
    ["lab", "reboot"],
    ["lab", "kill"],
    ["lab", "start"],
    ["lab", "down"],
    ["lab", "contradictions"],
    ["validate"],
    ["completion"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself_with_examples(verb: list[str]) -> None:
    """What it does, how it is called, and for what acts which exit codes it has."""
    done = CliRunner().invoke(cli, [*verb, "--help"])
    assert done.exit_code == 0
    assert re.search(rf"callfleet {' '.join(verb)}\b", done.output.partition("Examples:")[2])
    assert verb in (["validate"], ["completion"]) or "Exit codes:" in done.output


def test_the_list_of_verbs_above_is_whole() -> None:
    """Every verb and every verb of a group, as they are registered."""

    def found(command: click.Command, path: list[str]) -> Iterator[list[str]]:
        if not isinstance(command, click.Group):
            yield path
            return
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            each = command.get_command(ctx, name)
            assert each is not None
            yield from found(each, [*path, name])

    assert sorted(found(cli, [])) == sorted(VERBS)


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
        ["host", "pin", "eu1-a"],
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


@pytest.mark.parametrize(
    "garbage",
    ["", "[]", "[" * 99999, '{"schema": 1, "hosts": 5}',
     '{"schema": 1, "kind": "plan", "hosts": [{"name": "a"}]}'],
)  # fmt: skip
def test_a_saved_plan_that_is_garbage_is_refused_before_anything_connects(garbage: str, tmp_path: Path) -> None:
    """What it is, and how to make one."""
    (tmp_path / "plan").write_text(garbage)
    done = callfleet("apply", "prod", "--plan", str(tmp_path / "plan"))
    assert done.returncode == 1
    assert "is no saved plan" in done.stderr
    assert "--out" in done.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("callfleet ", {"plan", "apply", "status", "host", "completion"}),
        ("callfleet plan ", {"prod", "staging"}),
        ("callfleet plan prod --limit ", {"eu1-a", "eu1", "ingress"}),
        ("callfleet status prod -l eu1-", {"eu1-a"}),
        ("callfleet host drain ", {"eu1-a", "eu1"}),
        ("callfleet host remove eu1", {"eu1-a"}),
        ("callfleet host add x 192.0.2.1 --fleet ", {"eu1"}),
        ("callfleet host drain --site ", {"prod", "staging"}),
        ("callfleet fleet remove ", {"eu1"}),
        ("callfleet explain ", {"eu1-a"}),
        ("callfleet logs eu1-a/", {"eu1-a/1", "eu1-a/proxy"}),
        ("callfleet exec ", {"eu1-a", "ingress", "eu1-a/1"}),
    ],
)
def test_words_are_completed(words: str, wanted: set[str]) -> None:
    """Verbs, sites, hosts, fleets and slots; only what fits what is typed already."""
    found = offered(words)
    assert wanted <= found
    assert all(word.startswith(words.rpartition(" ")[2]) for word in found)


def offered(words: str) -> set[str]:
    """What is offered behind these words."""
    *typed, incomplete = words.split(" ")[1:]
    return {item.value for item in BashComplete(cli, {}, "callfleet", "_X").get_completions(typed, incomplete)}


def test_a_site_that_cannot_be_read_completes_to_nothing() -> None:
    """The shell shows no traceback amid a command line."""
    assert offered("callfleet plan nosuch --limit ") == set()


def test_the_shell_asks_the_command_itself() -> None:
    """As bash does."""
    done = subprocess.run(
        [sys.executable, "-m", "callfleet"],
        env=os.environ
        | {"_CALLFLEET_COMPLETE": "bash_complete", "COMP_WORDS": "callfleet host remove eu1", "COMP_CWORD": "3"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "plain,eu1-a" in done.stdout.splitlines(), done.stderr


def test_completion_is_printed_for_each_shell() -> None:
    """The same as by `_CALLFLEET_COMPLETE`, which nobody has to know; bash takes it."""
    texts = {shell: CliRunner().invoke(cli, ["completion", shell]).output for shell in ("bash", "zsh", "fish")}
    assert all("_CALLFLEET_COMPLETE" in text for text in texts.values())
    assert len(set(texts.values())) == 3
    subprocess.run(["bash", "-n"], input=texts["bash"], text=True, check=True)


# Bad days


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Path]:
    """A site of one host that answers SSH with silence, and its file; a second fleet is empty."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        site = _local(server.getsockname()[1])
        site["ssh"]["connect_timeout_seconds"] = 1
        site["fleets"]["us1"] = {"hosts": {}}
        yield _with_inventory(tmp_path, site)


@pytest.fixture
def expired(away: Path) -> Path:
    """The same with a public certificate that has expired."""
    away.with_name("wildcard.pem").write_bytes(made(since=NOW - 9 * DAY, until=NOW - DAY))
    return away


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apply", "SITE", "--limit", "nosuch", "--yes"], "It has: a, app, eu1, fleet, ingress, us1"),
        (["plan", "SITE", "--limit", "us1"], "no host of acme is meant by us1"),
        (["logs", "us1", "--site", "SITE"], "the fleet us1 of acme has no hosts yet"),
        (["exec", "us1", "--site", "SITE", "--", "true"], "no host of acme is meant by us1"),
    ],
)
def test_a_limit_that_means_nobody_is_an_error(arguments: list[str], said: str, away: Path) -> None:
    """Never taken for everybody, never for nothing to do."""
    done = callfleet(*(str(away) if word == "SITE" else word for word in arguments))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "SITE"], "Hosts that get none of these: callfleet plan or apply, with --limit"),
        (["status", "SITE"], "not reached"),
        (["doctor", "SITE"], "secrets and certificates"),
        (["host", "drain", "a", "--site", "SITE"], "not reached; nothing was done"),
    ],
)
def test_a_certificate_that_has_expired_stops_no_look_and_no_drain(
    arguments: list[str], said: str, expired: Path
) -> None:
    """What would lay it down is refused before it connects; everything else goes on, and status and doctor name it."""
    done = callfleet(*(str(expired) if word == "SITE" else word for word in arguments))
    both = done.stdout + done.stderr
    assert said in both
    assert "Traceback" not in both
    assert ("which expired on" in both) is (arguments[0] != "host")
    assert ("nothing was connected to" in both) is (arguments[0] == "plan")


def test_json_of_what_fails_is_still_a_document(expired: Path) -> None:
    """status with an expired certificate and an unreached host: one document, and its code."""
    done = callfleet("status", str(expired), "--json")
    found = json.loads(done.stdout)
    assert (found["slots"], any("which expired on" in note for note in found["notes"])) == ({"unknown": 4}, True)
    assert done.returncode == 1


def test_a_host_that_is_away_is_told_so_and_not_as_failed(away: Path) -> None:
    """With how to go on, on the same hosts."""
    done = callfleet("apply", str(away), "--limit", "a", "--yes")
    assert done.returncode == 1
    assert re.search(r"^a +not reached", done.stdout, re.MULTILINE)
    assert f"callfleet apply {away} --limit a" in done.stdout


def test_next_commands_mean_the_same_site(tmp_path: Path) -> None:
    """What is printed to be typed next names the site, unless it is the one that is meant without."""
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    done = callfleet("fleet", "add", "us1", "--site", str(path))
    assert f"--workers N --site {path}" in done.stdout
    done = callfleet("fleet", "remove", "eu1", "--site", str(path))
    assert f"callfleet host remove a --site {path}" in done.stderr


def test_the_only_host_of_calls_stays(tmp_path: Path) -> None:
    """The site would not be valid without it; the message says so and what comes first, and nothing is touched."""
    data = valid()
    del data["fleets"]["eu1"]["hosts"]["b"], data["tls"]["internal"]["hosts"]["b"]
    path = write_site(tmp_path, json.dumps(data, indent=1))
    before = path.read_text()
    done = callfleet("host", "remove", "a", "--site", str(path), "--yes")
    assert done.returncode == 1
    assert "it is the only host that carries calls: add another one first" in done.stderr
    assert path.read_text() == before
