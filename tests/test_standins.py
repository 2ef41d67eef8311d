"""The stand-ins behave on the wire as the platform's services are described."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from standin_process import SECRET, Standin, api, free_port, new_prefix, running, worker

from lab.calls import CallHolder, Summary, attach_burst, burst, hold
from lab.images.standin.dialler import Dialler

WS = "ws://worker/ws/demo"
POST_ROUTES = ["/attach", "/livekit/dialout", "/livekit/widget", "/livekit/dispatch"]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Standin]:
    """A worker alone on its host."""
    with worker(tmp_path) as standin:
        yield standin


def start(standin: Standin, route: str = "/attach", **body: Any) -> Any:
    """POST a background start."""
    return standin.http.post(route, json={"bot_id": "demo", "seconds": 0.3, **body})


def starts_at_once(standin: Standin, n: int, route: str = "ws/demo") -> Summary:
    """Start n WebSocket calls at the same time, then end them."""

    async def run() -> Summary:
        async with burst(f"ws://worker/{route}", n, uds=standin.uds) as summary:
            return summary

    return asyncio.run(run())


@pytest.mark.parametrize("route", ["ws/demo", "exotel/demo"])
def test_a_worker_echoes_one_call_and_refuses_the_second(one: Standin, route: str) -> None:
    """Both WebSocket routes echo; of five simultaneous starts one is accepted, four get 403."""
    summary = asyncio.run(hold(f"ws://worker/{route}", None, 1, 0.3, uds=one.uds))
    assert summary.clean, summary
    summary = starts_at_once(one, 5, route)
    assert (summary.opened, summary.refused) == (1, {403: 4})
    assert len(one.events("start_while_busy_refused")) == 4


def test_the_refusal_code_is_a_setting(tmp_path: Path) -> None:
    """A site whose workers refuse with 429 is imitated by STANDIN_WS_REFUSAL."""
    with worker(tmp_path, STANDIN_WS_REFUSAL="429") as standin:
        assert starts_at_once(standin, 3).refused == {429: 2}


def test_the_refusal_code_of_posts_is_a_setting(tmp_path: Path) -> None:
    """STANDIN_POST_REFUSAL imitates a site whose workers refuse background starts in another way."""
    with worker(tmp_path, STANDIN_POST_REFUSAL="503") as standin:
        assert [start(standin, seconds=60).status_code, start(standin).status_code] == [200, 503]
        assert start(standin, "/livekit/dispatch").status_code == 503
        assert [event["code"] for event in standin.events("dispatch_rejected")] == [503]


def test_the_log_says_since_when_a_slot_was_not_idle(one: Standin) -> None:
    """`taken` lies before the fetch of the configuration, so before the line itself."""
    began = time.time()
    start(one)
    assert began <= one.events("start")[0]["taken"] <= one.events("start")[0]["t"]


def test_a_file_beside_the_socket_makes_health_slow(one: Standin) -> None:
    """While it is there, /health and /health/fleet come late; without it they do not."""
    assert one.uds is not None
    slow = Path(one.uds).with_suffix(".slow")

    def took(route: str) -> float:
        began = time.monotonic()
        assert one.http.get(route).is_success
        return time.monotonic() - began

    routes = ("/health", "/health/fleet")
    slow.write_text("0.4")
    assert all(took(route) >= 0.4 for route in routes)
    slow.unlink()
    # The machine may be busy with something else, but not every time.
    assert all(any(took(route) < 0.4 for _ in range(20)) for route in routes)


def test_a_doubled_call_is_seen_when_the_refusal_is_off(tmp_path: Path) -> None:
    """The negative control: without refusal two calls run in one worker, and the log says so."""
    with worker(tmp_path, STANDIN_REFUSE="0") as standin:
        assert starts_at_once(standin, 3).opened == 3
        assert len(standin.events("start_while_busy_accepted")) == 2
        wait_until(lambda: len(standin.events("start")) == 3)


@pytest.mark.parametrize("route", POST_ROUTES)
def test_a_background_call_outlives_its_post(one: Standin, route: str) -> None:
    """The POST is answered at once, the worker is busy without a connection, and free when the call ends."""
    began = time.monotonic()
    answer = start(one, route, session_id="s-1", seconds=2)
    assert time.monotonic() - began < 1.5
    assert answer.json() == {"status": "started", "session_id": "s-1", "worker_id": "1"}
    assert one.http.get("/health").json()["worker_calls"] == 1
    busy = start(one, route)
    assert (busy.status_code, busy.json()) == (429, {"detail": "at_capacity"})
    ended = one.wait_event("end")
    assert (ended["session"], ended["planned"], ended["route"]) == ("s-1", 2, route)
    assert 2 <= ended["seconds"] < 10
    assert one.http.get("/health").json()["worker_calls"] == 0


def test_the_caller_of_a_background_call_may_hang_up(one: Standin) -> None:
    """A call of unknown length, ended by whoever placed it."""
    assert one.http.post("/standin/hangup?session_id=long").status_code == 404
    one.http.post("/attach", json={"bot_id": "demo", "session_id": "long", "seconds": 300})
    assert one.http.get("/health?alone=1").json()["worker_calls"] == 1
    assert one.http.post("/standin/hangup?session_id=long").status_code == 200
    wait_until(lambda: one.http.get("/health?alone=1").json()["worker_calls"] == 0)
    assert one.http.get("/standin/counters").json()["end"] == 1


def test_only_dispatch_counts_destructive_rejections(tmp_path: Path) -> None:
    """429 and 404 to dispatch are counted; the same on other routes are not."""
    with api(tmp_path) as control, worker(tmp_path, CONFIG_URL=f"{control.base_url}/api/v1/config") as standin:
        assert start(standin, "/livekit/dispatch", bot_id="missing-bot").status_code == 404
        assert start(standin, "/attach", bot_id="missing-bot").status_code == 404
        assert start(standin, "/attach", seconds=60).status_code == 200
        assert start(standin, "/livekit/dispatch").status_code == 429
        assert start(standin, "/attach").status_code == 429
        assert [event["code"] for event in standin.events("dispatch_rejected")] == [404, 429]


def test_an_at_once_burst_of_posts_starts_one_call(one: Standin) -> None:
    """Of ten simultaneous POSTs one starts, also with bodies larger than a proxy's buffer."""
    body = {"padding": "x" * 20_000}
    started = asyncio.run(attach_burst("http://worker/attach", 10, 60, body=body, uds=one.uds))
    assert sorted(answer.status for answer in started) == [200] + [429] * 9


def test_a_bad_body_is_422(one: Standin) -> None:
    """A start without bot_id, or with a session id that is no file name, does not occupy the worker."""
    assert one.http.post("/attach", json={}).status_code == 422
    assert one.http.post("/attach", content=b"no json").status_code == 422
    assert start(one, session_id="../../etc/passwd").status_code == 422
    assert one.http.get("/health").json()["worker_calls"] == 0


def test_health_has_the_platforms_shape(one: Standin) -> None:
    """Keys in order, compact JSON, and the id from the socket's name."""
    answer = one.http.get("/health")
    pid = one.process.pid
    assert answer.text == (
        '{"status":"ok","worker_calls":0,"worker_max":1,"total_capacity":1,"total_available":1,"workers":1,'
        f'"worker_id":"1","worker_pid":{pid}}}'
    )


def test_spaced_json_is_a_setting(tmp_path: Path) -> None:
    """Some health patterns depend on compact JSON: the other form can be had."""
    with worker(tmp_path, STANDIN_JSON_SPACES="1") as standin:
        assert '"fleet_available": 1' in standin.http.get("/health/fleet").text


def test_fleet_health_asks_siblings_and_names_the_unreachable(tmp_path: Path) -> None:
    """Two of three workers run, one is in a call: capacity, occupancy and the missing one are told apart."""
    prefix, env = new_prefix(), {"CXBCORE_WORKERS": "3"}
    with worker(tmp_path, 1, prefix, **env) as first, worker(tmp_path, 3, prefix, **env) as third:
        start(third, seconds=60)
        assert first.http.get("/health/fleet").json() == {
            "status": "ok",
            "fleet_calls": 1,
            "fleet_max": 3,
            "fleet_available": 1,
            "workers": [
                {"id": "1", "calls": 0, "max": 1, "pid": first.process.pid},
                {"id": "2", "status": "unreachable"},
                {"id": "3", "calls": 1, "max": 1, "pid": third.process.pid},
            ],
        }
        health = first.http.get("/health").json()
        assert (health["total_capacity"], health["total_available"]) == (3, 1)


def test_a_hung_sibling_does_not_slow_health(tmp_path: Path) -> None:
    """A sibling that accepts and says nothing costs /health a quarter of a second and /health/fleet one second."""
    prefix = new_prefix()
    path = f"/tmp/{prefix}_2.sock"
    with socket.socket(socket.AF_UNIX) as hung, worker(tmp_path, 1, prefix, CXBCORE_WORKERS="2") as first:
        hung.bind(path)
        hung.listen()

        def took(path: str) -> float:
            began = time.monotonic()
            assert first.http.get(path).is_success
            return time.monotonic() - began

        # The machine may be busy with something else, but not every time.
        assert any(took("/health") < 0.6 for _ in range(20))
        assert any(took("/health/fleet") < 2.0 for _ in range(20))
        assert first.http.get("/health/fleet").json()["workers"][1] == {"id": "2", "status": "unreachable"}
    Path(path).unlink()


def test_a_worker_without_configuration_takes_no_call(tmp_path: Path) -> None:
    """The configuration is fetched for each call: with the API away a call ends at once, and the slot is free."""
    with worker(tmp_path, CONFIG_URL=f"http://127.0.0.1:{free_port()}/config") as standin:
        summary = asyncio.run(hold(WS, None, 1, 0.5, uds=standin.uds))
        assert summary.calls[0].close_code == 1011
        assert start(standin).status_code == 502
        assert standin.http.get("/health").json()["worker_calls"] == 0


def test_a_call_ends_at_its_bots_longest_length(tmp_path: Path) -> None:
    """max_call_duration_seconds of the fetched configuration ends WebSocket and background calls."""
    with (
        api(tmp_path, MAX_CALL_SECONDS="0.5") as control,
        worker(tmp_path, CONFIG_URL=f"{control.base_url}/api/v1/config") as standin,
    ):
        summary = asyncio.run(hold(WS, None, 1, 5, uds=standin.uds))
        assert [call.close_code for call in summary.closed_early] == [1000]
        start(standin, seconds=60)
        wait_until(lambda: len(standin.events("end")) == 2)
        assert [event["outcome"] for event in standin.events("end")] == ["max_duration", "max_duration"]


def test_results_wait_on_disk_until_the_api_takes_them(tmp_path: Path) -> None:
    """A result of the time without API is delivered by the next worker on the slot; another slot's is left alone."""
    port = free_port()
    env = {"RESULT_URL": f"http://127.0.0.1:{port}/api/v1/call-results"}
    outbox = tmp_path / "outbox"
    with worker(tmp_path, **env) as standin:
        start(standin, session_id="s-kept", seconds=0)
        standin.wait_event("end")
    assert [path.name for path in outbox.iterdir()] == ["1--s-kept.json"]
    foreign = outbox / "2--s-foreign.json"
    foreign.write_text(json.dumps({"session_id": "s-foreign"}))
    with api(tmp_path, PORT=str(port)), worker(tmp_path, **env) as standin:
        start(standin, session_id="s-new", seconds=0)
        wait_until(lambda: list(outbox.iterdir()) == [foreign])
    assert {path.stem for path in (tmp_path / "state" / "results").iterdir()} == {"s-kept", "s-new"}


def test_sigterm_cuts_calls_as_uvicorn_does(one: Standin) -> None:
    """A held WebSocket is closed with 1012 within a second, and the log tells the cut from an end."""
    with CallHolder(WS, uds=one.uds) as calls:
        calls.start(1)
        assert calls.wait_open() == 1
        one.wait_event("start")
        one.process.send_signal(signal.SIGTERM)
        one.process.wait(60)
        wait_until(lambda: bool(calls.report().closed_early))
        calls.stop()
    assert [call.close_code for call in calls.report().calls] == [1012]
    assert [event["event"] for event in one.events()] == ["boot", "start", "sigterm", "cut"]


def test_sigterm_cuts_background_calls(one: Standin) -> None:
    """A background call has no connection to close: it is cut when the process stops, its result is kept."""
    start(one, session_id="s-cut", seconds=60)
    one.stop()
    cut = one.events("cut")[0]
    assert (cut["session"], cut["planned"]) == ("s-cut", 60)
    assert one.log is not None
    result = json.loads((one.log.parent / "outbox" / "1--s-cut.json").read_text())
    assert result["outcome"] == "cut"


def test_sigurg_is_ignored(one: Standin) -> None:
    """The signal that a worker's container is stopped with disturbs nothing."""
    with CallHolder(WS, uds=one.uds) as calls:
        calls.start(1)
        calls.wait_open()
        one.process.send_signal(signal.SIGURG)
        time.sleep(0.3)
        calls.stop()
    assert calls.report().clean


def test_recordings_need_the_secret(one: Standin) -> None:
    """A call leaves a recording on its host; without the header it is 403, unknown keys are 404."""
    start(one, session_id="s-rec", seconds=0)
    one.wait_event("end")
    assert one.http.get("/recordings/s-rec.wav").status_code == 403
    assert one.http.get("/recordings/s-rec.wav", headers=SECRET).content.startswith(b"RIFF")
    assert one.http.get("/recordings/other.wav", headers=SECRET).status_code == 404
    assert one.http.get("/recordings/..%2Fevents.jsonl", headers=SECRET).status_code == 404


def test_a_broken_worker_is_healthy_and_fails_its_calls(tmp_path: Path) -> None:
    """What only a canary call finds: /health says ok, the WebSocket is closed with 1011."""
    with worker(tmp_path, STANDIN_BROKEN="1") as standin:
        assert standin.http.get("/health").json()["status"] == "ok"
        summary = asyncio.run(hold(WS, None, 1, 0.3, uds=standin.uds))
        assert [call.close_code for call in summary.closed_early] == [1011]


def test_another_brand_has_other_names(tmp_path: Path) -> None:
    """Prefix of the environment and name of the secret header are data."""
    env = {"BRAND_ENV_PREFIX": "VOXCORE", "VOXCORE_WORKERS": "5", "SECRET_HEADER": "X-VoxCore-Secret"}
    with worker(tmp_path, **env) as standin:
        assert standin.http.get("/health").json()["total_capacity"] == 5
        assert standin.http.get("/recordings/a.wav", headers={"X-VoxCore-Secret": "s3cret"}).status_code == 404
        assert standin.http.get("/recordings/a.wav", headers=SECRET).status_code == 403


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Standin]:
    """An API with one super_admin and one admin token."""
    tokens = tmp_path / "tokens"
    tokens.write_text("root-token\nreader-token admin\n")
    with api(tmp_path, ADMIN_TOKEN_FILE=str(tokens)) as standin:
        yield standin


ROOT = {"Authorization": "Bearer root-token"}
READER = {"Authorization": "Bearer reader-token"}


def test_the_fleet_list_is_replaced_as_a_whole_by_a_super_admin(control: Standin) -> None:
    """401 without a token, 403 for an admin, and a PUT forgets what it does not name."""
    route, first, second = "/api/v1/settings/fleet", "https://f1.example.com", "https://f2.example.com"
    assert control.http.put(route, json={"core_fleet": []}).status_code == 401
    assert control.http.put(route, json={"core_fleet": []}, headers=READER).status_code == 403
    assert control.http.put(route, json={"core_fleet": "f1"}, headers=ROOT).status_code == 422
    assert control.http.put(route, json={"core_fleet": [first]}, headers=ROOT).json() == {"core_fleet": [first]}
    control.http.put(route, json={"core_fleet": [second]}, headers=ROOT)
    assert control.http.get(route, headers=READER).json() == {"core_fleet": [second]}


def test_results_are_upserted_and_canaries_stay_out_of_reports(control: Standin) -> None:
    """A replay replaces and is counted; a canary's result is kept, marked, and in no total."""
    result = {"session_id": "s-1", "bot_id": "demo", "outcome": "completed", "duration_seconds": 2}
    route = "/api/v1/call-results"
    assert control.http.post(route, json=result).status_code == 403
    assert control.http.post(route, json=result, headers=SECRET).json() == {"status": "stored", "replays": 0}
    assert control.http.post(route, json=result, headers=SECRET).json() == {"status": "stored", "replays": 1}
    control.http.post(route, json={"session_id": "s-2", "bot_id": "canary"}, headers=SECRET)
    assert control.http.get(route, params={"session_id": "s-2"}).json()["canary"] is True
    assert control.http.get(route, params={"session_id": "s-3"}).status_code == 404
    report = control.http.get("/api/v1/reports/calls").json()
    assert (report["calls"], report["replays"], report["outcomes"]) == (1, 1, {"completed": 1})


def test_configuration_needs_the_secret(control: Standin) -> None:
    """403 without it, 404 for a bot that is not there, the default length otherwise."""
    assert control.http.get("/api/v1/config/demo").status_code == 403
    assert control.http.get("/api/v1/config/missing-1", headers=SECRET).status_code == 404
    assert control.http.get("/api/v1/config/demo", headers=SECRET).json()["max_call_duration_seconds"] == 600


def test_the_api_serves_without_redis_and_says_so(control: Standin) -> None:
    """Degraded, with 200."""
    answer = control.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


def test_the_api_picks_the_host_with_most_free_slots(control: Standin, tmp_path: Path) -> None:
    """Unreachable hosts are skipped, the emptier one is chosen, none free is 503, and the status adds them up."""
    with fake_host(tmp_path / "a") as full, fake_host(tmp_path / "b") as free:
        gone = f"http://127.0.0.1:{free_port()}"
        urls = [gone, full.base_url, free.base_url]
        assert control.http.post("/api/v1/calls", json={"bot_id": "demo"}).status_code == 503
        control.http.put("/api/v1/settings/fleet", json={"core_fleet": urls}, headers=ROOT)
        full.http.post("/attach", json={"bot_id": "demo", "seconds": 30})
        answer = control.http.post("/api/v1/calls", json={"bot_id": "demo", "seconds": 30}).json()
        assert (answer["status"], answer["host"]) == ("started", free.base_url)
        assert control.http.post("/api/v1/calls", json={"bot_id": "demo"}).status_code == 503
        assert control.http.get("/api/v1/fleet/status").status_code == 401
        status = control.http.get("/api/v1/fleet/status", headers=READER).json()
        assert (status["total_capacity"], status["active_calls"], status["available"]) == (2, 2, 0)
        assert [worker["host"] for worker in status["workers"]] == urls


def test_the_dialler_ticks_places_calls_and_reserves(tmp_path: Path) -> None:
    """Two calls a tick against one slot: one is placed, the other finds no capacity; setup shows in /health."""
    port = free_port()
    env = {
        "HEALTH_PORT": str(port),
        "TICK": "0.2",
        "DIAL_RATE": "2",
        "DIAL_SECONDS": "30",
        "STANDIN_SETUP_SECONDS": "3",
    }
    with (
        fake_host(tmp_path) as host,
        running("dialler", f"http://127.0.0.1:{port}", FLEET_URLS=host.base_url, **env) as dialler,
    ):
        wait_until(lambda: dialler.http.get("/health").json()["calls_in_setup"] == 1)
        health = dialler.http.get("/health").json()
        assert health["status"] == "ok"
        assert health["last_tick_age"] < 2
        wait_until(lambda: 'dialler_events_total{event="placed"} 1' in dialler.http.get("/metrics").text)
        assert "attach_429" not in dialler.http.get("/metrics").text
        assert host.http.get("/health/fleet").json()["fleet_calls"] == 1


def test_a_call_of_the_dialler_rings_until_it_is_answered(tmp_path: Path) -> None:
    """A test decides when a call is in set-up, and for how long."""
    port = free_port()
    with (
        fake_host(tmp_path) as host,
        running("dialler", f"http://127.0.0.1:{port}", FLEET_URLS=host.base_url, HEALTH_PORT=str(port)) as dialler,
    ):
        assert dialler.http.post("/standin/dial").json()["host"] == host.base_url
        assert dialler.http.get("/health").json()["calls_in_setup"] == 1
        assert dialler.http.post("/standin/dial").status_code == 503, "its one slot is reserved"
        assert host.http.get("/health/fleet").json()["fleet_calls"] == 0
        dialler.http.post("/standin/answer")
        wait_until(lambda: dialler.http.get("/health").json()["calls_in_setup"] == 0)
        assert host.http.get("/health/fleet").json()["fleet_calls"] == 1


def test_the_dialler_is_unhealthy_without_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 after 30 s without a tick."""
    idle = Dialler({})
    assert asyncio.run(idle.health()).status_code == 200
    monkeypatch.setattr(idle, "last_tick", time.monotonic() - 31)
    assert asyncio.run(idle.health()).status_code == 503


def test_the_console_falls_back_to_its_index(tmp_path: Path) -> None:
    """Deep links give the index, and the API's URL is filled in at start."""
    port = free_port()
    env = {"PORT": str(port), "VITE_API_URL": "https://api.example.com"}
    with running("console", f"http://127.0.0.1:{port}", **env) as console:
        assert "cxb-console stand-in" in console.http.get("/campaigns/7").text
        assert console.http.get("/config.js").text == 'window.CONFIG = {VITE_API_URL: "https://api.example.com"};\n'


def test_the_object_store_says_what_it_is(tmp_path: Path) -> None:
    """PUT, GET, DELETE; every answer carries the stand-in's name."""
    port = free_port()
    env = {"PORT": str(port), "DATA_DIR": str(tmp_path)}
    with running("minio", f"http://127.0.0.1:{port}", ready="/minio/health/live", **env) as store:
        assert store.http.put("/recordings/a/b.wav", content=b"sound").status_code == 200
        got = store.http.get("/recordings/a/b.wav")
        assert (got.content, got.headers["server"]) == (b"sound", "minio stand-in")
        assert store.http.get("/recordings/none").status_code == 404
        assert store.http.put("/recordings/..%2Fx", content=b"").status_code == 400
        assert store.http.delete("/recordings/a/b.wav").status_code == 204


def test_the_document_store_says_what_it_is() -> None:
    """PING is answered, anything else is an error, both with the stand-in's name; SIGTERM ends it with 0."""
    port = free_port()
    standin = Standin("mongo", f"http://127.0.0.1:{port}", None, {"PORT": str(port)})
    try:
        wait_until(lambda: ask_line(port, b"PING\n") == b"PONG (mongo stand-in)\n")
        assert b"(mongo stand-in)" in ask_line(port, b"find\n")
    finally:
        assert standin.stop() == 0


@contextmanager
def fake_host(directory: Path) -> Iterator[Standin]:
    """A host of one worker without a proxy: the worker on a TCP port instead of its socket."""
    port = free_port()
    code = (
        "import os, uvicorn; from standin.core_worker import Worker; from standin.worker_settings import read_settings;"
        f"uvicorn.run(Worker(read_settings(dict(os.environ))).app(), port={port}, log_level='warning')"
    )
    env = {"SOCKET": f"/tmp/{new_prefix()}_1.sock", "CXBCORE_WORKERS": "1", "OUTBOX_DIR": str(directory / "outbox")}
    with running(code, f"http://127.0.0.1:{port}", **env) as standin:
        yield standin


def ask_line(port: int, line: bytes) -> bytes:
    """One line to a TCP port and its answer; empty when nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(line)
            return connection.recv(200)
    except OSError:
        return b""


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition; fails with its name when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.05)
