"""Named stand-in for MinIO: PUT, GET and DELETE of objects by /bucket/key, without authentication or listing."""

from __future__ import annotations

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from .wire import new_app, safe_name

HEADERS = {"Server": "minio stand-in"}


def new_store(directory: Path) -> FastAPI:
    """An object store that keeps its objects as files of `directory`."""

    def locate(request: Request) -> Path | None:
        parts = [request.path_params["bucket"], *request.path_params["key"].split("/")]
        return directory.joinpath(*parts) if all(safe_name(part) for part in parts) else None

    async def put(request: Request) -> Response:
        path = locate(request)
        if path is None:
            return Response("minio stand-in: bad name\n", 400, HEADERS)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(await request.body())
        temporary.rename(path)
        return Response("minio stand-in: stored\n", 200, HEADERS)

    async def get(request: Request) -> Response:
        path = locate(request)
        if path is None or not path.is_file():
            return Response("minio stand-in: no such object\n", 404, HEADERS)
        return FileResponse(path, headers=HEADERS)

    async def delete(request: Request) -> Response:
        path = locate(request)
        if path is not None:
            path.unlink(missing_ok=True)
        return Response(None, 204, HEADERS)

    async def live(_request: Request) -> Response:
        return Response("minio stand-in: live\n", 200, HEADERS)

    app = new_app("minio stand-in")
    app.add_route("/minio/health/live", live, methods=["GET"])
    app.add_route("/{bucket}/{key:path}", put, methods=["PUT"])
    app.add_route("/{bucket}/{key:path}", get, methods=["GET", "HEAD"])
    app.add_route("/{bucket}/{key:path}", delete, methods=["DELETE"])
    return app


def run() -> None:
    """Serve on HOST:PORT, by default loopback:9000; objects live in DATA_DIR."""
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "9000"))
    app = new_store(Path(os.environ.get("DATA_DIR", "/var/lib/standin-minio")))
    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning", server_header=False)
