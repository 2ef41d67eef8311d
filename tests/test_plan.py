"""The plan lists exactly what differs, says why, and never takes unknown for absent or free."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from callfleet.actual import (
    Actual,
    Container,
    Engine,
    FileState,
    Image,
    Os,
    PackageState,
    Proxy,
    Slot,
    SlotWord,
    UnitState,
    Unknown,
)
from callfleet.expected import (
    MADE,
    Absent,
    Command,
    Concern,
    Directory,
    ExpectedHost,
    File,
    Images,
    Item,
    Package,
    Requirement,
    Stack,
    Unit,
    sha256,
)
from callfleet.plan import Change, plan

UNKNOWN = Unknown("timed out")
CONTENT = b"x = 1\n"
ADMIN = "/run/s/proxy/admin.sock"
FILE = FileState("file", 0o644, "root", "root", 0, 0, 6, 1000.0, sha256=sha256(CONTENT))
FOLDER = replace(FILE, kind="directory", mode=0o755, sha256=None)
LINK = replace(FILE, kind="link", mode=0o777, sha256=None, target="/elsewhere")
ACTIVE = UnitState("u.service", "loaded", "active", "running", "enabled", 7, 1000, "", 0, "/u", (), False)
ENGINE = Engine("26.1", "2.26", True, "overlay2", "cgroupfs", "json-file", "/var/lib/docker")
PROXY = Proxy("3.0", 9, 1000, 0, False, "p1", ())
IMAGE = "registry/worker@sha256:1"


def container(service: str, config: str = "c1", state: str = "running") -> Container:
    """A container of the stack `s`."""
    labels = {"callfleet.stack": "s", "callfleet.service": service, "callfleet.config": config}
    return Container("id", f"s-{service}-1", labels, "i", IMAGE, state, None, 0, 0, "", 5, "always", "host", "SIGURG")


def slot(word: SlotWord, number: int = 1) -> Slot:
    """A slot in this state."""
    return Slot(number, word, None, None, None, None)


HEALTHY: dict[str, Any] = {
    "files": {"/f": FILE, "/d": FOLDER},
    "packages": {"p": PackageState("1.0", "installed", held=True)},
    "units": {"u.service": ACTIVE},
    "engine": ENGINE,
    "images": (Image("i", "registry/worker", None, "sha256:1"),),
    "containers": (container("proxy"), container("worker-1")),
    "slots": {"s": (slot(SlotWord.IDLE),)},
    "proxies": {ADMIN: PROXY},
    "core_fleet": ("https://a",),
    "nft": "n1",
    "contents": {"/etc/callfleet/firewall.loaded": b"r1 n1\n", MADE.format("s"): None},
}
STACK = Stack("s", {"proxy": "c1", "worker-1": "c1"}, {"proxy": "proxy", "worker-1": "slot"}, 1, "p1")
COMMAND = Command("live-restore", "docker.live_restore", "true", "true", "reload", "containers would stop")


def planned(*items: Item, **differs: Any) -> list[str]:
    """The words, subjects and reasons planned on a host that is as declared but for `differs`."""
    return [f"{c.word} {c.subject}: {c.reason}" for c in changes(*items, **differs)]


def changes(*items: Item, **differs: Any) -> tuple[Change, ...]:
    """The same as changes."""
    contents = {"contents": HEALTHY["contents"] | differs.get("contents", {})}
    return plan(ExpectedHost("h", (Concern("c", items),)), Actual(**(HEALTHY | differs | contents))).changes


AS_DECLARED: list[Item] = [
    File("/f", CONTENT),
    Directory("/d"),
    Absent("/gone"),
    Package("p", hold=True),
    Package("p", version="1.0"),
    Unit("u.service", config=("/f",), on_change="restart"),
    COMMAND,
    Command("fleet", "core_fleet", '["https://a"]', "true"),
    Command("rules", "firewall", "r1", ""),
    Command("proxy", f"proxy:{ADMIN}", "p1", "true"),
    Command("file", "file:/f", "present", "true"),
    Images((IMAGE,)),
    STACK,
]


@pytest.mark.parametrize("item", AS_DECLARED, ids=lambda item: f"{type(item).__name__}-{getattr(item, 'subject', '')}")
def test_nothing_is_planned_where_the_host_is_as_declared(item: Item) -> None:
    """A second run has nothing to do, item by item."""
    assert planned(item, files={"/f": FILE, "/d": FOLDER, "/gone": None}) == []


F, D = File("/f", CONTENT), Directory("/d")
DIFFERENCES: list[tuple[Item, dict[str, Any], list[str]]] = [
    (F, {"files": {"/f": None}}, ["create /f: missing"]),
    (F, {"files": {"/f": replace(FILE, sha256="0")}}, ["update /f: content differs"]),
    (F, {"files": {"/f": replace(FILE, mode=0o666)}}, ["update /f: mode 0666 instead of 0644"]),
    (
        F,
        {"files": {"/f": replace(FILE, owner="bob", uid=1000, sha256="0")}},
        ["update /f: content differs, owner bob:root instead of root:root"],
    ),
    (F, {"files": {"/f": LINK}}, ["update /f: is a link"]),
    (F, {"files": {"/f": FOLDER}}, ["blocked /f: is a directory; move it away first"]),
    (D, {"files": {"/d": None}}, ["create /d: missing"]),
    (D, {"files": {"/d": replace(FOLDER, mode=0o700)}}, ["update /d: mode 0700 instead of 0755"]),
    (D, {"files": {"/d": FILE}}, ["blocked /d: is a file; move it away first"]),
    (Absent("/f"), {}, ["remove /f: no longer declared"]),
    (Package("p"), {"packages": {"p": None}}, ["install p: not installed"]),
    (Package("p", "1.0"), {"packages": {"p": None}}, ["install p=1.0: not installed"]),
    (
        Package("p"),
        {"packages": {"p": PackageState("1", "half-configured", held=False)}},
        ["install p: half-configured"],
    ),
    (
        Package("p", hold=True),
        {"packages": {"p": PackageState("1.0", "installed", held=False)}},
        ["hold p: an upgrade would stop what it runs"],
    ),
    (
        Package("p", "2.0"),
        {},
        ["blocked p: 1.0 is installed, 2.0 is declared: what carries calls is upgraded through drain, by hand"],
    ),
    (Unit("u.service"), {"units": {"u.service": None}}, ["enable u.service: new", "start u.service: new"]),
    (
        Unit("u.service"),
        {"units": {"u.service": replace(ACTIVE, enabled="disabled")}},
        ["enable u.service: is disabled"],
    ),
    (Unit("u.service"), {"units": {"u.service": replace(ACTIVE, active="failed")}}, ["start u.service: is failed"]),
    (
        Unit("u.service"),
        {"units": {"u.service": replace(ACTIVE, needs_reload=True)}},
        ["load u.service: its files changed after systemd read them"],
    ),
    (COMMAND, {"engine": replace(ENGINE, live_restore=False)}, ["reload live-restore: containers would stop"]),
    (Command("rules", "firewall", "r1", "", "load", "why"), {"nft": "n2"}, ["load rules: why"]),
    (Command("rules", "firewall", "r1", "", "load", "why"), {"nft": None}, ["load rules: why"]),
    (
        Command("fleet", "core_fleet", "[]", "true", "register", "why"),
        {"core_fleet": ("https://a",)},
        ["register fleet: why"],
    ),
    (Images((IMAGE,)), {"images": ()}, [f"pull {IMAGE}: not on the host"]),
    (Images((IMAGE,)), {"engine": None, "images": UNKNOWN}, [f"pull {IMAGE}: not on the host"]),
    (Images(("registry/worker:1",)), {}, ["pull registry/worker:1: not on the host"]),
    (STACK, {"proxies": {ADMIN: replace(PROXY, config="p0")}}, ["reload s/proxy: runs another configuration"]),
    (STACK, {"proxies": {ADMIN: None}}, ["reload s/proxy: runs another configuration"]),
    (
        STACK,
        {"containers": ()},
        ["create s/proxy: missing", "create s/worker-1: missing"],
    ),
    (
        STACK,
        {"containers": (container("proxy"), container("worker-1", state="exited"))},
        ["start s/worker-1: is exited"],
    ),
    (
        STACK,
        {"containers": (container("proxy"), container("worker-1"), container("worker-2"))},
        ["remove s/worker-2: no longer declared"],
    ),
    (
        STACK,
        {"slots": {"s": (slot(SlotWord.UNPUBLISHED),)}},
        ["publish s/worker-1: has not passed its canary call"],
    ),
]


@pytest.mark.parametrize(("item", "differs", "wanted"), DIFFERENCES)
def test_each_difference_is_named_with_its_reason(item: Item, differs: dict[str, Any], wanted: list[str]) -> None:
    """A word, the subject and a sentence a person understands."""
    assert planned(item, **differs) == wanted


UNREAD: list[tuple[Item, dict[str, Any]]] = [
    (F, {"files": UNKNOWN}),
    (F, {"files": {"/f": UNKNOWN}}),
    (F, {"files": {"/f": replace(FILE, sha256=UNKNOWN)}}),
    (F, {"files": {}}),
    (D, {"files": UNKNOWN}),
    (Absent("/f"), {"files": {"/f": UNKNOWN}}),
    (Package("p"), {"packages": UNKNOWN}),
    (Unit("u.service"), {"units": UNKNOWN}),
    (COMMAND, {"engine": UNKNOWN}),
    (Command("rules", "firewall", "r1", ""), {"nft": UNKNOWN}),
    (Command("rules", "firewall", "r1", ""), {"contents": {"/etc/callfleet/firewall.loaded": UNKNOWN}}),
    (Command("fleet", "core_fleet", "[]", "true"), {"core_fleet": UNKNOWN}),
    (Command("proxy", f"proxy:{ADMIN}", "p1", "true"), {"proxies": {ADMIN: UNKNOWN}}),
    (Images((IMAGE,)), {"images": UNKNOWN}),
    (Images((IMAGE,)), {"engine": UNKNOWN}),
    (STACK, {"containers": UNKNOWN}),
    (STACK, {"engine": UNKNOWN}),
    (STACK, {"proxies": {ADMIN: UNKNOWN}}),
]


@pytest.mark.parametrize(("item", "differs"), UNREAD)
def test_what_could_not_be_read_blocks_and_changes_nothing(item: Item, differs: dict[str, Any]) -> None:
    """Unknown is neither absent nor as declared: the concern is blocked, with the reason."""
    found = plan(ExpectedHost("h", (Concern("c", (item,)),)), Actual(**(HEALTHY | differs))).concern("c")
    assert found.changes == found.blocked != ()
    assert all("could not be read: " in change.reason for change in found.changes)


def test_a_unit_restarts_when_its_file_is_newer_than_its_start() -> None:
    """Decided from the host's own times, so that a run that died between write and restart is completed."""
    unit = Unit("u.service", config=("/f",), on_change="restart")
    late = {"/f": replace(FILE, mtime=1001.0)}
    assert planned(unit, files=late) == ["restart u.service: /f changed after it started"]
    same_second = {"/f": replace(FILE, mtime=1000.9)}
    assert planned(unit, files=same_second) == []


def test_a_chained_restart_is_planned_with_the_file_that_causes_it() -> None:
    """The plan is the change: a restart that a planned write will cause is listed before anything is written."""
    files = {"/f": replace(FILE, sha256="0")}
    unit = Unit("u.service", config=("/f",), on_change="reload")
    assert planned(unit, F, files=files) == [
        "reload u.service: /f changed after it started",
        "update /f: content differs",
    ]


def test_a_stopped_unit_is_started_and_not_also_restarted() -> None:
    """One change is enough: the start reads the new file."""
    down = {"u.service": replace(ACTIVE, active="inactive")}
    unit = Unit("u.service", config=("/f",), on_change="restart")
    assert planned(unit, units=down, files={"/f": replace(FILE, mtime=9999.0)}) == ["start u.service: is inactive"]


@pytest.mark.parametrize("word", list(SlotWord))
def test_recreating_a_slot_says_what_it_means_for_its_call(word: SlotWord) -> None:
    """Only words that promise no call are done now; every other one, unknown among them, is left serving."""
    old = (container("proxy"), container("worker-1", config="c0"))
    (change,) = changes(STACK, containers=old, slots={"s": (slot(word),)})
    assert str(change.word) == "recreate"
    free = word in (SlotWord.IDLE, SlotWord.DRAINED, SlotWord.DEAD, SlotWord.UNPUBLISHED)
    assert change.calls == (f"{word}: now" if free else f"{word}: left serving, finished by a later run")


@pytest.mark.parametrize("slots", [UNKNOWN, {"s": UNKNOWN}, {"s": None}, {"s": ()}, {}])
def test_a_slot_that_nobody_can_tell_of_is_never_called_free(slots: Any) -> None:
    """No slot program, no answer, no such slot: its worker is asked first."""
    old = (container("proxy"), container("worker-1", config="c0"))
    (change,) = changes(STACK, containers=old, slots=slots)
    assert change.calls == "state unknown: waits until its worker says 0 calls"


def test_a_container_changed_by_hand_is_made_anew_whatever_its_label_says() -> None:
    """What it was really made from is noted on the host; without a note, or one of use, its label is believed."""
    made = ["h1", 512, 0, 0]
    worker = container("worker-1")
    worker = replace(worker, labels={**worker.labels, "com.docker.compose.config-hash": "h1"}, limits=(512, 0, 0))

    def listed(note: object, one: Container = worker) -> list[str]:
        content = note if note is None or isinstance(note, Unknown) else json.dumps(note).encode()
        return planned(STACK, containers=(container("proxy"), one), contents={MADE.format("s"): content})

    for note in (None, {}, [], 3, {"worker-1": 3}, {"worker-1": {"c0": 3}}, {"worker-1": {"c1": made}}):
        assert listed(note) == [], note
    noted = {"worker-1": {"c1": made}}
    assert listed(noted, replace(worker, limits=(0, 0, 0))) == ["recreate s/worker-1: changed by hand"]
    assert listed({"worker-1": {"c1": ["h0", 512, 0, 0]}}) == ["recreate s/worker-1: changed by hand"]
    (blocked,) = listed(UNKNOWN)
    assert "timed out" in blocked


def test_a_proxy_that_is_made_anew_is_not_also_reloaded() -> None:
    """A new container starts with the new file."""
    old = (container("proxy", config="c0"), container("worker-1"))
    assert planned(STACK, containers=old, proxies={ADMIN: replace(PROXY, config="p0")}) == [
        "recreate s/proxy: made from another definition"
    ]


def test_only_a_guarded_service_may_be_left_for_a_later_run() -> None:
    """Left running because it is not quiet, it is pending and no failure; a plain one that is left is a failure."""
    for kind, waits in (("guarded", True), ("plain", False)):
        (change,) = changes(Stack("s", {"d": "c1"}, {"d": kind}), containers=(container("d", config="c0"),))
        assert bool(change.calls) is waits, kind


def test_containers_of_others_are_not_seen() -> None:
    """What does not carry our label is never removed, whatever its name."""
    foreign = replace(container("worker-9"), labels={"com.docker.compose.project": "s"})
    assert planned(STACK, containers=(container("proxy"), container("worker-1"), foreign)) == []


def test_numeric_owners_match_whatever_the_host_calls_them() -> None:
    """A container's user has a number and perhaps no name on the host."""
    owned = replace(FOLDER, owner="UNKNOWN", group="UNKNOWN", uid=1000, gid=1000)
    assert planned(Directory("/d", owner="1000", group="1000"), files={"/d": owned}) == []
    assert planned(Directory("/d", owner="1001", group="1000"), files={"/d": owned}) != []


def test_rules_changed_by_hand_are_loaded_again() -> None:
    """The kernel's table is compared with what we loaded, not with what we wrote."""
    rules = Command("rules", "firewall", "r1", "", "load", "why")
    for found in (b"r1 n0\n", b"r0 n1\n", b"", b"nonsense"):
        assert planned(rules, contents={"/etc/callfleet/firewall.loaded": found}) == ["load rules: why"]
    assert planned(rules, contents={"/etc/callfleet/firewall.loaded": None}) == ["load rules: why"]


def test_a_change_prints_as_one_line_without_content() -> None:
    """What is shown names word, kind, subject, reason and calls, and nothing of what is in the file."""
    secret = File("/f", b"correct-horse", secret=True)
    (change,) = changes(secret)
    assert str(change) == "update file /f: content differs"
    assert "correct-horse" not in repr(change) + repr(secret)
    old = (container("proxy"), container("worker-1", config="c0"))
    (touched,) = changes(STACK, containers=old)
    assert str(touched) == "recreate container s/worker-1: made from another definition (idle: now)"


@pytest.mark.parametrize(
    ("system", "refused"),
    [
        (Os("debian", "13", "trixie"), ""),
        (Os("debian", "12", "bookworm"), "found debian 12, expected debian 13. Set docker.source."),
        (Os("fedora", "43", ""), "found fedora 43, expected debian 13. Set docker.source."),
        (UNKNOWN, "could not be read: timed out"),
    ],
)
def test_a_host_that_is_not_what_is_required_is_refused(system: Os | Unknown, refused: str) -> None:
    """Nothing is made of it: the change is blocked and says what was found and what was expected."""
    requirement = Requirement("system", "os", ("debian 13",), "Set docker.source.")
    host = ExpectedHost("h", (Concern("baseline", (requirement,)),))
    changes = plan(host, replace(Actual(), os=system)).changes
    assert [(change.word, change.reason) for change in changes] == ([("blocked", refused)] if refused else [])


@pytest.mark.parametrize(("written", "stale"), [(900.0, False), (940.9, False), (941.0, True), (2000.0, True)])
def test_a_proxy_that_was_loaded_before_its_file_was_written_is_loaded_again(written: float, stale: bool) -> None:
    """Its hash is the wanted one, and what it runs need not be: it was edited, loaded and put back by hand."""
    differs: dict[str, Any] = {
        "files": {"/f": replace(FILE, mtime=written)},
        "proxies": {ADMIN: replace(PROXY, started=940)},
    }
    assert bool(changes(replace(STACK, proxy_file="/f"), **differs)) is stale
    assert bool(changes(Command("haproxy", f"proxy:{ADMIN}:/f", "p1", "true"), **differs)) is stale


def test_a_proxy_whose_file_is_about_to_change_is_loaded_in_the_same_run() -> None:
    """The file that is put back has the hash of the one that runs."""
    edited = replace(FILE, sha256=sha256(b"by hand"))
    found = changes(F, replace(STACK, proxy_file="/f"), files={"/f": edited})
    assert [(change.kind, str(change.word)) for change in found] == [("file", "update"), ("proxy", "reload")]
