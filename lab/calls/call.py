"""One held call: numbered frames out, echoes judged."""

from __future__ import annotations

import asyncio
import struct
import time
import uuid

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from lab.calls.driver_lag import DriverLag
from lab.calls.report import Report
from lab.calls.target import CLOSE_TIMEOUT, Target

RATE = 50.0  # frames per second: 20 ms of audio each
FRAME_BYTES = 320  # 20 ms of 8 kHz linear16
NUMBER = struct.Struct("!Q")
PADDING = bytes(FRAME_BYTES - NUMBER.size)
SILENCE = 1.0  # seconds without an echo that make a gap
LAST_ECHOES = 1.0  # seconds that a call's end waits for echoes still on their way


class Call:
    """One held call: opens, exchanges frames until told to stop or closed by the other side, then closes."""

    def __init__(self, target: Target, lag: DriverLag, rate: float = RATE) -> None:
        self.report = Report(session=f"call-{uuid.uuid4().hex[:16]}")
        self.answered = asyncio.Event()
        self._target = target
        self._lag = lag
        self._rate = rate
        self._stop = asyncio.Event()
        self._sent_at: dict[int, float] = {}
        self._next = 0
        self._last_echo = 0.0
        self._lag_then = 0.0

    def stop(self) -> None:
        """End the call in the ordinary way."""
        self._stop.set()

    async def run(self) -> Report:
        """The whole call, from the start to its report; never raises for what the other side does."""
        self.report.began_at, began = time.time(), time.monotonic()
        try:
            socket = await self._target.connect(self.report.session)
        except (OSError, InvalidHandshake, EOFError, ConnectionClosed) as error:
            self.report.refused = error.response.status_code if isinstance(error, InvalidStatus) else None
            self.report.error = "" if isinstance(error, InvalidStatus) else f"{type(error).__name__}: {error}"
            return self.report
        else:
            self.report.opened = True
        finally:
            self.report.answer_seconds = time.monotonic() - began
            self.answered.set()
        await self._talk(socket)
        return self.report

    async def _talk(self, socket: ClientConnection) -> None:
        self._last_echo, self._lag_then = time.monotonic(), self._lag.total
        listener, watch = asyncio.create_task(self._listen(socket)), asyncio.create_task(self._give_up(socket))
        try:
            if self._rate > 0:
                await self._speak(socket, listener)
            else:
                await first_of(listener, self._stop)
            if self._sent_at:
                await asyncio.wait([listener], timeout=LAST_ECHOES)
            self._conclude(socket)
        finally:
            listener.cancel()
            await socket.close()
            watch.cancel()

    async def _give_up(self, socket: ClientConnection) -> None:
        """Cut a stopped call that does not end: after a peer that vanished, sending waits for room for ever."""
        await self._stop.wait()
        await asyncio.sleep(LAST_ECHOES + CLOSE_TIMEOUT)
        socket.transport.abort()

    async def _speak(self, socket: ClientConnection, listener: asyncio.Task[None]) -> None:
        """Send frames on a fixed schedule; a late frame does not delay the following ones."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while not self._stop.is_set() and not listener.done():
            number = self.report.frames_sent
            self._sent_at[number] = time.monotonic()
            try:
                await socket.send(NUMBER.pack(number) + PADDING)
            except ConnectionClosed:
                del self._sent_at[number]
                self.report.closed_early = True  # the listener may not have been told yet, and is not waited for
                return
            self.report.frames_sent = number + 1
            await asyncio.sleep(begin + self.report.frames_sent / self._rate - loop.time())

    async def _listen(self, socket: ClientConnection) -> None:
        """Judge echoes until the other side closes, or until the last one has come after a stop."""
        try:
            while not (self._stop.is_set() and not self._sent_at):
                self._judge(await socket.recv())
        except ConnectionClosed:
            self.report.closed_early = True
            self._judge_silence(time.monotonic())

    def _judge(self, frame: str | bytes) -> None:
        """Count an echo and note what is wrong with it."""
        now = time.monotonic()
        self._judge_silence(now)
        self._last_echo, self._lag_then = now, self._lag.total
        number = NUMBER.unpack_from(frame)[0] if isinstance(frame, bytes) and len(frame) >= NUMBER.size else -1
        sent = self._sent_at.pop(number, None)
        if sent is None:
            self.report.gaps.append(f"frame {number} came again or was never sent")
            return
        self.report.frames_echoed += 1
        self.report.worst_round_trip = max(self.report.worst_round_trip, now - sent)
        if number > self._next:
            self.report.gaps.append(f"frames {self._next} to {number - 1} missing before frame {number}")
            for missing in range(self._next, number):
                self._sent_at.pop(missing, None)
        self._next = max(self._next, number + 1)

    def _judge_silence(self, now: float) -> None:
        silent = now - self._last_echo - (self._lag.total - self._lag_then)
        if self._rate > 0 and silent >= max(SILENCE, 2 / self._rate):
            self.report.gaps.append(f"{silent:.2f} s without an echo before frame {self._next}")

    def _conclude(self, socket: ClientConnection) -> None:
        """Judge the end.  Frames on their way when the other side closed are part of that, not a gap."""
        if self.report.closed_early:
            self.report.close_code = socket.close_code
        elif self._sent_at:
            self._judge_silence(time.monotonic())
            self.report.gaps.append(f"frames {min(self._sent_at)} to {max(self._sent_at)} never came back")


async def first_of(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until a task is done or an event is set."""
    waiter = asyncio.create_task(event.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
