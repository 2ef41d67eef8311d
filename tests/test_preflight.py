"""What a host's answers mean, and the script that gets them."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from site_files import valid, write_site

from callfleet.actual import Actual, Clock, Disk, Listener, Memory, Os, Unknown
from callfleet.commands.doctor import report
from callfleet.preflight import Answers, Check, Looked, Questions, State, judge, memory, questions, read, script
from callfleet.site import Site, load_site

GOOD = Actual(
    os=Os("debian", "13", "trixie"),
    arch="x86_64",
    cpus=4,
    memory=Memory(4096 * 1024**2, 2048 * 1024**2),
    disks={"/": Disk("/", 40 * 1024**3, 20 * 1024**3, None)},
    clock=Clock(0, True),
    listeners=(),
)
NAMES = {"a.acme.test": ("10.1.0.11",), "api.acme.test": ("10.1.0.3",)}
FINE = {
    "a": Looked(GOOD, Answers(NAMES, {("registry.acme.test", 5000): "open"}, {"http://mirror.test": "open"})),
    "front": Looked(GOOD, Answers({}, {("10.1.0.11", 8443): "refused"}, {})),
    "app": Looked(GOOD, Answers(NAMES, {}, {})),
}
LATER = {"a.acme.test": datetime.now(UTC) + timedelta(days=90)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two fleet hosts, an ingress and an app host."""
    return load_site(write_site(tmp_path, valid()))


def wrong(site: Site, found: dict[str, Looked], expiry: Any = None) -> dict[str, Check]:
    """The checks of host a that are not fine, by what they are about."""
    checks = judge(site, site.host("a"), found, LATER if expiry is None else expiry)
    return {check.what: check for check in checks if check.state is not State.OK}


def but(**parts: Any) -> dict[str, Looked]:
    """As fine, with parts of what the probe read of host a replaced."""
    return FINE | {"a": replace(FINE["a"], actual=replace(GOOD, **parts))}


def test_a_good_host_passes_every_check(site: Site) -> None:
    """And each kind of check is there."""
    checks = judge(site, site.host("a"), FINE, LATER)
    assert [check for check in checks if check.state is not State.OK] == []
    assert [check.what for check in checks] == [
        "reached", "system", "architecture", "CPU", "memory", "disk", "clock", "port 443", "port 8443",
        "name a.acme.test", "name api.acme.test", "certificate a.acme.test", "registry registry.acme.test:5000",
        "route from front", "packages http://mirror.test",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "what", "state"),
    [
        ({"os": Os("debian", "12", "bookworm")}, "system", State.FAILED),
        ({"arch": "riscv64"}, "architecture", State.FAILED),
        ({"arch": "aarch64"}, "architecture", State.WARNING),
        ({"memory": Memory(1500 * 1024**2, 0)}, "memory", State.FAILED),
        ({"memory": Memory(2050 * 1024**2, 0)}, "memory", State.WARNING),
        ({"disks": {"/": Disk("/", 9, 1024**3, None)}}, "disk", State.FAILED),
        ({"disks": {"/": Disk("/", 9, 4 * 1024**3, None)}}, "disk", State.WARNING),
        ({"clock": Clock(0, False)}, "clock", State.WARNING),
        ({"listeners": (Listener("*", 443, (("nginx", 7),)),)}, "port 443", State.FAILED),
        ({"listeners": (Listener("*", 443),)}, "port 443", State.UNKNOWN),
        ({"memory": Unknown("no /proc")}, "memory", State.UNKNOWN),
        ({"listeners": Unknown("no ss")}, "port 443", State.UNKNOWN),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(site: Site, parts: dict[str, Any], what: str, state: State) -> None:
    """Found, expected and the next step; what could not be read is unknown, never fine."""
    check = wrong(site, but(**parts))[what]
    assert check.state is state
    assert check.found
    assert check.expected
    assert check.next


def test_a_port_in_our_own_hands_is_fine(site: Site) -> None:
    """A converged host is looked at like any other."""
    assert wrong(site, but(listeners=(Listener("*", 443, (("haproxy", 7),)),))) == {}


def test_a_clock_that_is_off_fails(site: Site) -> None:
    """By more than certificates and events bear."""
    assert wrong(site, FINE | {"a": replace(FINE["a"], skew=31.0)})["clock"].state is State.FAILED
    assert wrong(site, FINE | {"a": replace(FINE["a"], skew=5.0)})["clock"].state is State.WARNING


@pytest.mark.parametrize(
    ("addresses", "state"),
    [
        ((), State.FAILED),
        (("10.9.9.9",), State.WARNING),
        (("127.0.1.1",), State.UNKNOWN),
        (("10.1.0.11", "10.9.9.9"), None),
    ],
)
def test_names_are_judged_by_where_they_lead(site: Site, addresses: tuple[str, ...], state: State | None) -> None:
    """As the API's host sees them: it is the one that calls them."""
    answers = Answers(NAMES | {"a.acme.test": addresses}, {}, {})
    check = wrong(site, FINE | {"app": Looked(GOOD, answers)}).get("name a.acme.test")
    assert (check.state if check else None) is state


@pytest.mark.parametrize(("word", "state"), [("no answer", State.FAILED), ("no route", State.FAILED), ("open", None)])
def test_the_ingress_must_reach_it(site: Site, word: str, state: State | None) -> None:
    """A refusal is a way; silence is none."""
    found = FINE | {"front": Looked(GOOD, Answers({}, {("10.1.0.11", 8443): word}, {}))}
    check = wrong(site, found).get("route from front")
    assert (check.state if check else None) is state
    assert wrong(site, {"a": FINE["a"], "app": FINE["app"]})["route from front"].state is State.UNKNOWN


def test_a_certificate_that_ends_soon_is_told(site: Site) -> None:
    """A warning first, then a failure."""
    now = datetime.now(UTC)
    for days, state in ((3, State.WARNING), (-1, State.FAILED)):
        check = wrong(site, FINE, {"a.acme.test": now + timedelta(days=days)})["certificate a.acme.test"]
        assert check.state is state


def test_a_host_that_is_not_reached_is_one_check(site: Site) -> None:
    """With why; nothing else can be told."""
    (check,) = judge(site, site.host("a"), {"a": Looked(Actual.unread("timed out"), None, "timed out")}, LATER)
    assert (check.state, check.found) == (State.FAILED, "timed out")


def test_memory_is_judged_for_another_number_of_workers(site: Site) -> None:
    """What a resize asks, and how many would fit."""
    check = memory(site, site.host("a"), GOOD, 40)
    assert check is not None
    assert check.state is State.FAILED
    assert "at most 11 workers" in check.next


def test_each_host_is_asked_what_it_can_tell(site: Site) -> None:
    """Names where calls are made from, ways from the ingress, the registry from who pulls."""
    a = site.host("a")
    assert questions(site, a, [a]) == Questions(("api.acme.test",), (("registry.acme.test", 5000),), True)
    assert questions(site, site.host("front"), [a]).reach == (("10.1.0.11", 8443),)
    assert questions(site, site.host("app"), [a]).names == ("a.acme.test",)


def test_the_script_says_what_is_open_and_what_is_refused() -> None:
    """Run for real, against ports of this machine; it says a name's addresses too."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        taken = there.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as gone:
            free = gone.getsockname()[1]
        text = script(Questions(("localhost",), (("127.0.0.1", taken), ("127.0.0.1", free))))
        done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, timeout=60, check=True)
    answers = read(done.stdout)
    assert set(answers.names["localhost"]) & {"127.0.0.1", "::1"}
    assert answers.reached == {("127.0.0.1", taken): "open", ("127.0.0.1", free): "refused"}


def test_what_a_host_says_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are text: an IPv6 address is not lost, and what looks like markup does not end in a traceback."""
    report([Check("a", "reached", State.FAILED, "no route to [fd00::1]:22 [/etc/x]", "SSH", "look at [red]it")])
    said = capsys.readouterr().out
    assert "no route to [fd00::1]:22 [/etc/x]" in said
    assert "a, reached: look at [red]it" in said
