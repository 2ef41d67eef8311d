"""An operator's drain is a declared state; up, down and the keeper keep to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pytest

from callfleet.onhost.keeper import PROBE_SECONDS, Keeper

from .conftest import Host, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="connections are counted by root")


@pytest.fixture
def up(host: Host) -> Host:
    host.declare(slots=2, label="a")
    assert host.slotctl("converge") == 0
    host.forget_calls()
    return host


def rounds(host: Host, seconds: float = 0.0) -> None:
    """One round of the keeper, or rounds for a time."""
    keeper, until = Keeper(host.stack), time.monotonic() + seconds
    keeper.round()
    while time.monotonic() < until:
        time.sleep(0.1)
        keeper.round()


def test_a_declared_drain_survives_converge_swap_keeper_and_restart(up: Host) -> None:
    """Only `ready` ends it: not a second converge, not a new release, not a worker's restart, not the loss of /run."""
    assert up.slotctl("drain", "1", "--reason", "disk", "--wait", "180") == 0
    assert up.states() == {1: "drained", 2: "idle"}
    assert up.slotctl("converge") == 0
    up.declare(slots=2, label="b")
    assert up.slotctl("converge") == 0
    assert up.labels()["worker-1"] == "b", "a drained slot may be swapped"
    rounds(up)
    assert up.published() == [2]
    up.kill()
    shutil.rmtree(up.run_dir)
    assert up.slotctl("up") == 0
    rounds(up)
    assert up.published() == [2]
    assert up.slotctl("ready", "1") == 0
    assert up.published() == [1, 2]


def test_a_drain_of_a_slot_on_a_call_is_pending_and_the_call_goes_on(up: Host) -> None:
    """Withdrawn at once, exit 3 until the call has ended."""
    held = up.call(1)
    assert up.slotctl("drain", "1") == 3
    assert up.states()[1] == "draining"
    held.send(2, b"x")
    assert held.receive() == b"x"
    up.declare(slots=2, label="b")
    assert up.slotctl("converge") == 3
    assert up.published() == [2], "busy and declared: it stays withdrawn, it is not put back"
    held.__exit__()
    assert up.slotctl("drain", "1", "--wait", "180") == 0
    assert not up.was_cut()


def test_a_drain_does_not_wait_for_a_converge_and_is_not_undone_by_it(up: Host) -> None:
    """While a converge waits for a call, an operator drains that very slot: afterwards it is out."""
    held = up.call(1)
    up.declare(slots=2, label="b")
    run = up.start("converge", "--deadline", "600")
    wait_until(lambda: up.states()[1] == "draining")
    assert up.slotctl("drain", "1") == 3
    run.terminate()
    run.wait(180)
    assert up.published() == [2]
    held.__exit__()


def test_the_keeper_publishes_a_restarted_worker(up: Host) -> None:
    """Docker restarted it: new socket, unpublished, known to be good; the keeper gives it back its names."""
    up.kill("worker-1")
    Keeper(up.stack).docker.start(["worker-1"], recreate=False)
    wait_until(lambda: up.states()[1] == "unpublished")
    rounds(up)
    assert up.states()[1] == "idle"


def test_the_keeper_follows_the_number_of_slots(up: Host) -> None:
    """A worker that came with a resize is published again after a crash by the keeper that ran before it."""
    keeper = Keeper(up.stack)
    keeper.round()
    up.declare(slots=3, label="a")
    assert up.slotctl("converge") == 0
    up.kill("worker-3")
    keeper.docker.start(["worker-3"], recreate=False)
    wait_until(lambda: up.listens(3))
    wait_until(lambda: keeper.round() is None and up.states()[3] == "idle")
    up.declare(slots=2, label="a")
    keeper.round()
    assert list(keeper.stack.numbers) == [1, 2]


def test_the_keeper_does_not_publish_what_was_never_tried(up: Host) -> None:
    """A label that never passed a canary call waits for a converge, however healthy the worker looks."""
    up.declare(slots=2, label="b", mode="bad-canary")
    assert up.slotctl("converge") == 1
    rounds(up, 1.5)
    assert up.published() == [2]


@pytest.mark.parametrize("how", ["hang", "wrong-id", "error"])
def test_the_keeper_neither_publishes_a_strange_worker_nor_withdraws_a_hung_one(up: Host, how: str) -> None:
    """It needs a good answer to publish, and takes no slot away that has a listener."""
    up.behave(2, how)
    patience = {"health": {"answer_seconds": 1.5}} if how == "hang" else {}
    up.declare(slots=2, label="a", **patience)
    up.kill("worker-1")
    up.behave(1, how)
    Keeper(up.stack).docker.start(["worker-1"], recreate=False)
    wait_until(lambda: up.listens(1))
    keeper = Keeper(up.stack)
    keeper.probed -= PROBE_SECONDS
    keeper.round()
    assert up.published() == [2]


def test_the_keeper_removes_the_name_of_a_dead_socket(up: Host) -> None:
    """A crash leaves the socket file; behind the public name nobody listens, so the name goes."""
    up.kill("worker-1")
    assert up.published() == [1, 2]
    keeper = Keeper(up.stack)
    keeper.probed -= PROBE_SECONDS
    keeper.round()
    assert up.published() == [2]


def test_the_keeper_gives_back_a_slot_that_a_dead_run_had_withdrawn(up: Host) -> None:
    """Withdrawn but not yet being stopped, and nobody holds the lock: it serves again. Once stopping has begun, not."""
    from callfleet.onhost.compose import Docker
    from callfleet.onhost.slots import mark, observe, withdraw

    container = observe(up.stack, Docker(up.stack), [1])[1].container
    mark(up.stack, 1, "stopping", container)
    withdraw(up.stack, 1, "test")
    rounds(up)
    assert up.published() == [2]
    mark(up.stack, 1, "withdrawn", container)
    rounds(up)
    assert up.published() == [1, 2]


def test_the_keeper_leaves_a_running_converge_alone(up: Host) -> None:
    """What a converge withdrew stays withdrawn while it lives."""
    held = up.call(1)
    up.declare(slots=2, label="b")
    run = up.start("converge", "--deadline", "600")
    wait_until(lambda: up.states()[1] == "draining")
    rounds(up, 1)
    assert 1 not in up.published()
    run.terminate()
    run.wait(180)
    held.__exit__()


def test_the_keeper_ends_on_term(up: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has said that it is ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(up.root / "notify"))
        line.settimeout(180)
        monkeypatch.setenv("NOTIFY_SOCKET", str(up.root / "notify"))
        keeper = up.start("keep")
        assert line.recv(100) == b"READY=1"
    keeper.terminate()
    assert keeper.wait(180) == 0


def test_up_after_a_reboot_publishes_without_a_canary_or_a_registry(up: Host) -> None:
    """/run is empty, containers are down: everything comes back from what is on the host."""
    up.kill()
    shutil.rmtree(up.run_dir)
    assert up.slotctl("up") == 0
    assert up.published() == [1, 2]
    (compose,) = [call for call in up.changes() if call.startswith("compose")]
    assert "--no-recreate" in compose
    assert "--pull never" in compose


def test_up_replaces_nothing(up: Host) -> None:
    """Changed files on disk are a converge's business."""
    up.declare(slots=2, label="b")
    assert up.slotctl("up") == 0
    assert set(up.labels().values()) == {"a"}


def test_down_waits_for_the_call_and_takes_none_meanwhile(up: Host) -> None:
    """All slots are withdrawn at once; the idle one stops, the busy one when its call has ended."""
    held = up.call(1)
    run = up.start("down")
    wait_until(lambda: up.states() == {1: "draining", 2: "dead"})
    assert up.published() == []
    held.send(2, b"x")
    assert held.receive() == b"x"
    assert run.poll() is None
    held.__exit__()
    assert run.wait(180) == 0
    assert up.states() == {1: "dead", 2: "dead"}
    assert all("--signal TERM" in call for call in up.changes() if call.startswith("stop"))
    assert not up.was_cut()


def test_status_is_one_document_and_changes_nothing(up: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Every slot with its word, calls, connections, container and labels."""
    held = up.call(1)
    up.slotctl("drain", "2", "--reason", "why")
    capsys.readouterr()
    before = up.journal()
    assert up.slotctl("status", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    one, two = value["slots"]
    assert (one["state"], one["calls"], one["connections"], one["published"]) == ("on a call", 1, 1, True)
    assert (two["state"], two["calls"], two["published"]) == ("drained", 0, False)
    assert two["declared_drained"]["reason"] == "why"
    assert (one["config"], one["config_wanted"], one["up_to_date"]) == ("a", "a", True)
    assert up.journal() == before
    assert up.slotctl("status") == 0
    assert "worker-1" in capsys.readouterr().out
    held.__exit__()


def test_wrong_usage_is_64_and_says_where(up: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """A slot that does not exist, a broken description, a name that is a path."""
    assert up.slotctl("drain", "9") == 64
    assert "has no slot 9" in capsys.readouterr().err
    up.declare(slots=2, canary={"frames": "many"})
    assert up.slotctl("converge") == 64
    assert "canary.frames: expected int" in capsys.readouterr().err
    up.declare(slots=2, limits={"max_out": 0})
    assert up.slotctl("converge") == 64
    from callfleet.onhost.cli import main

    assert main(["status", "../etc"]) == 64
    with pytest.raises(SystemExit) as raised:
        main(["explode", "t-fleet"])
    assert raised.value.code == 64
