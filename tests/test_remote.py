"""`logs` and `exec`: what a word means, what is asked of a host, and that nothing is left running there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest
from site_files import valid, write_site

from callfleet import target
from callfleet.commands import remote
from callfleet.errors import CallfleetError
from callfleet.pyinfra_remote import STREAM_TOKEN, attached
from callfleet.site import Site, load_site
from callfleet.target import Target


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Fleet eu1 with a (4 slots) and b (8), `front` and `app`."""
    return load_site(write_site(tmp_path, valid()))


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("a", ["a"]),
        ("eu1", ["a", "b"]),
        ("a/3", ["a/3"]),
        ("a/proxy", ["a/proxy"]),
        ("proxy", ["a/proxy", "b/proxy"]),
        ("front", ["front"]),
        ("front/ingress", ["front/front"]),
        ("cxb-api", ["app/cxb-api"]),
        ("dialler", ["app/cxb-dialler"]),
        ("app/redis", ["app/redis"]),
        ("worker-8", ["b/8"]),
    ],
)
def test_a_word_means_hosts_slots_or_services(word: str, wanted: list[str], site: Site) -> None:
    """A host's own name goes before a service of that name."""
    assert [one.name for one in target.named(site, word)] == wanted


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nosuch", "Expected a host (a, b, front, app), a fleet (eu1), HOST/SLOT, or a service"),
        ("nosuch/3", "no host nosuch; it has: a, b, front, app"),
        ("a/5", "a has no slot 5: its slots are 1 to 4"),
        ("a/0", "a has no slot 0"),
        ("front/1", "front has no slot 1: it carries no calls"),
        ("a/cxb-api", "a has no cxb-api; it has: 1 to 4, proxy"),
        ("a/", "a has no ; it has"),
    ],
)
def test_a_word_that_means_nothing_says_what_there_is(word: str, said: str, site: Site) -> None:
    """Before anything connects."""
    with pytest.raises(CallfleetError) as error:
        target.named(site, word)
    assert said in str(error.value)


def test_where_a_command_runs(site: Site) -> None:
    """Hosts, fleets and roles stand for themselves; a slot for its container; a unit is no place to run anything."""
    assert remote.chosen(site, "eu1", None) == [Target("a", "a"), Target("b", "b")]
    assert [one.host for one in remote.chosen(site, "app", None)] == ["app"]
    slot = Target("a", "a/3", site.brand.stack, "worker-3")
    assert remote.chosen(site, "a", 3) == remote.chosen(site, "a/3", None) == [slot]
    for what, number in (("a", 9), ("a/3", 3), ("front/front", None), ("nosuch", None), ("front", 1)):
        with pytest.raises(CallfleetError):
            remote.chosen(site, what, number)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("30s", 970), ("2m", 880), ("1970-01-01T00:10:00Z", 600), ("1970-01-01T00:10", 600),
        ("1970-01-01T01:10+01:00", 600),
    ],
)  # fmt: skip
def test_a_time_is_so_long_ago_or_a_moment(text: str, wanted: int) -> None:
    """Without a zone it is UTC, as everything that hosts show."""
    assert remote.moment(text, 1000.9) == wanted


@pytest.mark.parametrize("text", ["", "10", "yesterday", "10w", "-5m", "10 m; rm -rf /"])
def test_any_other_time_is_a_wrong_call(text: str) -> None:
    """64, before anything connects."""
    with pytest.raises(click.UsageError):
        remote.moment(text, 0)


def run(script: str, folder: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    """A script with stand-ins for a host's programs."""
    for name, text in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


DOCKER = """case "$1 $2" in
"version "*) exit 0 ;;
"ps -q") [ -n "$RUNS" ] && echo new && echo former ;;
"ps -aq") echo old ;;
*) printf '[%s]' "$@" ;;
esac; exit 0"""


def test_the_log_of_a_slot_is_that_of_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest that runs, else the last one that did."""
    one = Target("a", "a/3", "s", "worker-3")
    script = remote.log_script(one, 600, None, follow=True)
    assert (
        run(script, tmp_path, docker=DOCKER).stdout == "[logs][--timestamps][--tail][all][--since][600][--follow][old]"
    )
    monkeypatch.setenv("RUNS", "1")
    plain = remote.log_script(one, None, 5, follow=False)
    assert run(plain, tmp_path).stdout == "[logs][--timestamps][--tail][5][new]"


def test_a_command_arrives_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in its words; in a container that does not run it is refused in words."""
    words = ["printf", "%s|", "two words", "$(id)", "it's", "*", ""]
    assert run(remote.exec_script(Target("a", "a"), words), tmp_path).stdout == "two words|$(id)|it's|*||"
    inside = remote.exec_script(Target("a", "a/3", "s", "worker-3"), words)
    refused = run(inside, tmp_path, docker=DOCKER)
    assert (refused.returncode, refused.stderr) == (1, "s/worker-3 does not run here\n")
    monkeypatch.setenv("RUNS", "1")
    given = "".join(f"[{word}]" for word in words)
    assert run(inside, tmp_path).stdout == f"[exec][-e][{STREAM_TOKEN}][new]{given}"


def test_units_are_ours_and_the_front_proxy(tmp_path: Path, site: Site) -> None:
    """A fleet host has no front."""
    (fleet,), (front,) = target.named(site, "a"), target.named(site, "front")
    said = run(remote.log_script(front, 600, 7, follow=True), tmp_path, journalctl="printf '[%s]' \"$@\"").stdout
    assert "[--lines=7][--since=@600][--follow][--unit=callfleet-*][--unit=stack@*][--unit=haproxy.service]" in said
    assert "haproxy" not in remote.log_script(fleet, None, 7, follow=False)


@pytest.mark.parametrize(("inner", "code", "said"), [("echo 'a b'; exit 7", 7, "a b\n"), ("cat; echo end", 0, "end\n")])
def test_the_code_is_passed_on_and_there_is_no_input(inner: str, code: int, said: str) -> None:
    """The held line is ours: a command that reads finds nothing, and does not wait."""
    with subprocess.Popen(
        ["sh", "-c", attached(inner, "t0")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read() == said
        assert process.wait(timeout=30) == code


def test_when_nobody_listens_any_more_nothing_goes_on(tmp_path: Path) -> None:
    """Also what put itself into a session of its own and ignores being asked; somebody else's processes go on."""
    mine, token = tmp_path / "pids", f"t{os.getpid()}"
    inner = (
        f"setsid sh -c 'trap \"\" TERM; echo $$ >> {mine}; while :; do sleep 0.1; done' & echo $$ >> {mine}; sleep 99"
    )
    with (
        subprocess.Popen(["sleep", "99"]) as other,
        subprocess.Popen(["sh", "-c", attached(inner, token)], stdin=subprocess.PIPE) as process,
    ):
        wait(lambda: mine.exists() and len(mine.read_text().split()) == 2)
        pids = [int(pid) for pid in mine.read_text().split()]
        assert all(alive(pid) for pid in pids)
        assert process.stdin is not None
        process.stdin.close()
        wait(lambda: not any(alive(pid) for pid in pids))
        assert other.poll() is None
        other.send_signal(signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(condition: object, seconds: float = 30) -> None:
    """Until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lines_of_several_hosts_say_whose_they_are(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """However they are cut on the way; alone, a host's words pass as they are."""
    show = remote._shower("a | ")
    for part in (b"one\ntw", b"o\n", b"rest", b""):
        show(1, part)
    show(2, b"wrong\n")
    remote._shower("")(1, b"\xff raw")
    out, error = capfdbinary.readouterr()
    assert out == b"a | one\na | two\na | rest\n\xff raw"
    assert error == b"a | wrong\n"
