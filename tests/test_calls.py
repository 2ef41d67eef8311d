"""The call driver: a clean call is called clean, and each check goes red on the fault it is there for."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import cast

import click
import pytest
from click.testing import CliRunner
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from lab.calls import CallHolder, StartStream, Summary, burst, hold
from lab.calls.__main__ import cli, parse_resolve
from lab.calls.call import Call
from lab.calls.driver_lag import DriverLag
from lab.calls.report import Report
from lab.calls.target import Target

Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(socket: ServerConnection) -> None:
    """A faithful echo."""
    async for frame in socket:
        await socket.send(frame)


def faulty(at: int, fault: Callable[[ServerConnection, str | bytes], Awaitable[None]]) -> Handler:
    """An echo that does something else with frame number `at`."""

    async def handle(socket: ServerConnection) -> None:
        number = 0
        async for frame in socket:
            await (fault(socket, frame) if number == at else socket.send(frame))
            number += 1

    return handle


@asynccontextmanager
async def server(handler: Handler, refuse_with: HTTPStatus | None = None, room: int = 1000) -> AsyncIterator[str]:
    """A WebSocket server on a free port; refuses calls beyond `room`; yields its URL."""
    taken = 0

    def gate(socket: ServerConnection, _request: Request) -> Response | None:
        nonlocal taken
        taken += 1
        return socket.respond(refuse_with, "at_capacity") if refuse_with and taken > room else None

    async with serve(handler, "127.0.0.1", 0, process_request=gate, compression=None) as running:
        port = next(iter(running.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws/demo"


def held(handler: Handler, seconds: float, n: int = 1) -> Summary:
    """Hold calls against a server with this handler."""

    async def run() -> Summary:
        async with server(handler) as url:
            return await hold(url, None, n, seconds)

    return asyncio.run(run())


def test_a_faithful_echo_is_clean_and_every_frame_is_counted() -> None:
    """Fifty frames a second, all of them back, nothing to complain about."""
    began = time.monotonic()
    summary = held(echo, 1.0, n=3)
    most = (time.monotonic() - began) * 50 + 2
    assert summary.clean, summary
    assert summary.opened == 3
    for call in summary.calls:
        assert 40 <= call.frames_sent <= most
        assert call.frames_echoed == call.frames_sent


def test_a_dropped_frame_is_a_gap() -> None:
    """A number missing from the echoes is reported with the number."""

    async def drop(_socket: ServerConnection, _frame: str | bytes) -> None:
        return None

    summary = held(faulty(10, drop), 0.5)
    assert summary.calls[0].gaps == ["frames 10 to 10 missing before frame 11"]
    assert not summary.clean


def test_a_repeated_frame_is_a_gap() -> None:
    """A number that comes twice is reported."""

    async def repeat(socket: ServerConnection, frame: str | bytes) -> None:
        await socket.send(frame)
        await socket.send(frame)

    summary = held(faulty(10, repeat), 0.5)
    assert summary.calls[0].gaps == ["frame 10 came again or was never sent"]


def test_a_stall_is_a_gap_though_no_frame_is_lost() -> None:
    """1.2 s without an echo is a gap even when all echoes come in the end."""

    async def stall(socket: ServerConnection, frame: str | bytes) -> None:
        await asyncio.sleep(1.2)
        await socket.send(frame)

    summary = held(faulty(10, stall), 2.0)
    call = summary.calls[0]
    assert [gap.split(" s ")[1] for gap in call.gaps] == ["without an echo before frame 10"]
    assert call.frames_echoed == call.frames_sent
    assert call.worst_round_trip >= 1.1


def test_a_stall_below_a_second_is_no_gap() -> None:
    """The limit is a second: 0.6 s shows in the longest round trip only."""

    async def stall(socket: ServerConnection, frame: str | bytes) -> None:
        await asyncio.sleep(0.6)
        await socket.send(frame)

    summary = held(faulty(10, stall), 1.5)
    assert summary.clean, summary.gaps
    assert summary.worst_round_trip >= 0.55


def test_an_early_close_is_reported_with_its_code() -> None:
    """A call that the other side ends is not clean, and its code is kept; frames on their way are no extra gap."""

    async def close(socket: ServerConnection, _frame: str | bytes) -> None:
        await socket.close(1012, "stopping")

    summary = held(faulty(10, close), 1.0)
    call = summary.calls[0]
    assert (call.closed_early, call.close_code, call.gaps) == (True, 1012, [])
    assert not summary.clean


def test_an_aborted_connection_is_an_early_close() -> None:
    """A connection that goes without a word counts as closed by the other side, 1006."""

    async def abort(socket: ServerConnection, _frame: str | bytes) -> None:
        socket.transport.abort()

    summary = held(faulty(10, abort), 1.0)
    assert [call.close_code for call in summary.closed_early] == [1006]


def test_a_mute_end_is_a_gap() -> None:
    """Frames that never come back before the end are reported, though no later frame shows their absence."""

    async def mute(socket: ServerConnection, _frame: str | bytes) -> None:
        async for _ in socket:
            pass

    summary = held(faulty(5, mute), 0.5)
    assert any("never came back" in gap for gap in summary.gaps)


def test_a_call_whose_peer_takes_nothing_more_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer on the way is full, so sending waits: the call ends in time all the same, and is not clean."""
    monkeypatch.setattr("lab.calls.call.CLOSE_TIMEOUT", 0.2)
    freed = asyncio.Event()

    async def deaf(socket: ServerConnection) -> None:
        await freed.wait()
        socket.transport.abort()

    async def run() -> Summary:
        async with server(deaf) as url:
            try:
                return await asyncio.wait_for(hold(url, None, 1, 1.5, rate=100_000), 20)
            finally:
                freed.set()

    (call,) = asyncio.run(run()).calls
    assert call.opened
    assert call.gaps
    assert not call.clean


def test_a_burst_reports_accepted_and_refused_and_holds_the_accepted() -> None:
    """Simultaneous starts: codes and answer times of all, and accepted ones stay open until the block ends."""
    open_now = 0

    async def count(socket: ServerConnection) -> None:
        nonlocal open_now
        open_now += 1
        try:
            await echo(socket)
        finally:
            open_now -= 1

    async def run() -> Summary:
        async with server(count, HTTPStatus.TOO_MANY_REQUESTS, room=3) as url:
            async with burst(url, 8) as summary:
                await asyncio.sleep(0.2)
                assert open_now == 3
            await asyncio.sleep(0.2)
            assert open_now == 0
            return summary

    summary = asyncio.run(run())
    assert summary.opened == 3
    assert summary.refused == {429: 5}
    assert all(call.answer_seconds > 0 for call in summary.calls)
    assert not summary.closed_early


def test_a_call_that_nobody_answers_is_an_error_not_an_exception() -> None:
    """No listener: code 0 and the reason."""
    summary = asyncio.run(hold("ws://127.0.0.1:1/ws/demo", None, 2, 0))
    assert summary.refused == {0: 2}
    assert "refused" in summary.calls[0].error.lower() or "Errno" in summary.calls[0].error
    assert not summary.clean


def test_a_close_that_only_the_sender_meets_is_no_clean_end() -> None:
    """Every echo was back and the listener was not told yet: the call was ended by the other side all the same."""

    class Closing:
        close_code = 1012

        async def send(self, _: bytes) -> None:
            raise ConnectionClosedError(None, None)

        async def recv(self) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        async def close(self) -> None: ...

    async def run() -> Report:
        call = Call(cast(Target, None), DriverLag())
        call.report.opened = True
        await call._talk(cast(ClientConnection, Closing()))
        return call.report

    report = asyncio.run(run())
    assert (report.clean, report.closed_early, report.close_code) == (False, True, 1012)


def test_the_driver_does_not_blame_calls_for_its_own_standstill() -> None:
    """1.3 s in which the driver's own loop stands still is driver lag and no gap."""

    async def run() -> Summary:
        async with server(echo) as url:
            task = asyncio.create_task(hold(url, None, 2, 2.0))
            await asyncio.sleep(0.4)
            time.sleep(1.3)  # standing still is the point
            return await task

    summary = asyncio.run(run())
    assert summary.gaps == []
    assert summary.driver_lag > 1.0


def test_lag_of_a_quiet_loop_is_small() -> None:
    """Negative control of the lag measurement: a loop with nothing to do shows none worth counting.

    On a busy machine it may have had to wait now and then, but not every time.
    """

    async def run() -> DriverLag:
        lag = DriverLag()
        lag.start()
        await asyncio.sleep(0.3)
        lag.stop()
        return lag

    assert any(asyncio.run(run()).total == 0 for _ in range(20))


def test_a_holder_holds_calls_for_synchronous_code() -> None:
    """Start, look, start more, stop: the report shows the calls while they are held and after."""
    with EchoThread() as url, CallHolder(url) as calls:
        calls.start(2)
        assert calls.wait_open() == 2
        wait_until(lambda: all(call.frames_echoed > 5 for call in calls.report().calls))
        calls.start(1)
        assert calls.wait_open() == 3
        calls.stop()
        assert calls.report().clean


def test_resolve_leads_a_name_to_an_address() -> None:
    """A name that no resolver knows is reached through --resolve, and the command says so in JSON."""
    with EchoThread() as url:
        port = url.split(":")[2].split("/")[0]
        arguments = ["hold", f"ws://fleet.example.com:{port}/ws/demo", "--seconds", "0.3", "--calls", "2", "--json"]
        done = CliRunner().invoke(cli, [*arguments, "--resolve", f"fleet.example.com:{port}:127.0.0.1"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.output)
    assert (document["opened"], document["gaps"], document["clean"]) == (2, 0, True)


def test_the_command_fails_when_a_call_is_not_clean() -> None:
    """Exit code 1 and the reason in words."""
    done = CliRunner().invoke(cli, ["hold", "ws://127.0.0.1:1/ws/demo", "--seconds", "0"])
    assert done.exit_code == 1
    assert "0 of 1 calls opened" in done.output


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a.example.com:443:192.0.2.1", {("a.example.com", 443): ("192.0.2.1", 443)}),
        ("a.example.com:443:192.0.2.1:8443", {("a.example.com", 443): ("192.0.2.1", 8443)}),
        ("a.example.com:443:[2001:db8::1]", {("a.example.com", 443): ("2001:db8::1", 443)}),
        ("a.example.com:443:[2001:db8::1]:8443", {("a.example.com", 443): ("2001:db8::1", 8443)}),
    ],
)
def test_resolve_entries(entry: str, expected: dict[tuple[str, int], tuple[str, int]]) -> None:
    """Each way to write an entry."""
    assert parse_resolve((entry,)) == expected


@pytest.mark.parametrize("entry", ["a.example.com", "a.example.com:https:192.0.2.1", "a.example.com:443:"])
def test_a_bad_resolve_entry_is_named(entry: str) -> None:
    """The message repeats the entry and says what was expected."""
    with pytest.raises(click.BadParameter, match="expected HOST:PORT:ADDRESS"):
        parse_resolve((entry,))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for as long as a busy machine may need."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.05)


class EchoThread:
    """An echo server on a loop of its own, for tests of synchronous code."""

    def __enter__(self) -> str:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._url = ""
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)
        return self._url

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        async with server(echo) as url:
            self._url = url
            self._ready.set()
            await self._stop.wait()


def test_a_stream_starts_again_and_again_and_knows_what_was_in_flight() -> None:
    """Three callers against room for two calls: taken and refused ones, never more than three at a time."""

    async def run() -> tuple[Summary, list[int]]:
        async with server(echo, HTTPStatus.FORBIDDEN, room=2) as url:

            def watch() -> tuple[Summary, list[int]]:
                with StartStream(url, 3, seconds=0.1, pause=0.01) as stream:
                    wait_until(lambda: stream.summary().refused.get(403, 0) > 10)
                summary = stream.summary()
                return summary, [stream.in_flight(one.began_at) for one in summary.calls]

            return await asyncio.to_thread(watch)

    summary, flights = asyncio.run(run())
    assert summary.opened == 2
    assert 1 <= min(flights) <= max(flights) <= 3
    assert all(one.began_at < one.answered_at for one in summary.calls)


def test_a_stream_has_nothing_in_flight_before_it_begins() -> None:
    """The count is of starts that wait at that time, and of no others."""
    stream = StartStream("ws://127.0.0.1:1/ws", 1)
    assert stream.in_flight(time.time()) == 0
