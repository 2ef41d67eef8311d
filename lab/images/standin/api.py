"""Stand-in for the API: bot configuration, call results, the list of fleet hosts, and the choice of a host.

Tokens: each line of ADMIN_TOKEN_FILE is `TOKEN [ROLE]`, role `super_admin` (the default) or `admin`.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from .api_state import CANARY_BOT, ApiState
from .call_slot import new_session_id
from .host_picker import attach, most_free, poll_all
from .redis_counter import RedisCounter
from .wire import SECRET_HEADER, VERSION, new_app, refuse, reply, safe_name, secret_matches

ROLES = {"admin", "super_admin"}


class Api:
    """The control plane's routes."""

    def __init__(self, env: dict[str, str]) -> None:
        self.state = ApiState(Path(env.get("STATE_DIR", "/var/lib/standin-api")))
        self.redis = RedisCounter(env.get("REDIS_URL", ""))
        self.token_file = env.get("ADMIN_TOKEN_FILE", "")
        self.call_seconds = float(env.get("MAX_CALL_SECONDS", "600"))

    def app(self) -> FastAPI:
        """The application with all routes of the API."""
        app = new_app("cxb-api stand-in")
        app.add_route("/health", self.health, methods=["GET"])
        app.add_route("/api/v1/config/{bot_id}", self.config, methods=["GET"])
        app.add_route("/api/v1/calls", self.start_call, methods=["POST"])
        app.add_route("/api/v1/call-results", self.put_result, methods=["POST"])
        app.add_route("/api/v1/call-results", self.results, methods=["GET"])
        app.add_route("/api/v1/reports/calls", self.report, methods=["GET"])
        app.add_route("/api/v1/settings/fleet", self.fleet_settings, methods=["GET", "PUT"])
        app.add_route("/api/v1/fleet/status", self.fleet_status, methods=["GET"])
        return app

    async def health(self, _request: Request) -> Response:
        """200 also without Redis: `degraded` says so."""
        redis = await self.redis.word()
        status = "ok" if redis == "ok" else "degraded"
        return reply({"status": status, "redis": redis, "mongo": "stand-in: files", "version": VERSION})

    async def config(self, request: Request) -> Response:
        """A bot's configuration; every bot exists but those whose name starts with `missing`."""
        if not secret_matches(request.headers.get(SECRET_HEADER)):
            return refuse(403, "forbidden")
        bot_id = request.path_params["bot_id"]
        if bot_id.startswith("missing"):
            return refuse(404, "bot_not_found")
        config = {"bot_id": bot_id, "max_call_duration_seconds": self.call_seconds, "canary": bot_id == CANARY_BOT}
        return reply(config)

    async def start_call(self, request: Request) -> Response:
        """Start an outbound call on the host with most free slots; 503 when there is none."""
        body = await json_object(request)
        if not body.get("bot_id"):
            return refuse(422, "body: expected a JSON object with bot_id")
        healths = await poll_all(self.state.core_fleet)
        url = most_free(healths, {})
        if url is None:
            return refuse(503, "no_capacity")
        status, answer = await attach(url, {"session_id": new_session_id(), **body})
        if status == 200:
            await self.redis.count("started")
            return reply({**answer, "host": url})
        if status == 429:
            return refuse(503, "no_capacity")
        return refuse(502, f"attach_failed: {url}: {status or 'unreachable'}: {answer.get('detail')}")

    async def put_result(self, request: Request) -> Response:
        """Upsert a call's result by its session id."""
        if not secret_matches(request.headers.get(SECRET_HEADER)):
            return refuse(403, "forbidden")
        result = await json_object(request)
        if not safe_name(str(result.get("session_id", ""))):
            return refuse(422, "body: expected a JSON object with session_id")
        stored = self.state.upsert(result)
        await self.redis.count("finished" if stored["replays"] == 0 else "replayed")
        return reply({"status": "stored", "replays": stored["replays"]})

    async def results(self, request: Request) -> Response:
        """One result by `session_id`, or all of them."""
        session_id = request.query_params.get("session_id")
        if session_id is None:
            return reply({"results": list(self.state.results.values())})
        result = self.state.results.get(session_id)
        return reply(result) if result else refuse(404, "result_not_found")

    async def report(self, _request: Request) -> Response:
        """Totals without canary calls; `redis` repeats what Redis counted, for comparison."""
        counted = {what: await self.redis.read(what) for what in ("started", "finished", "replayed")}
        return reply({**self.state.report(), "redis": counted})

    async def fleet_settings(self, request: Request) -> Response:
        """Read (any administrator) or replace as a whole (super_admin) the list of fleet hosts."""
        role = self.role(request)
        if role is None:
            return refuse(401, "not_authenticated")
        if request.method == "PUT":
            if role != "super_admin":
                return refuse(403, "super_admin required")
            urls = (await json_object(request)).get("core_fleet")
            if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
                return refuse(422, "core_fleet: expected a list of base URLs")
            self.state.core_fleet = urls
        return reply({"core_fleet": self.state.core_fleet})

    async def fleet_status(self, request: Request) -> Response:
        """Capacity and workers of all registered hosts, asked now."""
        if self.role(request) is None:
            return refuse(401, "not_authenticated")
        healths = await poll_all(self.state.core_fleet)
        reachable = [health for health in healths.values() if health]
        workers: list[dict[str, Any]] = []
        for url, health in healths.items():
            found = health["workers"] if health else [{"status": "unreachable"}]
            workers += [{"host": url, **worker} for worker in found]
        return reply(
            {
                "total_capacity": sum(health["fleet_max"] for health in reachable),
                "active_calls": sum(health["fleet_calls"] for health in reachable),
                "available": sum(health["fleet_available"] for health in reachable),
                "workers": workers,
            }
        )

    def role(self, request: Request) -> str | None:
        """The role of the bearer token, read from the file at every request; None when it is unknown."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        path = Path(self.token_file) if self.token_file else None
        if scheme.lower() != "bearer" or path is None or not path.exists():
            return None
        for line in path.read_text().splitlines():
            token, _, role = line.strip().partition(" ")
            if token and hmac.compare_digest(token.encode(), given.strip().encode()):
                return role.strip() or "super_admin" if (role.strip() or "super_admin") in ROLES else None
        return None


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; empty when it is anything else."""
    try:
        body = await request.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def run() -> None:
    """Serve on HOST:PORT, by default loopback:8080."""
    env = dict(os.environ)
    host, port = env.get("HOST", "127.0.0.1"), int(env.get("PORT", "8080"))
    uvicorn.run(Api(env).app(), host=host, port=port, access_log=False, log_level="warning")
