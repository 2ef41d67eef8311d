"""Calls through containers: every slot takes one, none takes two, a full fleet says so at once."""

from __future__ import annotations

import time
from typing import Any

from tests.lab.fleet import STACK, Fleet

SLOTS = 8
BURST = 40


def test_holds_a_call_on_every_slot(fleet: Fleet) -> None:
    """8 calls on 8 slots for 60 s through the ingress: no gap, no start accepted by a busy worker."""
    began = time.time()
    with fleet.calls() as held:
        held.start(SLOTS)
        assert held.wait_open() == SLOTS, held.report().as_json()
        time.sleep(60)
        held.stop()
        report = held.report()
    assert report.clean, report.gaps[:10]
    assert fleet.doubled(began) == []
    starts = [e for h in fleet.fleet_names for e in fleet.events(h, began) if e["event"] == "start"]
    assert len(starts) == SLOTS
    assert {(e["worker"]) for e in starts} == {"1", "2", "3", "4"}


def burst(fleet: Fleet) -> tuple[int, int, list[dict[str, Any]]]:
    """40 WebSocket starts at once through the ingress: (accepted, refused, doubled)."""
    began = time.time()
    with fleet.calls() as held:
        held.start(BURST)
        held.wait_open()
        report = held.report()
        accepted, refused = report.opened, [call for call in report.calls if not call.opened]
        assert all(call.refused in (429, 503) for call in refused), [call.refused or call.error for call in refused]
        assert max(call.answer_seconds for call in refused) < 1.0 if refused else True
        held.stop()
    return accepted, len(refused), fleet.doubled(began)


def test_a_burst_takes_exactly_the_free_slots(fleet: Fleet) -> None:
    """40 WebSocket starts at once against 8 free slots: 8 accepted, 32 refused within a second."""
    assert burst(fleet) == (SLOTS, BURST - SLOTS, [])


def test_a_burst_of_background_starts_takes_exactly_the_free_slots(fleet: Fleet) -> None:
    """20 `/attach` at each host's proxy against 4 free slots each: 4 accepted, the others `429 at_capacity`."""
    began = time.time()
    for name in fleet.fleet_names:
        answers = fleet.attach(name, BURST // 2, seconds=8)
        codes = sorted(answer.status for answer in answers)
        assert codes == [200] * 4 + [429] * 16
        assert all("at_capacity" in str(a.answer) for a in answers if a.status == 429)
        assert max(answer.answer_seconds for answer in answers if answer.status == 429) < 1.0
    assert fleet.doubled(began) == []
    fleet.wait_idle()
    ends = [e for h in fleet.fleet_names for e in fleet.events(h, began) if e["event"] == "end"]
    assert len(ends) == SLOTS
    assert all(abs(e["seconds"] - e["planned"]) < 1.0 for e in ends), ends


def test_outbound_calls_do_not_hide_free_slots_from_the_ingress(fleet: Fleet) -> None:
    """One host is filled by `/attach`, which the ingress does not see: the next four calls all find the other host."""
    first = fleet.fleet_names[0]
    assert [a.status for a in fleet.attach(first, 4, seconds=15)] == [200] * 4
    with fleet.calls() as held:
        for n in range(1, 5):
            held.start(1)
            assert held.wait_open() == n, held.report().as_json()["refused"]
        held.stop()
    fleet.wait_idle()


def test_a_request_above_a_small_buffer_still_finds_the_free_worker(fleet: Fleet) -> None:
    """Three of four slots are busy: a 20 kB `/attach` is accepted, one above the declared largest body gets 413."""
    name = fleet.fleet_names[0]
    assert [a.status for a in fleet.attach(name, 3, seconds=10)] == [200] * 3
    assert [a.status for a in fleet.attach(name, 1, seconds=5, padding="x" * 20_000)] == [200]
    assert [a.status for a in fleet.attach(name, 1, seconds=5, padding="x" * 70_000)] == [413]


def test_dispatch_is_never_retried(fleet: Fleet) -> None:
    """N dispatches to a full host are received N times and rejected N times."""
    name = fleet.fleet_names[0]
    assert [a.status for a in fleet.attach(name, 4, seconds=12)] == [200] * 4
    began = time.time()
    answers = fleet.attach(name, 10, seconds=2, path="/livekit/dispatch")
    assert [a.status for a in answers] == [429] * 10
    rejected = [e for e in fleet.events(name, began) if e["event"] == "dispatch_rejected"]
    assert len(rejected) == 10


def test_dispatch_finds_an_idle_worker(fleet: Fleet) -> None:
    """Half the slots busy by `/attach`: dispatches spaced above the check interval meet no rejection."""
    name = fleet.fleet_names[0]
    began = time.time()
    assert [a.status for a in fleet.attach(name, 2, seconds=20)] == [200] * 2
    for _ in range(6):
        time.sleep(1.2)  # above the check interval: the arrivals of real dispatches are spaced, not awaited
        assert [a.status for a in fleet.attach(name, 1, seconds=1.0, path="/livekit/dispatch")] == [200]
    assert [e for e in fleet.events(name, began) if e["event"] == "dispatch_rejected"] == []


def test_health_does_not_queue_behind_calls(fleet: Fleet) -> None:
    """Every slot busy and 20 starts waiting: `/health/fleet` answers in under half a second."""
    name = fleet.fleet_names[0]
    assert [a.status for a in fleet.attach(name, 4, seconds=10)] == [200] * 4
    with fleet.calls(name) as held:
        held.start(20)
        code, seconds, body = health(fleet, name)
        held.wait_open()
    assert code == "200"
    assert '"fleet_available":0' in body
    assert seconds < 0.5


def health(fleet: Fleet, name: str) -> tuple[str, float, str]:
    """(status, seconds, body) of `/health/fleet` at a host's public port, asked from the hub."""
    url = f"https://{name}.{fleet.lab.domain}/health/fleet"
    address = fleet.lab.host(name).address
    host = url.split("/")[2]
    line = fleet.ssh(
        "hub", f"curl -sk --resolve {host}:443:{address} -w '\\n%{{http_code}} %{{time_total}}' {url}"
    ).splitlines()
    code, seconds = line[-1].split()
    return code, float(seconds), "\n".join(line[:-1])


def test_a_hung_worker_does_not_take_its_host_out(fleet: Fleet, record_property: Any) -> None:
    """One worker stopped by SIGSTOP: the host stays in rotation and the other three slots take calls."""
    name = fleet.fleet_names[0]
    pid = fleet.ssh(name, f"docker inspect -f '{{{{.State.Pid}}}}' {STACK}-worker-2-1").strip()
    fleet.ssh(name, f"kill -STOP {pid}")
    try:
        fleet.until(lambda: health(fleet, name)[0] == "200", 15, "fleet health answers beside a hung worker")
        code, seconds, body = health(fleet, name)
        record_property("health_with_hung_worker_seconds", seconds)
        assert code == "200"
        assert '"status":"unreachable"' in body
        # The hung worker's own check takes a few seconds to see it; from then on no start is sent to it.
        fleet.until(lambda: down_in_proxy(fleet, name, "w2"), 20, "the proxy sees the hung worker")
        with fleet.calls() as held:
            held.start(7)
            assert held.wait_open() == 7, held.report().as_json()["refused"]
            held.stop()
    finally:
        fleet.ssh(name, f"kill -CONT {pid}")
    fleet.until(lambda: not down_in_proxy(fleet, name, "w2"), 20, "the worker is back")


def down_in_proxy(fleet: Fleet, host: str, server: str) -> bool:
    """Whether the host proxy counts a worker as down."""
    return proxy_status(fleet, host, "health").get(server, "").startswith("DOWN")


def proxy_status(fleet: Fleet, host: str, backend: str) -> dict[str, str]:
    """Status of each server of a backend, as the host proxy itself says."""
    ask = (
        "python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); "
        f's.connect("/run/{STACK}/proxy/admin.sock"); s.sendall(b"show stat\\n"); s.shutdown(1); '
        'print(b"".join(iter(lambda: s.recv(65536), b"")).decode())\''
    )
    rows = [line.split(",") for line in fleet.ssh(host, ask).splitlines() if line.startswith(f"{backend},")]
    return {row[1]: row[17] for row in rows if row[1] != "BACKEND"}


def test_a_full_host_stays_reachable_for_the_slot_that_frees(fleet: Fleet) -> None:
    """All slots but one long full, one frees: the next call finds it without waiting for a health check."""
    with fleet.calls() as held, fleet.calls() as short:
        held.start(SLOTS - 1)
        assert held.wait_open() == SLOTS - 1
        short.start(1)
        assert short.wait_open() == 1
        short.stop()
        fleet.until(lambda: sum(s["calls"] for h in fleet.fleet_names for s in fleet.slots(h)) == SLOTS - 1, 10, "free")
        held.start(1)
        assert held.wait_open() == SLOTS, held.report().as_json()["refused"]
        held.stop()
    assert held.report().clean


def test_the_checks_see_doubled_calls(fleet: Fleet) -> None:
    """Control: with the stand-in's refusal off, more than the free slots are taken and doubled starts are counted.

    The same workers answer JSON with spaces: the proxy still reads their 0 calls.
    """

    def break_it(site: dict[str, Any]) -> None:
        site["core"]["environment"] |= {"STANDIN_REFUSE": "0", "STANDIN_JSON_SPACES": "1"}

    name = fleet.fleet_names[0]
    with fleet.edited(break_it):
        fleet.converge()
        fleet.until(lambda: set(proxy_status(fleet, name, "dispatch").values()) == {"UP"}, 20, "0 calls are read")
        accepted, doubled = two_waves(fleet, name)
        assert accepted > 4
        assert doubled > 0
        fleet.wait_idle()
    fleet.converge()
    assert two_waves(fleet, name) == (4, 0)


def two_waves(fleet: Fleet, name: str) -> tuple[int, int]:
    """40 background starts at one host, the second half when the first is answered: (accepted, doubled)."""
    began = time.time()
    answers = [*fleet.attach(name, BURST // 2, seconds=5), *fleet.attach(name, BURST // 2, seconds=5)]
    return [answer.status for answer in answers].count(200), len(fleet.doubled(began))
