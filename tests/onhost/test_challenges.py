"""Challenges are put into the running proxy's map, asked for as the authority will, and taken out again."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from callfleet.onhost import challenges
from callfleet.onhost.errors import SlotError

MAP = "virt@challenges"


class Standin:
    """An HAProxy with one map, that answers over HTTP what is in it."""

    def __init__(self, socket: Path) -> None:
        self.socket, self.map = socket, {}  # type: ignore[var-annotated]
        outer = self

        class Admin(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                verb, _, name, token, *answer = self.rfile.read().decode().split()
                said = ""
                if name != MAP:
                    said = "Unknown map identifier. Please use #<id> or <file>."
                elif verb == "add":
                    outer.map[token] = answer[0]
                elif outer.map.pop(token, None) is None:
                    said = "Key not found."
                self.wfile.write(f"{said}\n".encode())

        class Http(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = outer.map.get(self.path.removeprefix(challenges.PATH))
                self.send_response(404 if answer is None else 200)
                self.end_headers()
                self.wfile.write((answer or "none").encode())

            def log_message(self, *_: object) -> None:
                pass

        self.admin = socketserver.ThreadingUnixStreamServer(str(socket), Admin)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
        self.port = int(self.http.server_address[1])


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Standin]:
    made = Standin(tmp_path / "admin.sock")
    for server in (made.admin, made.http):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    for server in (made.admin, made.http):
        server.shutdown()
        server.server_close()


def call(proxy: Standin, monkeypatch: pytest.MonkeyPatch, *words: str, name: str = MAP) -> int:
    """The module as SSH calls it."""
    monkeypatch.setattr(challenges.look, "__defaults__", (proxy.port,))
    return challenges.main(["--admin-socket", str(proxy.socket), "--map", name, *words])


def test_answers_come_and_go(proxy: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set twice is set once; what a killed run left is replaced; cleared twice is no error."""
    proxy.map["t-1"] = "left"
    for _ in range(2):
        assert call(proxy, monkeypatch, "set", "t-1=t-1.thumb", "t_2=t_2.thumb") == 0
        assert proxy.map == {"t-1": "t-1.thumb", "t_2": "t_2.thumb"}
    for _ in range(2):
        assert call(proxy, monkeypatch, "clear", "t-1", "t_2") == 0
        assert proxy.map == {}


def test_a_proxy_without_the_map_is_told(
    proxy: Standin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that was not converged since ACME was declared."""
    assert call(proxy, monkeypatch, "set", "t=t.thumb", name="virt@other") == 1
    assert "Unknown map identifier" in capsys.readouterr().err


def test_another_answer_than_the_one_set_is_told(proxy: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else may have the port, or nobody."""
    with pytest.raises(SlotError, match="status 404: 'none'"):
        challenges.look({"t": "t.thumb"}, proxy.port)
    with pytest.raises(SlotError, match="nobody answers on port 1"):
        challenges.look({"t": "t.thumb"}, 1)
