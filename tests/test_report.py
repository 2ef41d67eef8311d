"""The plan as a document: exact, redacted, its exit code, and when a saved one no longer holds."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from callfleet import report
from callfleet.actual import Actual, FileState, SlotWord, Unknown
from callfleet.expected import MADE, Concern, ExpectedHost, File, Stack, sha256
from callfleet.plan import plan
from tests.test_plan import ENGINE, FILE, PROXY, container, slot

COMPOSE = "/opt/stacks/s/compose.yml"
ENV = "/opt/stacks/s/secrets/worker.env"


def fingerprint(data: bytes) -> str:
    """A keyed digest as a site's context makes it."""
    return hmac.new(b"key", data, hashlib.sha256).hexdigest()


def compose(value: str) -> bytes:
    """A Compose file of one worker with one setting."""
    return yaml.safe_dump({"services": {"worker-1": {"environment": {"A": value}}}}).encode()


def looked(
    word: SlotWord = SlotWord.IDLE, *, label: str = "c1", secret: bytes = b"K='old'\n", wanted: bytes = b"K='old'\n"
) -> report.Looked:
    """A host with one worker in this state, whose label, secret and Compose file may differ from what is declared."""
    new = compose("1" if label == "c1" else "2")
    items = (
        File(COMPOSE, new),
        File(ENV, wanted, mode="0600", secret=True),
        Stack("s", {"worker-1": "c1"}, {"worker-1": "slot"}, 1, ""),
    )
    states: dict[str, FileState | Unknown | None] = {
        COMPOSE: replace(FILE, sha256=sha256(compose("1"))),
        ENV: replace(FILE, mode=0o600, sha256=sha256(secret)),
    }
    actual = Actual(
        files=states,
        engine=ENGINE,
        containers=(container("worker-1", label),),
        contents={MADE.format("s"): None},
        slots={"s": (slot(word),)},
        proxies={"/run/s/proxy/admin.sock": PROXY},
    )
    made = plan(ExpectedHost("a", (Concern("fleet", items),)), actual)
    return report.Looked("a", "192.0.2.1", made, "", actual, fingerprint, {COMPOSE: compose("1")})


def document(*hosts: report.Looked, **unreached: str) -> dict[str, Any]:
    """The plan of a made-up site."""
    return report.document("site", "1", hosts, unreached)


def test_nothing_to_do_is_zero() -> None:
    """No change, no wait, and every slot serves on."""
    made = document(looked())
    assert (made["exit"], made["changes"]) == (0, 0)
    slot = {"stack": "s", "slot": 1, "state": "idle", "calls": None, "age": None, "will": "serve on"}
    assert made["hosts"][0]["slots"] == [slot]


@pytest.mark.parametrize(
    ("word", "code", "will"),
    [
        (SlotWord.IDLE, 2, "recreate now"),
        (SlotWord.DRAINED, 2, "recreate now"),
        (SlotWord.ON_A_CALL, 3, "recreate when its call has ended"),
        (SlotWord.DRAINING, 3, "recreate when its call has ended"),
        (SlotWord.UNKNOWN, 3, "recreate when its call has ended"),
    ],
)
def test_a_busy_or_unknown_slot_makes_the_plan_wait(word: SlotWord, code: int, will: str) -> None:
    """The exit code tells changes from changes that wait; the reason names the setting with old and new."""
    made = document(looked(word, label="c0"))
    (host,) = made["hosts"]
    (change,) = [one for one in host["changes"] if one["kind"] == "container"]
    assert made["exit"] == code
    assert change["waits"] is (code == 3)
    assert change["because"] == ["environment A: 1 -> 2"]
    assert host["slots"][0]["will"] == will


def test_a_secret_shows_only_that_it_differs() -> None:
    """Two keyed fingerprints, neither value nor its plain hash; the container says why it is made anew."""
    old, new = b"K='correct horse'\n", b"K='battery staple'\n"
    made = document(looked(label="c0", secret=old, wanted=new))
    text = json.dumps(made)
    (change,) = [one for one in made["hosts"][0]["changes"] if one["subject"] == ENV]
    assert fingerprint(sha256(old).encode())[:12] in change["diff"][1]
    assert fingerprint(sha256(new).encode())[:12] in change["diff"][1]
    for value in ("correct horse", "battery staple", sha256(old), sha256(new)):
        assert value not in text
    (recreate,) = [one for one in made["hosts"][0]["changes"] if one["kind"] == "container"]
    assert "its secret environment" in recreate["because"]


def test_only_its_mode_differs() -> None:
    """The same secret under another mode has the same fingerprint twice."""
    one = looked()
    state = replace(FILE, mode=0o644, sha256=sha256(b"K='old'\n"))
    actual = replace(one.actual, files={**dict(one.actual.files), ENV: state})  # type: ignore[arg-type]
    assert one.plan is not None
    items = (File(ENV, b"K='old'\n", mode="0600", secret=True),)
    made = document(replace(one, actual=actual, plan=plan(ExpectedHost("a", (Concern("fleet", items),)), actual)))
    (change,) = made["hosts"][0]["changes"]
    assert "(secret, unchanged" in change["diff"][1]


def test_a_host_that_cannot_be_read_or_reached_is_an_error() -> None:
    """It is named, and the code is 1 whatever else there is to do."""
    away = replace(looked(), name="b", plan=None, error="the probe failed")
    made = document(looked(label="c0"), away, c="no route")
    assert made["exit"] == 1
    assert [host["error"] for host in made["hosts"]] == ["", "the probe failed", "not reached: no route"]


def test_calls_never_make_a_plan_stale_and_everything_else_does() -> None:
    """Saved and read back: occupancy may move, hosts, files and the site may not."""
    saved = json.loads(json.dumps(document(looked(label="c0"))))
    for word in (SlotWord.ON_A_CALL, SlotWord.UNKNOWN):
        assert report.stale(saved, document(looked(word, label="c0"))) == []
    assert report.stale(saved, document(looked(label="c9"))) == [
        "a: the host or the site changed since the plan was made"
    ]
    assert report.stale(saved, document(looked(SlotWord.DEAD, label="c0")))
    assert report.stale(saved, document(looked(label="c0", wanted=b"K='new'\n")))
    assert report.stale(saved, document(replace(looked(label="c0"), name="b"))) == [
        "a: not in this run",
        "b: not in the saved plan",
    ]
    assert report.stale(saved, report.document("other", "2", [looked(label="c0")], {}))[:2] == [
        "it is for site site, this is other",
        "it is for release 1, this is 2",
    ]


@pytest.mark.parametrize("garbage", [{}, {"schema": 2, "kind": "plan"}, {"schema": 1, "kind": "apply"}])
def test_what_is_no_plan_is_refused(garbage: dict[str, Any]) -> None:
    """Another document, or one of another version."""
    assert report.stale(garbage, document(looked())) == ["it is no plan of schema 1"]


def test_the_word_of_a_plan_follows_its_content() -> None:
    """The same plan has the same word, another one another."""
    assert document(looked())["plan"] == document(looked())["plan"] != document(looked(label="c0"))["plan"]


def test_the_text_names_every_change_and_can_leave_diffs_out() -> None:
    """What people read holds what the document holds."""
    made = document(looked(SlotWord.ON_A_CALL, label="c0"))
    lines = list(report.text(made))
    every = "\n".join(line for _, line in lines)
    for change in made["hosts"][0]["changes"]:
        assert f"{change['word']} {change['kind']} {change['subject']}" in every
    assert "s/worker-1: on a call, calls ?: recreate when its call has ended" in every
    assert any(style == "diff" for style, _ in lines)
    assert not any(style == "diff" for style, _ in report.text(made, diffs=False))
