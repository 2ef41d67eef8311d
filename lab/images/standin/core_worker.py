"""Stand-in for a core worker: one call per process, on a Unix socket, with the platform's routes and refusals.

Started and stopped exactly as uvicorn does it: SIGTERM closes live WebSockets with 1012 and ends background calls.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from .call_slot import Call, CallSlot, NoConfigError, new_session_id, recording
from .events import EventLog
from .outbox import Outbox
from .siblings import Siblings, free_slots
from .wire import SECRET_HEADER, VERSION, new_app, refuse, reply, safe_name, secret_matches
from .worker_settings import WorkerSettings, read_settings

SERVICE_RESTART = 1012  # the close code with which uvicorn drops WebSockets when it stops
DEFAULT_BACKGROUND_SECONDS = 20.0
POST_ROUTES = ("/attach", "/livekit/dialout", "/livekit/widget", "/livekit/dispatch")


class Worker:
    """The worker's routes; the slot decides, this class only speaks."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.log = EventLog(settings.event_log, settings.worker_id)
        self.outbox = Outbox(settings.outbox, settings.result_url, settings.worker_id)
        self.slot = CallSlot(settings, self.log, self.outbox)
        self.siblings = Siblings(settings)
        self.background: dict[asyncio.Task[None], Call] = {}
        self.stopping = False

    def app(self) -> FastAPI:
        """The application with all routes of a worker."""
        app = new_app("cxb-core-worker stand-in", lifespan=self.lifespan)
        app.add_api_websocket_route("/ws/{bot_id}", self.websocket)
        app.add_api_websocket_route("/exotel/{bot_id}", self.websocket)
        for route in POST_ROUTES:
            app.add_route(route, self.post_start, methods=["POST"])
        app.add_route("/health", self.health, methods=["GET"])
        app.add_route("/health/fleet", self.fleet, methods=["GET"])
        app.add_route("/recordings/{key}", self.recording, methods=["GET"])
        app.add_route("/standin/counters", self.counters, methods=["GET"])
        app.add_route("/standin/hangup", self.hang_up, methods=["POST"])
        return app

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Deliver leftovers while running; when uvicorn has closed its connections, background calls are cut."""
        on_sigterm(self.note_stop)
        self.log.write("boot", version=VERSION, refuses_when_busy=self.settings.refuses_when_busy)
        delivery = asyncio.create_task(self.outbox.deliver())
        yield
        for task, call in list(self.background.items()):
            task.cancel()
            self.slot.finish(call, "cut")
        delivery.cancel()

    async def websocket(self, socket: WebSocket) -> None:
        """A call that lasts as long as its socket; each frame is echoed as it came."""
        session_id = socket.query_params.get("session_id", "")
        route = socket.url.path.rpartition("/")[0]
        call = Call(session_id if safe_name(session_id) else new_session_id(), socket.path_params["bot_id"], route)
        if not self.slot.take(call, self.settings.ws_refusal):
            return await self.deny(socket)
        try:
            await socket.accept()
            code, outcome = await self.converse(socket, call)
            self.slot.finish(call, outcome, code)
        except NoConfigError as error:
            self.log.write("refused", **call.about, code=error.status, why=str(error))
            await socket.close(4404 if error.status == 404 else 1011, str(error))
        except WebSocketDisconnect as gone:  # the peer went away while a frame was being sent to it
            self.slot.finish(call, self.outcome(gone.code), gone.code)
        finally:
            self.slot.release(call)

    def outcome(self, code: int) -> str:
        """How a call ended whose socket is closed: cut when this process did it by stopping."""
        return "cut" if self.stopping or code == SERVICE_RESTART else "completed"

    def note_stop(self) -> None:
        """SIGTERM came: from here on every ending is a cut."""
        self.stopping = True
        self.log.write("sigterm")

    async def deny(self, socket: WebSocket) -> None:
        """Refuse before the accept: a plain close (uvicorn makes it 403), or the status that the site measured."""
        if self.settings.ws_refusal == 403:
            await socket.close()
        else:
            await socket.send_denial_response(refuse(self.settings.ws_refusal, "at_capacity"))

    async def converse(self, socket: WebSocket, call: Call) -> tuple[int, str]:
        """Echo until the caller, the longest length or a shutdown ends the call; returns close code and outcome."""
        longest = await self.slot.configure(call)
        if self.settings.broken:
            await socket.close(1011, "broken on purpose")
            return 1011, "failed"
        try:
            async with asyncio.timeout(longest):
                while True:
                    message = await socket.receive()
                    if message["type"] == "websocket.disconnect":
                        code = int(message.get("code") or 1005)
                        return code, self.outcome(code)
                    call.frames += 1
                    await socket.send({**message, "type": "websocket.send"})
        except TimeoutError:
            await socket.close(1000, "max_call_duration")
            return 1000, "max_duration"

    async def post_start(self, request: Request) -> Response:
        """Start a background call and answer at once.  A 429 or 404 to dispatch is counted: it hangs up a caller."""
        try:
            call = posted_call(request.url.path, await request.json())
        except ValueError as error:
            return refuse(422, str(error))
        if not self.slot.take(call, self.settings.post_refusal):
            return self.rejected(call, self.settings.post_refusal, "at_capacity")
        try:
            longest = await self.slot.configure(call)
        except NoConfigError as error:
            self.log.write("refused", **call.about, code=error.status, why=str(error))
            self.slot.release(call)
            return self.rejected(call, error.status, str(error))
        except BaseException:
            self.slot.release(call)
            raise
        task = asyncio.create_task(self.run_background(call, longest))
        self.background[task] = call
        task.add_done_callback(self.background.pop)
        worker_id = self.settings.worker_id
        return reply({"status": "started", "session_id": call.session_id, "worker_id": worker_id})

    def rejected(self, call: Call, status: int, detail: str) -> Response:
        """The refusal of a POST start."""
        if call.route == "/livekit/dispatch" and status in (self.settings.post_refusal, 404):
            self.log.write("dispatch_rejected", session=call.session_id, route=call.route, code=status)
        return refuse(status, detail)

    async def run_background(self, call: Call, longest: float) -> None:
        """Be in a call for its planned length, or until the caller hangs up."""
        planned = call.planned or 0.0
        try:
            async with asyncio.timeout(min(planned, longest)):
                await call.hung_up.wait()
        except TimeoutError:
            pass
        self.slot.finish(call, "completed" if planned <= longest or call.hung_up.is_set() else "max_duration")

    async def health(self, request: Request) -> Response:
        """This worker's own state; the host's totals come from siblings, at most a few seconds old."""
        await self.be_slow()
        own = self.own_health()
        if "alone" in request.query_params:
            return reply(own)
        free = free_slots(own) + await self.siblings.free()
        totals = {"total_capacity": self.settings.workers * self.settings.max_calls, "total_available": free}
        identity = {"workers": self.settings.workers, "worker_id": own.pop("worker_id"), "worker_pid": own.pop("pid")}
        return reply({**own, **totals, **identity})

    async def be_slow(self) -> None:
        """Answer late if a test wants it; nothing else of the worker is."""
        with suppress(OSError, ValueError):
            await asyncio.sleep(float(self.settings.slow_file.read_text()))

    def own_health(self) -> dict[str, Any]:
        """What this worker knows without asking anybody."""
        return {
            "status": "ok",
            "worker_calls": len(self.slot.calls),
            "worker_max": self.settings.max_calls,
            "worker_id": self.settings.worker_id,
            "pid": os.getpid(),
        }

    async def fleet(self, _request: Request) -> Response:
        """All workers of the host, asked now; an unreachable one offers nothing."""
        await self.be_slow()
        healths = {**await self.siblings.healths(), self.settings.worker_id: self.own_health()}
        workers = [fleet_entry(worker_id, healths[worker_id]) for worker_id in sorted(healths, key=int)]
        return reply(
            {
                "status": "ok",
                "fleet_calls": sum(worker.get("calls", 0) for worker in workers),
                "fleet_max": self.settings.workers * self.settings.max_calls,
                "fleet_available": sum(free_slots(health) for health in healths.values() if health),
                "workers": workers,
            }
        )

    async def recording(self, request: Request) -> Response:
        """A recording made on this host; needs the core secret."""
        if not secret_matches(request.headers.get(SECRET_HEADER)):
            return refuse(403, "forbidden")
        key = request.path_params["key"]
        path = recording(self.settings, key) if safe_name(key) else None
        return FileResponse(path, media_type="audio/wav") if path else refuse(404, "recording_not_found")

    async def hang_up(self, request: Request) -> Response:
        """The caller of a background call hangs up (not part of the platform): 404 when it is not on."""
        session = request.query_params.get("session_id")
        found = [call for call in self.background.values() if call.session_id == session]
        for call in found:
            call.hung_up.set()
        return reply({"session_id": session}) if found else refuse(404, "no such call")

    async def counters(self, _request: Request) -> Response:
        """How often each event happened in this process (not part of the platform)."""
        return reply({"worker_id": self.settings.worker_id, "version": VERSION, **self.log.counts})


def posted_call(route: str, body: Any) -> Call:
    """The call that a POST body describes; ValueError says what is wrong with it."""
    if not isinstance(body, dict) or not body.get("bot_id"):
        raise ValueError("body: expected a JSON object with bot_id")
    session_id = str(body.get("session_id") or new_session_id())
    if not safe_name(session_id):
        raise ValueError("session_id: expected letters, digits, '.', '_' and '-'")
    seconds = float(body.get("seconds", DEFAULT_BACKGROUND_SECONDS))
    return Call(session_id, str(body["bot_id"]), route, seconds, str(body.get("campaign", "")))


def fleet_entry(worker_id: str, health: dict[str, Any] | None) -> dict[str, Any]:
    """One worker in `/health/fleet`."""
    if health is None:
        return {"id": worker_id, "status": "unreachable"}
    return {"id": worker_id, "calls": health["worker_calls"], "max": health["worker_max"], "pid": health["pid"]}


def on_sigterm(note: Callable[[], None]) -> None:
    """Run `note` at SIGTERM before uvicorn's own handler, which is in place by now and does the stopping."""
    stock = signal.getsignal(signal.SIGTERM)

    def noted(number: int, frame: FrameType | None) -> None:
        note()
        if callable(stock):
            stock(number, frame)

    signal.signal(signal.SIGTERM, noted)


def run() -> None:
    """Serve on SOCKET until stopped."""
    settings = read_settings(dict(os.environ))
    uvicorn.run(Worker(settings).app(), uds=str(settings.socket), workers=1, access_log=False, log_level="warning")
