"""Routes through real proxies: what the ingress and the hosts' own proxies pass on, to whom, and what they do not."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.lab.fleet import STACK, WORKERS, Fleet
from tests.lab.look import HOST_PROXY, show_stat

SLOTS = 8
POSTS = ["/attach", "/livekit/dialout", "/livekit/widget", "/livekit/dispatch"]


def ask(fleet: Fleet, name: str, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    """One request at a name of the site, over a connection of its own."""
    host = f"{name}.{fleet.lab.domain}"
    address, port = fleet.resolve[host, 443]
    headers = {"Host": host, **options.pop("headers", {})}
    with httpx.Client(verify=fleet.ssl, timeout=30, trust_env=False) as client:
        url = f"https://{address}:{port}{path}"
        return client.request(method, url, headers=headers, extensions={"sni_hostname": host}, **options)


def received(fleet: Fleet, since: float) -> list[dict[str, Any]]:
    """Everything that any worker wrote down since."""
    return [event for host in fleet.fleet_names for event in fleet.events(host, since)]


def test_proxies_say_that_they_are_there(fleet: Fleet) -> None:
    """`/haproxy-health` is answered by each proxy itself: by the ingress with `ok`."""
    answer = ask(fleet, "calls", "/haproxy-health")
    assert (answer.status_code, answer.text) == (200, "ok")
    before = [show_stat(fleet, name, HOST_PROXY)["health"]["BACKEND"]["stot"] for name in fleet.fleet_names]
    assert [ask(fleet, name, "/haproxy-health").status_code for name in fleet.fleet_names] == [200, 200]
    # Each host's `stot` of the backend also counts the ingress' own checks of /health/fleet; the answer names nobody.
    assert all("worker" not in ask(fleet, name, "/haproxy-health").text for name in fleet.fleet_names), before


@pytest.mark.parametrize("path", [*POSTS, "/health", "/health/fleet", "/recordings/x.wav", "/", "/wsx"])
def test_the_ingress_carries_websocket_calls_alone(fleet: Fleet, path: str) -> None:
    """404 for what callers bring to a host of their choice; no worker hears of it."""
    began = time.time()
    answer = ask(fleet, "calls", path, "POST" if path in POSTS else "GET", json={"bot_id": "demo", "seconds": 1})
    assert (answer.status_code, answer.json()) == (404, {"detail": "not found"})
    assert received(fleet, began) == []


@pytest.mark.parametrize("path", ["/nowhere", "/attach/", "/livekit", "/livekit/other", "/ws", "/standin/counters"])
def test_a_host_serves_no_unknown_path(fleet: Fleet, path: str) -> None:
    """404 by the host's proxy; no worker is asked."""
    name = fleet.fleet_names[0]
    answer = ask(fleet, name, path, "POST", json={"bot_id": "demo", "seconds": 1})
    assert (answer.status_code, answer.json()) == (404, {"detail": "not found"})


def test_exotel_calls_end_to_end(fleet: Fleet) -> None:
    """The carrier's other route: a call on every slot through the ingress, echoing, and the ninth refused at once."""
    began = time.time()
    with fleet.calls(path="/exotel/demo") as held, fleet.calls(path="/exotel/demo") as ninth:
        held.start(SLOTS)
        assert held.wait_open() == SLOTS, held.report().as_json()["refused"]
        ninth.start(1)
        assert ninth.wait_open() == 0
        time.sleep(2)  # a gap of a second must have had the time to show
        held.stop()
    assert held.report().clean, held.report().gaps[:5]
    assert ninth.report().calls[0].refused in (429, 503)
    assert ninth.report().calls[0].answer_seconds < 1.0
    starts = [event for event in received(fleet, began) if event["event"] == "start"]
    assert [event["route"] for event in starts] == ["/exotel"] * SLOTS
    assert {event["session"] for event in starts} == {call.session for call in held.report().calls}
    assert fleet.doubled(began) == []


@pytest.mark.parametrize("path", POSTS[:3])
def test_background_starts_find_the_free_workers(fleet: Fleet, path: str) -> None:
    """Six starts at a host with four free slots: four last and leave their results, by this route; two get 429."""
    name = fleet.fleet_names[0]
    answers = fleet.attach(name, 6, seconds=2, path=path)
    assert sorted(answer.status for answer in answers) == [200] * 4 + [429] * 2
    taken = {answer.session for answer in answers if answer.status == 200}
    assert fleet.cut() == []
    results = fleet.results()
    assert {results[session]["route"] for session in taken} == {path}
    assert {results[session]["worker_id"] for session in taken} == {"1", "2", "3", "4"}


def test_recordings_are_served_by_whichever_worker(fleet: Fleet) -> None:
    """Each worker serves every recording of its host, also while all are on calls; 403 and 404 are passed on."""
    name = fleet.fleet_names[0]
    secret = {"X-CXBCore-Secret": (fleet.lab.directory / "secrets/core_secret").read_text().strip()}
    (answer,) = fleet.attach(name, 1, seconds=0)
    key = f"/recordings/{answer.session}.wav"
    fleet.until(lambda: fleet.ssh(name, f"ls /var/lib/{STACK}{key} 2>/dev/null || true"), 10, "the recording is there")
    assert [a.status for a in fleet.attach(name, WORKERS, seconds=3)] == [200] * WORKERS
    before = show_stat(fleet, name, HOST_PROXY)["recordings"]
    for _ in range(WORKERS):
        found = ask(fleet, name, key, headers=secret)
        assert (found.status_code, found.content) == (200, b"RIFF" + answer.session.encode())
    after = show_stat(fleet, name, HOST_PROXY)["recordings"]
    assert [int(after[f"w{n}"]["stot"]) - int(before[f"w{n}"]["stot"]) for n in range(1, WORKERS + 1)] == [1] * WORKERS
    assert ask(fleet, name, key).status_code == 403
    missing = ask(fleet, name, "/recordings/none.wav", headers=secret)
    assert (missing.status_code, missing.json()) == (404, {"detail": "recording_not_found"})
