"""What changes in the running ingress without a reload, each difference by itself, and when a reload takes all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from callfleet.actual import Actual, FileState, Proxy, ProxyServer, Unknown
from callfleet.expected import AGREED, Command, Concern, ExpectedHost, File, Runtime, Served, Server, sha256
from callfleet.plan import Change, plan
from callfleet.report import waits

SOCKET, CONFIG, PEM = "/run/front/admin.sock", "/etc/front.cfg", "/etc/front.pem"
A = Server("calls", "a", "192.0.2.1:8443", 4, "check ssl sni str(a)")
B = Server("calls", "b", "192.0.2.2:8443", 4, "check ssl sni str(b)")
ITEM = Runtime(SOCKET, "c1", CONFIG, ("calls",), (A, B), (Served(PEM, "cert", "F1"),), script="bring")
OLD, NEW = File(CONFIG, b"old"), File(CONFIG, b"new")
RELOAD = Command("haproxy configuration", f"proxy:{SOCKET}:{CONFIG}", "c1", "load", "reload", "another configuration")


def running(server: Server, **differs: Any) -> ProxyServer:
    """A server as the running process tells it: as declared but for `differs`."""
    found = ProxyServer(
        server.backend, server.name, server.address, "UP", 1, 0, 0, server.id, server.slots, checked=True
    )
    return replace(found, **differs)


PROXY = Proxy("3.0", 9, 1000, 0, False, "c1", (running(A), running(B)), {PEM: "F1"})
FILE = FileState("file", 0o644, "root", "root", 0, 0, 3, 900.0, sha256=OLD.sha256)


def changes(
    *, item: Runtime = ITEM, file: File = OLD, found: FileState = FILE, note: object = None, **proxy: Any
) -> tuple[Change, ...]:
    """The changes of a front that is as declared but for what is given."""
    actual = Actual(
        files={CONFIG: found, PEM: FILE},
        contents={AGREED: json.dumps(note).encode() if note else None},
        proxies={SOCKET: replace(PROXY, **proxy)},
    )
    return plan(ExpectedHost("h", (Concern("front", (item, file, RELOAD)),)), actual).changes


def planned(**differs: Any) -> list[str]:
    """The same as words and subjects."""
    return [f"{change.word} {change.subject}" for change in changes(**differs)]


def test_a_front_that_is_as_declared_needs_nothing() -> None:
    assert planned() == []


@pytest.mark.parametrize(
    ("differs", "expected"),
    [
        ({"servers": (running(A),)}, "register calls/b: 4 slots (calls go on)"),
        (
            {"servers": (running(A), running(B, address="192.0.2.9:8443"))},
            "set calls/b: address 192.0.2.9:8443 instead of 192.0.2.2:8443 (calls go on)",
        ),
        (
            {"servers": (running(A), running(B, limit=None))},
            "set calls/b: maxconn unlimited instead of 4 (calls go on)",
        ),
        (
            {"servers": (running(A), running(B, checked=False))},
            "set calls/b: its health check does not run (calls go on)",
        ),
        (
            {"servers": (running(A), running(B, admin=1))},
            "set calls/b: admin state 1 instead of 0 (ready) (calls go on)",
        ),
        (
            {"servers": (running(A), running(B), running(replace(B, name="c")))},
            "remove calls/c: no longer registered",
        ),
        ({"servers": (running(A), running(B, id=7))}, "remove calls/b: its options differ"),
        ({"certificates": {PEM: "F0"}}, f"load {PEM}: the proxy serves another (calls go on)"),
        ({"certificates": {}}, f"load {PEM}: the proxy serves another (calls go on)"),
    ],
)
def test_each_difference_is_one_change_of_the_running_process(differs: dict[str, Any], expected: str) -> None:
    """Never a reload, and never another server's change."""
    found = changes(**differs)
    said = [f"{c.word} {c.subject}: {c.reason}" + (f" ({c.calls})" if c.calls else "") for c in found]
    assert said == [expected]


def test_a_server_that_leaves_with_calls_on_it_is_drained_and_waited_for() -> None:
    """It gets no new call; a later run removes it."""
    gone = running(replace(B, name="c"), sessions=2)
    (change,) = changes(servers=(running(A), running(B), gone))
    assert (str(change.word), change.subject) == ("drain", "calls/c")
    assert waits(change)


@pytest.mark.parametrize(
    ("drained", "admin", "differs"),
    [(True, 8, False), (True, 0, True), (False, 8, True), (False, 0, False), (None, 8, False), (None, 0, False)],
)
def test_an_operators_drain_is_kept_and_restored(drained: bool | None, admin: int, differs: bool) -> None:
    """Where it is not known whether a host is drained, its server is left as it is."""
    item = replace(ITEM, servers=(A, replace(B, drained=drained)))
    assert bool(planned(item=item, servers=(running(A), running(B, admin=admin)))) is differs


@pytest.mark.parametrize(
    ("written", "note", "reloaded"),
    [
        (1000.9, None, False),
        (1001.0, None, True),
        (2000.0, {"pid": 9, "started": 1000, "sha256": OLD.sha256}, False),
        (2000.0, {"pid": 8, "started": 1000, "sha256": OLD.sha256}, True),
        (2000.0, {"pid": 9, "started": 999, "sha256": OLD.sha256}, True),
        (2000.0, {"pid": 9, "started": 1000, "sha256": sha256(b"edited")}, True),
        (2000.0, ["garbage"], True),
    ],
)
def test_a_reload_only_where_nobody_wrote_down_that_process_and_file_agree(
    written: float, note: object, reloaded: bool
) -> None:
    """A file newer than the process was brought there by us, or by somebody else: then the process reads it again."""
    found = planned(found=replace(FILE, mtime=written), note=note, servers=())
    assert found == (["reload haproxy configuration"] if reloaded else ["register calls/a", "register calls/b"])


def test_another_configuration_is_loaded_and_brings_servers_along() -> None:
    assert planned(config="c0", servers=()) == ["reload haproxy configuration"]


def test_a_file_that_lags_behind_its_process_is_written_without_a_reload() -> None:
    """A run ended after the process was changed and before the file was."""
    assert planned(file=NEW) == ["set all", f"update {CONFIG}"]


def test_what_an_earlier_concern_does_is_not_done_again() -> None:
    """Also on a host whose proxy does not run yet: the file that it starts with has those of before."""
    later = replace(ITEM, servers=(A, B), before=(A,))
    for proxies in ({SOCKET: None}, {SOCKET: replace(PROXY, servers=(running(A),))}):
        actual = Actual(files={CONFIG: FILE, PEM: FILE}, contents={AGREED: None}, proxies=proxies)
        found = plan(ExpectedHost("h", (Concern("ingress", (later,)),)), actual).changes
        assert [f"{change.word} {change.subject}" for change in found] == ["register calls/b"]


def test_a_proxy_that_does_not_answer_is_left_alone() -> None:
    actual = Actual(files={CONFIG: FILE, PEM: FILE}, contents={AGREED: None}, proxies={SOCKET: Unknown("timed out")})
    found = plan(ExpectedHost("h", (Concern("front", (ITEM,)),)), actual).changes
    assert [str(change.word) for change in found] == ["blocked"]


def test_a_servers_number_tells_its_options() -> None:
    """HAProxy takes 31 bits; another option is another number, address and slots are none."""
    assert 0 < A.id < 2**31
    assert replace(A, options="check").id != A.id
    assert replace(A, address="192.0.2.9:1", slots=9).id == A.id
