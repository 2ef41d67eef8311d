"""Calls through containers: every slot takes one, none takes two, a full fleet says so at once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from lab.calls import Started, StartStream, Summary, attach_burst
from lab.calls import burst as hold_burst
from lab.images.standin.siblings import ASK_TIMEOUT
from tests.lab.background import background
from tests.lab.fleet import STACK, WORKERS, Fleet, starts_of
from tests.lab.look import HOST_PROXY, INGRESS, ask_proxy, in_rotation, show_stat, tell

SLOTS = 8
BURST = 40
ATTACH_SECONDS = 4
WAITING = 20
MARGIN = 1.5
"""Seconds for TLS and a busy machine, on top of a limit of the configuration."""


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
    starts = fleet.started(began, SLOTS)
    assert len(starts) == SLOTS
    assert {(e["worker"]) for e in starts} == {"1", "2", "3", "4"}


async def ring(fleet: Fleet) -> tuple[Summary, list[Started]]:
    """40 WebSocket starts through the ingress and 20 `/attach` at each host's proxy, all at the same time.

    Background calls are what the proxies cannot see. The WebSockets are opened at the moment at which the first start
    in the background has gone out, before any is answered, and are held until every start is answered.
    """
    urls = [f"https://{name}.{fleet.lab.domain}/attach" for name in fleet.fleet_names]
    sent, options = asyncio.Event(), {"ssl_ctx": fleet.ssl, "resolve": fleet.resolve}
    posts = asyncio.gather(*(attach_burst(url, BURST // 2, ATTACH_SECONDS, sent=sent, **options) for url in urls))
    await asyncio.wait([posts, asyncio.create_task(sent.wait())], return_when=asyncio.FIRST_COMPLETED)
    async with hold_burst(f"wss://calls.{fleet.lab.domain}/ws/demo", BURST, fleet.ssl, resolve=fleet.resolve) as held:
        started = [answer for answers in await posts for answer in answers]
    return held, started


def pace(fleet: Fleet, count: int) -> float:
    """Seconds in which each host's proxy answers that many new connections at once by itself, without a worker."""
    urls = [f"https://{name}.{fleet.lab.domain}/nowhere" for name in fleet.fleet_names]

    async def ask() -> list[list[Started]]:
        return await asyncio.gather(
            *(attach_burst(url, count, ATTACH_SECONDS, ssl_ctx=fleet.ssl, resolve=fleet.resolve) for url in urls)
        )

    answers = [one for each in asyncio.run(ask()) for one in each]
    assert {one.status for one in answers} == {404}
    return max(one.answer_seconds for one in answers)


def takes_exactly_the_free_slots(fleet: Fleet) -> None:
    """The whole check of a burst against 8 free slots: 8 accepted, 72 refused, right and at once.

    At once is a second, on top of what this machine takes for as many answers in which no worker is asked.
    """
    machine = pace(fleet, BURST)
    began = time.time()
    with fleet.rotation() as rotation:
        held, started = asyncio.run(ring(fleet))
    fleet.background += started
    both = [*held.calls, *started]
    spread = max(one.began_at for one in both) - min(one.began_at for one in both)
    mixed = sum(answer.answered_at > min(call.began_at for call in held.calls) for answer in started)
    opened, attached = held.opened, [answer.status for answer in started].count(200)
    waits = sorted(call.answer_seconds for call in held.calls if not call.opened)
    waits += sorted(answer.answer_seconds for answer in started if answer.status != 200)
    taken = fleet.started(began, opened + attached)
    tell(
        f"burst: {len(both)} starts within {spread:.3f} s, {mixed} of those in the background on their way when the "
        f"others began; {opened} calls and {attached} background calls taken; "
        f"slowest refusal {max(waits, default=0):.3f} s (without workers {machine:.3f} s), "
        f"driver lag {held.driver_lag:.3f} s; refused {held.refused}"
    )
    assert mixed > 0, "one kind came after the other"
    assert (opened + attached, len(taken)) == (SLOTS, SLOTS)
    assert set(held.refused) <= {429, 503}, [call.error for call in held.calls if call.error]
    assert all(a.status == 429 and "at_capacity" in str(a.answer) for a in started if a.status != 200)
    assert max(waits) < 1.0 + machine
    assert fleet.doubled(began) == []
    starts = starts_of(held, fleet.fleet_names)
    for n, name in enumerate(fleet.fleet_names):
        starts += starts_of(started[n * BURST // 2 : (n + 1) * BURST // 2], [name])
    assert [start.taken for start in starts].count(False) == 2 * BURST - SLOTS
    assert fleet.refused_while_free(starts, rotation) == []


def test_a_burst_takes_exactly_the_free_slots(fleet: Fleet) -> None:
    """40 starts through the ingress and 40 at the hosts' proxies at once: 8 taken, none refused beside a free slot."""
    takes_exactly_the_free_slots(fleet)


def test_a_burst_of_background_starts_takes_exactly_the_free_slots(fleet: Fleet) -> None:
    """20 `/attach` at each host's proxy against 4 free slots each: 4 accepted, the others `429 at_capacity`."""
    began = time.time()
    for name in fleet.fleet_names:
        machine = pace(fleet, BURST // 4)
        answers = fleet.attach(name, BURST // 2, seconds=4)
        codes = sorted(answer.status for answer in answers)
        assert codes == [200] * 4 + [429] * 16
        assert all("at_capacity" in str(a.answer) for a in answers if a.status == 429)
        assert max(answer.answer_seconds for answer in answers if answer.status == 429) < 1.0 + machine
        assert fleet.refused_while_free(starts_of(answers, [name])) == []
    assert fleet.doubled(began) == []
    assert fleet.cut() == []


def test_the_check_sees_refusals_beside_a_free_slot(fleet: Fleet) -> None:
    """Control: a host's proxy says 429 to all while its slots are idle, as one that counts wrongly would."""
    name = fleet.fleet_names[0]
    ask_proxy(fleet, name, HOST_PROXY, "; ".join(f"set server workers/w{n} state maint" for n in range(1, WORKERS + 1)))
    try:
        answers = fleet.attach(name, 3, seconds=1)
    finally:
        ready = "; ".join(f"set server workers/w{n} state ready" for n in range(1, WORKERS + 1))
        ask_proxy(fleet, name, HOST_PROXY, ready)
    assert [answer.status for answer in answers] == [429] * 3
    assert len(fleet.refused_while_free(starts_of(answers, [name]))) == 3
    assert fleet.refused_while_free(starts_of(answers, [fleet.fleet_names[1]])) != [], "the other host's are free too"


def test_the_check_sees_cut_background_calls(fleet: Fleet) -> None:
    """Control: of three background calls one loses its worker to SIGTERM, one to SIGKILL; both are named."""
    name = fleet.fleet_names[0]
    workers = [str(n) for n in range(1, WORKERS + 1)]
    ask = f"docker inspect -f '{{{{.State.Pid}}}}' {' '.join(f'{STACK}-worker-{n}-1' for n in workers)}"
    pids = dict(zip(workers, fleet.ssh(name, ask).split(), strict=True))
    answers = {answer.answer["worker_id"]: answer.session for answer in fleet.attach(name, 3, seconds=6)}
    (kept, _), (cut, _), (killed, _) = sorted(answers.items())
    fleet.ssh(name, f"kill -TERM {pids[cut]} && kill -KILL {pids[killed]}")
    there = {answers[kept], answers[cut]}
    fleet.until(lambda: there <= fleet.results().keys(), 30, "the worker that SIGTERM ended is back, with its result")
    said = dict(line.split(maxsplit=1) for line in fleet.cut(within=1))
    assert said.keys() == {answers[cut], answers[killed]}, (kept, said)
    assert said[answers[cut]].startswith("ended (cut)")
    assert said[answers[killed]] == "left no result"
    fleet.until(lambda: [slot["state"] for slot in fleet.slots(name)] == ["idle"] * WORKERS, 20, "both are back")


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
        time.sleep(2)  # above the check interval: the arrivals of real dispatches are spaced, not awaited
        assert [a.status for a in fleet.attach(name, 1, seconds=1.0, path="/livekit/dispatch")] == [200]
    assert [e for e in fleet.events(name, began) if e["event"] == "dispatch_rejected"] == []


@dataclass(frozen=True)
class Sample:
    """One `/health/fleet` through a host's proxy: when it was asked, how long it took, what was answered."""

    at: float
    seconds: float
    code: str
    body: str


def samples(fleet: Fleet, name: str, n: int) -> list[Sample]:
    """n times `/health/fleet` of a host, asked from the hub one after the other over fresh connections."""
    address, url = fleet.lab.host(name).address, f"https://{name}.{fleet.lab.domain}/health/fleet"
    ask = f"curl -sk -m 20 --resolve {url.split('/')[2]}:443:{address} -w '\\n%{{http_code}} %{{time_total}}\\n' {url}"
    lines = fleet.ssh("hub", f"for i in $(seq {n}); do date +%s.%N; {ask}; done").splitlines()
    return [
        Sample(float(at), float(last.split()[1]), last.split()[0], body)
        for at, body, last in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
    ]


def health_is_quick(stream: StartStream, looks: list[Sample]) -> None:
    """Every look within half a second, on a full host; three quarters of them from begin to end beside 20 starts.

    (The driver's own pauses between an answer and the next start are what the other quarter is for.)
    """
    flights = [min(stream.in_flight(look.at), stream.in_flight(look.at + look.seconds)) for look in looks]
    slowest, beside = max(look.seconds for look in looks), [flight >= WAITING for flight in flights].count(True)
    tell(f"/health/fleet of a full host: {len(looks)} looks, {beside} beside {WAITING} starts, slowest {slowest:.3f} s")
    assert {look.code for look in looks} == {"200"}
    assert all('"fleet_available":0' in look.body for look in looks), looks
    assert slowest < 0.5, "too slow"
    assert beside >= len(looks) * 3 / 4, f"too few starts were waiting: {flights}"


def test_health_does_not_queue_behind_calls(fleet: Fleet) -> None:
    """Every slot busy and 20 starts waiting all the time: each of 20 `/health/fleet` takes less than half a second.

    Controls: workers that answer late, and looks while nobody waits, are red.
    """
    name, idle = fleet.fleet_names[0], StartStream("", 0)
    with background(fleet, name, WORKERS):
        with pytest.raises(AssertionError, match="too few"):
            health_is_quick(idle, samples(fleet, name, 2))
        with stream_to(fleet, name, 2 * WAITING) as stream:
            fleet.until(lambda: stream.in_flight(time.time()) >= WAITING, 20, "the starts are under way")
            looks = samples(fleet, name, 20)
            with slow_health(fleet, name, 0.7):
                late = samples(fleet, name, 2)
    health_is_quick(stream, looks)
    with pytest.raises(AssertionError, match="too slow"):
        health_is_quick(stream, late)
    assert stream.summary().opened == 0
    assert set(stream.summary().refused) == {429}


def stream_to(fleet: Fleet, name: str, callers: int, **options: Any) -> StartStream:
    """Callers who start calls again and again at a name of the site."""
    url = f"wss://{name}.{fleet.lab.domain}/ws/demo"
    return StartStream(url, callers, fleet.ssl, resolve=fleet.resolve, **options)


@contextmanager
def slow_health(fleet: Fleet, host: str, seconds: float) -> Iterator[None]:
    """Every worker of a host answers questions after its health this late."""
    slots = " ".join(f"/run/{STACK}/slots/{n}/cxbcore_{n}.slow" for n in range(1, WORKERS + 1))
    fleet.ssh(host, f"for f in {slots}; do echo {seconds} > $f; chmod 644 $f; done")
    try:
        yield
    finally:
        fleet.ssh(host, f"rm -f {slots}")


@contextmanager
def stays_in_rotation(fleet: Fleet, host: str) -> Iterator[None]:
    """The ingress, by its own counters, never takes the host out while the block runs."""
    before = show_stat(fleet, "hub", INGRESS)["calls"][host]
    yield
    after = show_stat(fleet, "hub", INGRESS)["calls"][host]
    assert after["status"] == "UP"
    assert {key: after[key] for key in ("chkdown", "downtime")} == {key: before[key] for key in ("chkdown", "downtime")}


def test_the_check_sees_a_host_that_was_out_for_a_moment(fleet: Fleet) -> None:
    """Control: the ingress takes a host out and back in between two looks; its counters tell."""
    name = fleet.fleet_names[0]

    def out_for_a_moment() -> None:
        with stays_in_rotation(fleet, name):
            ask_proxy(fleet, "hub", INGRESS, f"set server calls/{name} health down")
            fleet.until(lambda: show_stat(fleet, "hub", INGRESS)["calls"][name]["status"] == "UP", 20, "it is back")

    with pytest.raises(AssertionError, match="chkdown"):
        out_for_a_moment()


def limit(fleet: Fleet, host: str, backend: str, pattern: str) -> float:
    """A time in seconds from the configuration that a host's proxy runs."""
    config = fleet.ssh(host, f"cat /opt/stacks/{STACK}/haproxy/haproxy.cfg")
    section = config[config.index(f"\nbackend {backend}\n") :]
    found = re.search(rf"{pattern} (\d+)s", section)
    assert found is not None, f"{backend}: no {pattern}"
    return float(found[1])


def test_a_hung_worker_does_not_take_its_host_out(fleet: Fleet, record_property: Any) -> None:
    """One worker stopped by SIGSTOP: the host stays in rotation, and nobody waits for longer than its proxy's limits.

    `/health/fleet` takes at most the limit for an answer and one more look; a start that is sent to the hung worker is
    taken by another one after the limit for starts. Once the proxy has seen it, nothing is sent there.
    """
    name = fleet.fleet_names[0]
    health_limit = limit(fleet, name, "health", "timeout server") + ASK_TIMEOUT
    start_limit = limit(fleet, name, "workers", "set-timeout server")
    pid = fleet.ssh(name, f"docker inspect -f '{{{{.State.Pid}}}}' {STACK}-worker-2-1").strip()
    sent = sent_to(fleet, name, "w2")
    with stays_in_rotation(fleet, name):
        fleet.ssh(name, f"kill -STOP {pid}")
        try:
            with stream_to(fleet, name, 2, pause=0.5) as stream, ThreadPoolExecutor(WORKERS) as pool:
                # As many at once as there are workers: one of them asks the hung one.
                looks = [s for found in pool.map(lambda _: samples(fleet, name, 2), range(WORKERS)) for s in found]
                fleet.until(lambda: down_in_proxy(fleet, name, "w2"), 20, "the proxy sees the hung worker")
            hit = sent_to(fleet, name, "w2") - sent
            with fleet.calls() as held:
                held.start(7)
                assert held.wait_open() == 7, held.report().as_json()["refused"]
                held.stop()
            assert sent_to(fleet, name, "w2") == sent + hit
        finally:
            fleet.ssh(name, f"kill -CONT {pid}")
        fleet.until(lambda: not down_in_proxy(fleet, name, "w2"), 20, "the worker is back")
    slowest, waits = max(s.seconds for s in looks), [call.answer_seconds for call in stream.summary().calls]
    tell(
        f"hung worker: /health/fleet {', '.join(f'{s.seconds:.2f}' for s in looks)} s (limit {health_limit:.0f} s); "
        f"{len(waits)} starts, {hit} sent to it, slowest {max(waits):.2f} s (limit {start_limit:.0f} s)"
    )
    record_property("health_with_hung_worker_seconds", slowest)
    record_property("start_with_hung_worker_seconds", max(waits))
    assert {s.code for s in looks} == {"200"}
    assert any('"status":"unreachable"' in s.body for s in looks)
    assert slowest < health_limit + MARGIN
    assert hit > 0, "no start was sent to the hung worker: this proves nothing"
    assert max(waits) < start_limit + MARGIN
    assert stream.summary().opened == len(waits), stream.summary().refused


def sent_to(fleet: Fleet, host: str, worker: str) -> int:
    """How many starts the host's proxy has sent to a worker so far."""
    return int(show_stat(fleet, host, HOST_PROXY)["workers"][worker]["stot"])


def test_slow_answers_do_not_take_a_host_out(fleet: Fleet) -> None:
    """All workers of a host take two seconds to say how they are: it stays in rotation, and every slot takes a call."""
    name = fleet.fleet_names[0]
    with stays_in_rotation(fleet, name), slow_health(fleet, name, 2):
        fleet.until(lambda: check_seconds(fleet, name) >= 2, 20, "the ingress has met a slow answer")
        with fleet.calls() as held:
            held.start(SLOTS)
            assert held.wait_open() == SLOTS, held.report().as_json()["refused"]
            held.stop()


def check_seconds(fleet: Fleet, host: str) -> float:
    """How long the ingress waited for the host's health the last time."""
    return int(show_stat(fleet, "hub", INGRESS)["calls"][host]["check_duration"]) / 1000


def down_in_proxy(fleet: Fleet, host: str, server: str) -> bool:
    """Whether the host proxy counts a worker as down."""
    return proxy_status(fleet, host, "health").get(server, "").startswith("DOWN")


def proxy_status(fleet: Fleet, host: str, backend: str) -> dict[str, str]:
    """Status of each server of a backend, as the host proxy itself says."""
    rows = show_stat(fleet, host, HOST_PROXY)[backend]
    return {server: row["status"] for server, row in rows.items() if server != "BACKEND"}


def test_a_full_host_stays_reachable_for_the_slot_that_frees(fleet: Fleet) -> None:
    """All slots but one long full, one frees: the next call finds it without waiting for a health check."""
    with fleet.calls() as held, fleet.calls() as short:
        held.start(SLOTS - 1)
        assert held.wait_open() == SLOTS - 1
        short.start(1)
        assert short.wait_open() == 1
        short.stop()
        fleet.until(lambda: [s["calls"] for h in fleet.fleet_names for s in fleet.slots(h)].count(0) == 1, 10, "free")
        held.start(1)
        assert held.wait_open() == SLOTS, held.report().as_json()["refused"]
        held.stop()
    assert held.report().clean


@pytest.mark.long
def test_another_refusal_code(fleet: Fleet) -> None:
    """Workers that refuse with 503, WebSockets and POSTs alike: a full host says no at once, a free slot is found.

    Nothing else says 429 here than the hosts' proxies: the ingress must try the next host on their word too.
    """
    first, second = fleet.fleet_names

    def other_code(site: dict[str, Any]) -> None:
        site["core"]["environment"] |= {"STANDIN_WS_REFUSAL": "503", "STANDIN_POST_REFUSAL": "503"}
        site.setdefault("calls", {})["refusal_codes"] = [503]

    with fleet.edited(other_code):
        assert fleet.converge().pending == []
        fleet.until(lambda: in_rotation(fleet), 30, "the proxies have seen every slot")
        assert [a.status for a in fleet.attach(first, WORKERS, seconds=20)] == [200] * WORKERS
        full = fleet.attach(first, 4, seconds=1)
        with fleet.calls(first) as calls:
            calls.start(4)
            assert calls.wait_open() == 0
        refused = calls.report()
        with fleet.calls() as held:
            for n in range(1, WORKERS):
                held.start(1)
                assert held.wait_open() == n, held.report().as_json()["refused"]
            # The last free slot of the site, by POST: three of the host's workers are busy, the fourth must be found.
            last = fleet.attach(second, 1, seconds=2)
            held.stop()
        waits = [call.answer_seconds for call in refused.calls] + [answer.answer_seconds for answer in full]
        tell(f"refusal code 503: {refused.refused}, {[a.status for a in full]}, slowest {max(waits):.3f} s")
        assert set(refused.refused) == {429}
        assert {answer.status for answer in full} <= {429, 503}
        assert max(waits) < 1.0
        assert [answer.status for answer in last] == [200]
        assert fleet.refused_while_free(starts_of(refused, [first]) + starts_of(full, [first])) == []
        fleet.wait_idle()
    fleet.converge()


def test_the_checks_see_doubled_calls(fleet: Fleet) -> None:
    """Control: with the stand-in's refusal off the burst's check is red, and green again once it is on.

    The same workers answer JSON with spaces: the proxy still reads their 0 calls.
    """

    def break_it(site: dict[str, Any]) -> None:
        site["core"]["environment"] |= {"STANDIN_REFUSE": "0", "STANDIN_JSON_SPACES": "1"}

    name, began = fleet.fleet_names[0], time.time()
    with fleet.edited(break_it):
        fleet.converge()
        fleet.until(lambda: set(proxy_status(fleet, name, "dispatch").values()) == {"UP"}, 20, "0 calls are read")
        with pytest.raises(AssertionError) as red:
            takes_exactly_the_free_slots(fleet)
        tell(f"refusal off: {str(red.value).splitlines()[0]}; {len(fleet.doubled(began))} doubled")
        assert fleet.doubled(began) != []
        fleet.wait_idle()
    fleet.converge()
    fleet.until(lambda: in_rotation(fleet), 30, "the proxies have seen every slot")
    takes_exactly_the_free_slots(fleet)
