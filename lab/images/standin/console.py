"""Stand-in for the console: static files; every unknown path is index.html, as a single-page application needs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from .wire import VERSION, new_app, reply

STATIC = Path(__file__).parent / "static"
PLACEHOLDER = '"__VITE_API_URL__"'


def new_console(api_url: str) -> FastAPI:
    """The console for one API; its placeholder is filled here, at start."""
    index = (STATIC / "index.html").read_bytes()
    config = (STATIC / "config.js").read_text().replace(PLACEHOLDER, json.dumps(api_url))

    async def serve_config(_request: Request) -> Response:
        return Response(config, media_type="text/javascript")

    async def serve_health(_request: Request) -> Response:
        return reply({"status": "ok", "version": VERSION})

    async def serve_index(_request: Request) -> Response:
        return Response(index, media_type="text/html")

    app = new_app("cxb-console stand-in")
    app.add_route("/config.js", serve_config, methods=["GET"])
    app.add_route("/health", serve_health, methods=["GET"])
    app.add_route("/{path:path}", serve_index, methods=["GET"])
    return app


def run() -> None:
    """Serve on HOST:PORT, by default loopback:8081."""
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "8081"))
    app = new_console(os.environ.get("VITE_API_URL", ""))
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")
