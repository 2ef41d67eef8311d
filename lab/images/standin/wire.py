"""What every stand-in says the same way: JSON answers, the shared-secret header, files that are never half written."""

from __future__ import annotations

import hmac
import json
import os
import re
import ssl
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.responses import Response

SPACED = os.environ.get("STANDIN_JSON_SPACES") == "1"
SECRET_HEADER = os.environ.get("SECRET_HEADER", "X-CXBCore-Secret")
CORE_SECRET = os.environ.get("CORE_SECRET", "")
VERSION = os.environ.get("STANDIN_VERSION", "1")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def new_app(title: str, **options: Any) -> FastAPI:
    """A FastAPI application without the documentation routes."""
    return FastAPI(title=title, openapi_url=None, docs_url=None, redoc_url=None, **options)


def reply(document: Any, status: int = 200) -> Response:
    """A JSON answer, compact unless STANDIN_JSON_SPACES=1 (some health patterns depend on compact JSON)."""
    text = json.dumps(document) if SPACED else json.dumps(document, separators=(",", ":"))
    return Response(text, status_code=status, media_type="application/json")


def refuse(status: int, detail: str) -> Response:
    """An error answer in FastAPI's own shape."""
    return reply({"detail": detail}, status)


def secret_matches(given: str | None) -> bool:
    """Whether a request carries the core secret.  Without a configured secret nothing matches."""
    return bool(CORE_SECRET) and hmac.compare_digest(given or "", CORE_SECRET)


def http_client(url: str, timeout: float) -> httpx.AsyncClient:
    """A client for another service; https trusts SSL_CERT_FILE, or the system's bundle without it."""
    verify: ssl.SSLContext | bool = False
    if url.startswith("https:"):
        verify = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
    return httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=False)


def safe_name(text: str) -> bool:
    """Whether a session id or key may be used as a file name."""
    return SAFE_NAME.fullmatch(text) is not None


def write_json(path: Path, document: Any) -> None:
    """Write a document so that it survives a crash: whole and old, or whole and new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as out:
        json.dump(document, out)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(path)
