"""`callfleet host remove` when the world does not stand still: files edited meanwhile, garbage for answers, Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from renderings import authority, certificate_only
from site_files import valid, write_site

from callfleet.cli import cli
from callfleet.commands import hosts, slots
from callfleet.errors import CallfleetError
from callfleet.pyinfra_session import Ended
from callfleet.site import load_site
from callfleet.site.newcomer import Newcomer, admit

EMPTY = "stack\n0\n0 0\n"
EDIT = "# somebody else's line\n"


class Hosts:
    """Stands in for connected hosts: what they answer, and with which sites they were connected."""

    def __init__(self) -> None:
        self.held = EMPTY
        self.status = '{"slots": []}'
        self.waited: Callable[[], object] = lambda: None
        self.deregistered: list[set[str]] = []
        self.ran: list[str] = []
        self.ended = Ended("front", "changed")

    def session(self, site: Any, limit: Any = (), **options: Any) -> Hosts:
        if options.get("only"):
            self.deregistered.append({host.name for host in site.fleet_hosts})
        return self

    def __enter__(self) -> Hosts:
        self.unreached: dict[str, str] = {}
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, host: str, script: str) -> str:
        return self.held

    def run(self, host: str, script: str) -> list[str]:
        self.ran.append(script)
        return []

    def look(self) -> None:
        pass

    def apply(self) -> list[Ended]:
        return [self.ended]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site file with right certificates; its hosts' keys are pinned."""
    monkeypatch.setenv("ADMIN_TOKEN", "word")
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    contents = {"core_secret": b"word", "ca.pem": certificate_only(authority().pem())}
    contents |= {f"{name}.pem": authority().issue(f"{name}.acme.test") for name in ("a", "b", "c")}
    contents |= {"wildcard.pem": authority().issue("*.acme.test"), "i.pem": authority().issue("ingress", client=True)}
    for name, content in contents.items():
        path.with_name(name).write_bytes(content)
        path.with_name(name).chmod(0o600)
    path.with_suffix(".known_hosts").write_text("10.1.0.11 ssh-ed25519 AAAA\n10.1.0.12 ssh-ed25519 BBBB\n")
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Hosts that answer as they are told to."""
    made = Hosts()

    def wait(*_: object, **__: object) -> list[slots.Slot]:
        made.waited()
        return []

    monkeypatch.setattr(hosts, "Session", made.session)
    monkeypatch.setattr(hosts.slots, "declare", lambda *_: 0)
    monkeypatch.setattr(hosts.slots, "wait", wait)
    return made


def remove(site: Path, *arguments: str) -> Result:
    """Without a terminal; an error is raised as it is."""
    return CliRunner().invoke(
        cli, ["host", "remove", "a", "--site", str(site), "--yes", *arguments], standalone_mode=False
    )


def test_what_others_write_meanwhile_stays(site: Path, fake: Hosts) -> None:
    """A line of theirs, and a host that joined: it is in the file afterwards, and is not taken out of the ingress."""

    def edited() -> None:
        text = admit(site.read_text(), load_site(site), Newcomer("c", "10.1.0.13", "eu1", 4))
        site.write_text(text + EDIT)

    fake.waited = edited
    done = remove(site)
    assert done.exit_code == 0, done.output
    assert fake.deregistered == [{"b", "c"}]
    assert EDIT in site.read_text()
    assert [host.name for host in load_site(site).fleet_hosts] == ["b", "c"]
    assert site.with_suffix(".known_hosts").read_text() == "10.1.0.12 ssh-ed25519 BBBB\n"


def test_a_host_that_somebody_else_took_out_meanwhile_is_no_error(site: Path, fake: Hosts) -> None:
    """Both meant the same."""

    def removed() -> None:
        site.write_text(hosts.edit.remove_host(site.read_text(), load_site(site), "a"))

    fake.waited = removed
    assert remove(site).exit_code == 0
    assert [host.name for host in load_site(site).fleet_hosts] == ["b"]


def test_the_key_is_forgotten_last(site: Path, fake: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends before that can be run again: the host could still be reached."""

    def killed(*_: object) -> None:
        assert [host.name for host in load_site(site).fleet_hosts] == ["b"]
        raise SystemExit(9)

    monkeypatch.setattr(hosts, "forget", killed)
    assert remove(site).exit_code == 9


@pytest.mark.parametrize("answer", ["", "stack\n", "stack\nmany\n0 0\n", "<html>"])
def test_an_answer_that_is_garbage_is_no_empty_host(answer: str, site: Path, fake: Hosts) -> None:
    """It is refused in words, nothing is stopped, the entry stays."""
    fake.held, before = answer, site.read_text()
    done = remove(site)
    assert isinstance(done.exception, CallfleetError)
    assert "a does not tell what it still holds" in str(done.exception)
    assert "serves on, nothing was done" in str(done.exception)
    assert (site.read_text(), fake.ran) == (before, [])


def test_a_site_file_that_is_broken_meanwhile_ends_it_with_what_was_done(site: Path, fake: Hosts) -> None:
    """Nobody guesses what it would have declared."""
    fake.waited = lambda: site.write_text("nonsense")
    done = remove(site)
    assert isinstance(done.exception, CallfleetError)
    assert "Done so far: a: told to take no new call" in str(done.exception)
    assert f"Next: callfleet host remove a --site {site} goes on from there" in str(done.exception)
    assert fake.ran == []


def test_ctrl_c_says_what_was_done_and_how_to_go_on(site: Path, fake: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command with its options, and by the one that takes the host back."""
    monkeypatch.setenv("CALLFLEET_SITE", str(site))

    def interrupted() -> None:
        raise KeyboardInterrupt

    fake.waited = interrupted
    done = remove(site, "--wipe", "--recordings-moved")
    assert isinstance(done.exception, KeyboardInterrupt) or done.exit_code != 0
    assert "Interrupted. Done so far: a: told to take no new call" in done.stderr
    assert "Next: callfleet host remove a --wipe --recordings-moved goes on" in done.stderr
    assert "callfleet host ready a and callfleet apply" in done.stderr


def test_an_ingress_that_fails_keeps_the_host_running(site: Path, fake: Hosts) -> None:
    """Calls may still come from there: nothing is stopped, exit code 1, and the entry stays."""
    fake.ended, before = Ended("front", "failed", errors=("bob is at work on this host",)), site.read_text()
    done = remove(site, "--json")
    assert done.exit_code == 1
    assert "bob is at work" in json.loads(done.stdout)["steps"][-1]
    assert json.loads(done.stdout)["next"] == f"callfleet host remove a --site {site}"
    assert (site.read_text(), fake.ran) == (before, [])


def test_certificates_that_would_stop_it_half_way_stop_it_at_once(site: Path, fake: Hosts) -> None:
    """Those of the ingress do; those of the host that leaves do not matter."""
    site.with_name("a.pem").unlink()
    site.with_name("i.pem").write_bytes(b"x")
    done = remove(site)
    assert "tls.internal.ingress" in str(done.exception)
    assert "tls.internal.hosts.a" not in str(done.exception)
    assert fake.deregistered == []
    site.with_name("i.pem").write_bytes(authority().issue("ingress", client=True))
    assert remove(site).exit_code == 0


# The slots' own answers


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"slots": [{}]}', "<html>"])
def test_slots_that_are_garbage_are_told_with_their_host(answer: str) -> None:
    """Neither idle nor a traceback."""

    class One:
        site = type("S", (), {"brand": type("B", (), {"stack": "s"})})
        hosts: tuple[object, ...] = ()

        @staticmethod
        def each(*_: object) -> dict[str, str]:
            return {"a": answer}

    with pytest.raises(CallfleetError, match="a does not tell what its slots do"):
        list(slots.seen(One(), ["a"], ()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("127\n", "has no slot program"),
        ("", "slotctl drain failed: it says nothing"),
        ('{"result": {"error": "s has no slot 9"}}\n64\n', "slotctl drain failed: s has no slot 9"),
        ("gibberish\n1\n", "slotctl drain failed: gibberish"),
    ],
)
def test_a_drain_that_fails_says_why(answer: str, said: str) -> None:
    """By the slot program's own words; without any, that there are none."""

    class One:
        site = type("S", (), {"name": "acme", "brand": type("B", (), {"stack": "s"})})

        @staticmethod
        def ask(*_: object) -> str:
            return answer

    with pytest.raises(CallfleetError, match=said):
        slots.declare(One(), "a", "drain", (), "")  # type: ignore[arg-type]
