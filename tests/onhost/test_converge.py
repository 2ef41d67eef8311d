"""Converging, with real workers on real sockets: what is started, swapped, left alone, and never cut."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from callfleet.onhost import canary
from callfleet.onhost.compose import Docker
from callfleet.onhost.slots import observe

from .conftest import Host, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="connections are counted by root")


@pytest.fixture
def up(host: Host) -> Host:
    """Three slots made from label a, published."""
    host.declare(slots=3, label="a")
    assert host.slotctl("converge") == 0
    host.forget_calls()
    return host


def test_first_start_is_one_compose_call_and_each_slot_is_tried_before_it_is_published(host: Host) -> None:
    """Missing slots start together, replacing and pulling nothing; the journal has the canary before the publishing."""
    host.declare(slots=3, label="a")
    assert host.slotctl("converge") == 0
    assert host.published() == [1, 2, 3]
    assert set(host.states().values()) == {"idle"}
    (compose,) = [call for call in host.docker_calls() if call.startswith("compose")]
    assert "--no-recreate" in compose
    assert "--no-deps --no-build --pull never" in compose
    assert compose.endswith("worker-1 worker-2 worker-3")
    for n in (1, 2, 3):
        what = [line["what"] for line in host.journal() if line["subject"] == f"worker-{n}"]
        assert what == ["started", "canary passed", "published"]
    written = json.loads((host.root / f"etc/callfleet/stacks/{host.stack.name}/canary.json").read_text())
    assert (written["config"], written["ok"], written["slots"]) == ("a", True, [1, 2, 3])


def test_a_second_run_changes_nothing(up: Host) -> None:
    """No Docker change, no journal line, same processes."""
    before = (up.journal(), sorted(value["pid"] for value in up.containers()))
    assert up.slotctl("converge") == 0
    assert (up.journal(), sorted(value["pid"] for value in up.containers())) == before
    assert up.changes() == []


def test_idle_slots_are_swapped_and_stopped_by_term_one_after_the_other(up: Host) -> None:
    """A new label reaches every idle slot; a stop names TERM; never are two slots out at once."""
    up.declare(slots=3, label="b")
    assert up.slotctl("converge") == 0
    assert set(up.labels().values()) == {"b"}
    assert up.published() == [1, 2, 3]
    stops = [call for call in up.changes() if call.startswith("stop")]
    assert len(stops) == 3
    assert all("--signal TERM -t 5" in call for call in stops)
    out = most = 0
    for line in up.journal()[9:]:
        if line["subject"].startswith("worker-") and line["what"] in ("withdrawn", "published"):
            out += 1 if line["what"] == "withdrawn" else -1
            most = max(most, out)
    assert most == 1
    assert not up.was_cut()


@pytest.mark.parametrize(
    ("changed", "swapped"),
    [({"memory": 1}, True), ({"hash": "another"}, True), ({"mode": "other"}, False)],
    ids=["a limit", "another compose file", "control"],
)
def test_a_container_that_was_changed_by_hand_is_swapped_for_a_true_one(
    changed: dict[str, Any], swapped: bool, up: Host
) -> None:
    """Its label still tells the old tale: what it was really made from is noted. The next run has nothing to do."""
    before = {value["service"]: value["id"] for value in up.containers()}
    (value,) = (one for one in up.containers() if one["service"] == "worker-2")
    (up.docker_dir / f"{value['id']}.container").write_text(json.dumps({**value, **changed}))
    assert up.slotctl("converge") == 0
    after = {value["service"]: value["id"] for value in up.containers()}
    assert {name for name in after if after[name] != before[name]} == ({"worker-2"} if swapped else set())
    assert up.published() == [1, 2, 3]
    up.forget_calls()
    assert up.slotctl("converge") == 0
    assert up.changes() == []


@pytest.mark.parametrize("note", ["", "[]", '{"worker-1": 5, "worker-2": {"a": 7}}'])
def test_a_note_that_is_garbage_or_gone_is_made_good(note: str, up: Host) -> None:
    """Without a note a label is believed; a wrong one costs a swap of what carries nothing."""
    up.stack.made_file.write_text(note) if note else up.stack.made_file.unlink()
    assert up.slotctl("converge") == 0
    assert up.published() == [1, 2, 3]
    up.forget_calls()
    assert up.slotctl("converge") == 0
    assert up.changes() == []


def test_max_out_two_swaps_two_at_a_time(up: Host) -> None:
    """The declared share may be larger."""
    up.declare(slots=3, label="b", limits={"start_seconds": 30, "max_out": 2})
    assert up.slotctl("converge") == 0
    words = [line["what"] for line in up.journal() if line["what"] in ("withdrawn", "published")][3:]
    assert words[:2] == ["withdrawn", "withdrawn"]


def test_a_busy_slot_is_left_serving_and_a_later_run_finishes(up: Host) -> None:
    """The call goes on on the old worker, the slot stays published, exit 3; after the call the same run does it."""
    held = up.call(2)
    up.declare(slots=3, label="b")
    assert up.slotctl("converge") == 3
    assert up.labels() == {"worker-1": "b", "worker-2": "a", "worker-3": "b"}
    assert up.published() == [1, 2, 3]
    held.send(2, b"still here")
    assert held.receive() == b"still here"
    held.__exit__()
    assert up.slotctl("converge") == 0
    assert up.labels()["worker-2"] == "b"
    assert not up.was_cut()


def test_with_a_deadline_a_busy_slot_is_withdrawn_and_swapped_when_its_call_ends(up: Host) -> None:
    """It takes no further call meanwhile; the run waits for the one it has."""
    held = up.call(2)
    up.declare(slots=3, label="b")
    run = up.start("converge", "--deadline", "600")
    wait_until(lambda: up.states()[2] == "draining")
    assert up.published() == [1, 3]
    held.send(2, b"on")
    assert held.receive() == b"on"
    held.__exit__()
    assert run.wait(180) == 0
    assert up.labels()["worker-2"] == "b"
    assert not up.was_cut()


def test_a_connection_without_a_call_yet_is_waited_for(up: Host) -> None:
    """The worker says 0 calls while someone has connected and not spoken: nothing is stopped."""
    import socket

    with socket.socket(socket.AF_UNIX) as quiet:
        quiet.connect(str(up.stack.published_socket(1)))
        up.declare(slots=3, label="b", limits={"settle_seconds": 1.5})
        assert up.slotctl("converge") == 3
        assert up.labels()["worker-1"] == "a"
        assert up.published() == [1, 2, 3]


@pytest.mark.parametrize("how", ["hang", "error", "wrong-id", "calls=-1"])
def test_a_published_worker_without_a_clear_answer_is_never_stopped(up: Host, how: str) -> None:
    """Unknown is busy: it stays as it is, published, and the run says pending."""
    up.behave(2, how)
    patience = {"health": {"answer_seconds": 1.5}} if how == "hang" else {}
    up.declare(slots=3, label="b", **patience)
    assert up.slotctl("converge") == 3
    assert up.labels() == {"worker-1": "b", "worker-2": "a", "worker-3": "b"}
    assert up.published() == [1, 2, 3]


def test_a_dead_worker_is_replaced_though_it_cannot_answer(up: Host) -> None:
    """No process and no listener: unknown-is-busy does not block repair."""
    up.kill("worker-2")
    assert up.states()[2] == "dead"
    up.declare(slots=3, label="b")
    assert up.slotctl("converge") == 0
    assert up.labels()["worker-2"] == "b"
    assert up.published() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["bad-canary", "mute", "silent", "crash"])
def test_a_failed_canary_stays_unpublished_and_stops_the_rollout(up: Host, mode: str) -> None:
    """One slot is lost to the bad release, the rest serves on with the old one; a good release repairs it."""
    up.declare(slots=3, label="b", mode=mode, limits={"start_seconds": 1.5}, canary={"timeout_seconds": 2})
    assert up.slotctl("converge") == 1
    assert up.published() == [2, 3]
    assert sorted(up.labels().values()) == ["a", "a", "b"]
    assert canary.proven(up.stack) == {"a"}
    assert up.slotctl("converge") == 1, "the same bad release again"
    assert sorted(up.labels().values()) == ["a", "a", "b"]
    up.declare(slots=3, label="c")
    assert up.slotctl("converge") == 0
    assert set(up.labels().values()) == {"c"}
    assert up.published() == [1, 2, 3]


def test_a_failure_is_told_with_the_containers_last_lines(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of --json is the result; it names the slot, the reason and what the container said."""
    host.declare(slots=1, mode="bad-canary")
    assert host.slotctl("converge", "--json") == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert (result["exit"], result["word"]) == (1, "failed")
    assert "403" in result["services"]["worker-1"]["detail"]
    assert "worker 1 starts" in result["services"]["worker-1"]["detail"]


def test_a_worker_that_dies_at_once_is_a_failure_on_the_first_start_too(host: Host) -> None:
    """A started slot that is gone again is told, not forgotten."""
    host.declare(slots=2, mode="crash", limits={"start_seconds": 1})
    assert host.slotctl("converge") == 1
    assert host.published() == []


def test_fewer_slots_removes_the_idle_and_leaves_the_busy(up: Host) -> None:
    """A surplus slot goes when it carries nothing; one on a call is pending and goes in a later run."""
    held = up.call(3)
    up.declare(slots=1, label="a")
    assert up.slotctl("converge") == 3
    assert set(up.labels()) == {"worker-1", "worker-3"}
    assert not (up.run_dir / "slots/2").exists()
    assert up.published() == [1, 3]
    held.__exit__()
    assert up.slotctl("converge") == 0
    assert set(up.labels()) == {"worker-1"}
    assert up.published() == [1]
    assert not up.was_cut()


def test_a_surplus_slot_stays_until_its_results_are_delivered(up: Host) -> None:
    """They may be its own, and only it would deliver them. What comes later is its siblings' and holds up nobody."""
    outbox = up.root / "var/outbox"
    outbox.mkdir(parents=True)
    (outbox / "3--a.json").write_text("{}")
    (outbox / "events.jsonl").write_text("")
    more = {"outbox": {"directory": "/var/outbox", "pattern": "*.json"}, "limits": {"settle_seconds": 1.0}}
    up.declare(slots=2, label="a", **more)
    assert up.slotctl("converge") == 3
    assert up.published() == [1, 2, 3]
    (outbox / "3--a.json").rename(outbox / "1--b.json.part")
    assert up.slotctl("converge") == 0
    assert up.published() == [1, 2]


def test_a_drain_holds_a_surplus_slot_too(up: Host) -> None:
    """It may be on a call: a host that leaves waits for it, and it takes none again."""
    with up.call(3):
        up.declare(slots=2, label="a")
        assert up.slotctl("converge") == 3
        assert up.slotctl("drain") == 3
        assert up.states() == {1: "drained", 2: "drained", 3: "draining"}
    assert up.slotctl("drain", "--wait", "60") == 0
    assert up.slotctl("ready") == 0
    assert up.published() == [1, 2]


def test_more_slots_leaves_the_others_alone(up: Host) -> None:
    """New slots start beside the old ones and see their siblings."""
    pids = {service: up.pid(service) for service in up.labels()}
    up.declare(slots=5, label="a")
    assert up.slotctl("converge") == 0
    assert up.published() == [1, 2, 3, 4, 5]
    assert {service: up.pid(service) for service in pids} == pids
    assert (up.run_dir / "slots/5/t_1.sock").exists()


def test_docker_not_answering_changes_nothing(up: Host) -> None:
    """Without Docker's word every slot is unknown and the run fails; nothing is withdrawn."""
    (up.docker_dir / "broken").touch()
    up.declare(slots=3, label="b")
    assert up.slotctl("converge") == 1
    assert set(up.states().values()) == {"unknown"}
    assert up.published() == [1, 2, 3]


def test_compose_file_and_description_that_disagree_are_a_failure(up: Host) -> None:
    """The started container must carry the wanted label."""
    up.declare(slots=3, label="b")
    path = up.root / "opt/stacks/t-fleet/compose.yml"
    path.write_text(path.read_text().replace('"b"', '"x"'))
    assert up.slotctl("converge") == 1
    assert up.published() == [2, 3]


@pytest.mark.parametrize("after", ["withdrawn", "stopped", "started", "canary passed"])
def test_killed_at_any_step_a_second_run_completes(up: Host, after: str) -> None:
    """SIGKILL as soon as the journal shows a step: the next run ends as if nothing had happened."""
    up.declare(slots=3, label="b")
    known = len(up.journal())
    run = up.start("converge")
    while not any(line["what"] == after for line in up.journal()[known:]):
        time.sleep(0.005)
        assert run.poll() is None
    run.kill()
    run.wait()
    assert len(up.published()) >= 2, "at most the one slot in hand is out"
    wait_until(lambda: not up.docker_runs())  # a compose call that was under way ends by itself
    assert up.slotctl("converge") == 0
    assert set(up.labels().values()) == {"b"}
    assert up.published() == [1, 2, 3]
    assert not up.was_cut()


def test_term_while_waiting_puts_the_withdrawn_slot_back(up: Host) -> None:
    """A stopped run leaves no slot withdrawn: its call goes on and it serves."""
    held = up.call(2)
    up.declare(slots=3, label="b")
    run = up.start("converge", "--deadline", "600")
    wait_until(lambda: up.states()[2] == "draining")
    run.terminate()
    assert run.wait(180) == 1
    assert up.published() == [1, 2, 3]
    held.send(2, b"x")
    assert held.receive() == b"x"
    held.__exit__()


def test_only_one_run_at_a_time_and_no_overtaken_controller(up: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run is refused while the first holds the lock; a lower fence number than the known one is refused."""
    assert up.slotctl("converge", "--fence", "7") == 0
    assert up.slotctl("converge", "--fence", "6") == 1
    assert "stale" in capsys.readouterr().err
    held = up.call(1)
    up.declare(slots=3, label="b")
    run = up.start("converge", "--deadline", "600", "--fence", "7")
    wait_until(lambda: 1 not in up.published())
    assert up.slotctl("converge", "--wait", "0", "--fence", "7") == 1
    run.terminate()
    run.wait(180)
    held.__exit__()


def test_a_withdrawn_slot_with_a_call_from_a_dead_run_is_published_again(up: Host) -> None:
    """A run died after it withdrew a slot on a call: the next one, with nothing to change there, gives it back."""
    from callfleet.onhost.slots import mark, withdraw

    held = up.call(1)
    mark(up.stack, 1, "withdrawn", observe(up.stack, Docker(up.stack), [1])[1].container)
    withdraw(up.stack, 1, "test")
    assert up.states()[1] == "draining"
    assert up.slotctl("converge") == 0
    assert up.published() == [1, 2, 3]
    held.send(2, b"x")
    assert held.receive() == b"x"
    held.__exit__()
