"""Plain and guarded services, and the proxy: when each is started, replaced, reloaded or left alone."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callfleet.onhost import services

from .conftest import Host, wait_until

STAT = "# pxname,svname,qcur,qmax,scur\nfe,FRONTEND,,,{0}\nworkers,w1,0,0,0\nworkers,BACKEND,0,0,{0}\n\n"
PROC = "#<PID> <type> <reloads>\n10 master 1\n# workers\n11 worker 0\n# old workers\n9 worker 1\n"


class Lines(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A stand-in for a HAProxy socket: one command, one answer, recorded."""

    daemon_threads = True

    def __init__(self, path: Path, answer: Callable[[str], str]) -> None:
        self.said: list[str] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                command = self.rfile.readline().decode().strip()
                server.said.append(command)
                self.wfile.write(answer(command).encode())

        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class FakeProxy:
    """What the two sockets say: which configuration runs, and how many sessions each process has."""

    def __init__(self, host: Host) -> None:
        self.running, self.next, self.sessions, self.success = "h1", "h1", {"11": 0, "9": 0}, 1
        self.admin = Lines(host.run_dir / "proxy/admin.sock", lambda _: f"CALLFLEET_CONFIG={self.running}\n\n")
        self.master = Lines(host.run_dir / "proxy/master.sock", self.answer)

    def answer(self, command: str) -> str:
        if command == "show proc":
            return PROC
        if command == "reload":
            self.running = self.next if self.success else self.running
            return f"Success={self.success}\n--\nwords\n"
        return STAT.format(self.sessions[command[2:].split()[0]])

    def close(self) -> None:
        for server in (self.admin, self.master):
            server.shutdown()
            server.server_close()


@pytest.fixture
def proxy(host: Host) -> Iterator[FakeProxy]:
    made = FakeProxy(host)
    yield made
    made.close()


def with_proxy(host: Host, config_hash: str = "h1", label: str = "a") -> int:
    spec: dict[str, Any] = {"config_hash": config_hash}
    host.declare(slots=0, services={"proxy": {"kind": "proxy", "label": label}}, proxy=spec)
    return host.slotctl("converge")


def test_a_missing_proxy_is_started_and_then_left_alone(host: Host, proxy: FakeProxy) -> None:
    """Started once; a second run neither starts nor reloads."""
    assert with_proxy(host) == 0
    host.forget_calls()
    assert with_proxy(host) == 0
    assert host.changes() == []
    assert "reload" not in proxy.master.said


def test_another_configuration_is_checked_and_reloaded_by_the_master_socket(host: Host, proxy: FakeProxy) -> None:
    """The same process; Docker is used for nothing but the check."""
    with_proxy(host)
    pid, proxy.next = host.pid("proxy"), "h2"
    host.forget_calls()
    assert with_proxy(host, "h2") == 0
    assert proxy.master.said.count("reload") == 1
    assert host.pid("proxy") == pid
    assert any("haproxy -c -dW -f /usr/local/etc/haproxy/haproxy.cfg" in call for call in host.docker_calls())
    assert host.changes() == []


def test_a_broken_file_is_never_loaded(host: Host, proxy: FakeProxy) -> None:
    """The check fails: no reload, failed, with its words."""
    with_proxy(host)
    (host.docker_dir / "config-is-bad").write_text("unknown keyword 'bindd'")
    assert with_proxy(host, "h2") == 1
    assert "reload" not in proxy.master.said


@pytest.mark.parametrize("fault", ["refused", "still the old"])
def test_a_reload_that_did_not_take_is_a_failure(
    host: Host, proxy: FakeProxy, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Success=0 fails; so does Success=1 when the configuration that runs is not the one that was wanted."""
    monkeypatch.setattr("callfleet.onhost.proxy.SEEN_SECONDS", 0.3)
    with_proxy(host)
    proxy.success = 0 if fault == "refused" else 1
    assert with_proxy(host, "h2") == 1


def test_another_definition_is_started_beside_the_proxy_which_then_leaves(
    host: Host, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second container takes over; only then the first gets the signal by which it ends with its last call."""
    with_proxy(host)
    first = host.containers()[0]
    monkeypatch.setattr("callfleet.onhost.proxy.took_over", lambda *_: True)
    assert with_proxy(host, label="b") == 0
    calls = host.docker_calls()
    beside = next(n for n, call in enumerate(calls) if "--scale proxy=2" in call)
    assert "--no-recreate" in calls[beside]
    assert f"update --restart no {first['id']}" in calls[beside:]
    assert not host.was_cut()
    assert not any(call.startswith("stop") for call in calls), "Docker would count it as stopped by hand"
    wait_until(lambda: not Path(f"/proc/{first['pid']}/exe").exists())
    assert with_proxy(host, label="b") == 0
    assert [c["label"] for c in host.containers()] == ["b"]


def test_a_proxy_that_does_not_take_over_leaves_the_former_one_serving(
    host: Host, proxy: FakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but the first answers at the admin socket: failed, said, and the first is not signalled."""
    with_proxy(host)
    first = host.pid("proxy")
    monkeypatch.setattr("callfleet.onhost.services.TAKE_OVER_SECONDS", 0.5)
    assert with_proxy(host, label="b") == 1
    assert Path(f"/proc/{first}/exe").exists()
    assert not any(call.startswith("update") for call in host.docker_calls())


class Quiet(http.server.BaseHTTPRequestHandler):
    """A dialler's health: the answers of `script`, one after the other, the last for ever."""

    script: list[Any] = []  # noqa: RUF012 - replaced per test

    def do_GET(self) -> None:
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.send_response(200 if answer is not None else 500)
        self.end_headers()
        self.wfile.write(json.dumps({"calls_in_setup": answer}).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(services, "QUIET_APART_SECONDS", 0.05)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/health"
    server.shutdown()
    server.server_close()


def with_dialler(host: Host, url: str, label: str, answers: list[Any]) -> int:
    Quiet.script = answers
    quiet = {"url": url, "field": "calls_in_setup", "equals": 0}
    host.declare(slots=0, services={"dialler": {"kind": "guarded", "label": label, "quiet": quiet}})
    return host.slotctl("converge")


def test_a_guarded_service_is_replaced_only_when_quiet_twice_in_a_row(host: Host, url: str) -> None:
    """Quiet at the first look and busy at the second is busy."""
    assert with_dialler(host, url, "a", [0]) == 0
    assert with_dialler(host, url, "b", [0, 1]) == 3
    assert host.labels() == {"dialler": "a"}
    assert with_dialler(host, url, "b", [0]) == 0
    assert host.labels() == {"dialler": "b"}
    assert not host.was_cut(), "it was stopped first, not recreated under its own feet"


@pytest.mark.parametrize("answer", [1, None, "0", False, 0.0])
def test_a_guarded_service_without_a_clear_zero_is_left_running(host: Host, url: str, answer: Any) -> None:
    """An error and a zero of another type are no zero."""
    with_dialler(host, url, "a", [0])
    assert with_dialler(host, url, "b", [answer]) == 3
    assert host.labels() == {"dialler": "a"}


def test_a_guarded_service_that_does_not_answer_is_left_but_a_dead_one_is_started(host: Host, url: str) -> None:
    """No answer from a running container is busy; no container needs no answer."""
    with_dialler(host, url, "a", [0])
    assert with_dialler(host, "http://127.0.0.1:9/health", "b", [0]) == 3
    host.close()
    assert with_dialler(host, "http://127.0.0.1:9/health", "b", [0]) == 0
    assert host.labels() == {"dialler": "b"}


def test_a_plain_service_is_started_replaced_and_waited_for(host: Host) -> None:
    """Missing: started; another label: replaced; never healthy: failed, with its last lines."""

    def go(label: str, mode: str) -> int:
        host.declare(
            slots=0,
            services={"api": {"kind": "plain", "label": label, "mode": mode}},
            limits={"start_seconds": 1},
        )
        return host.slotctl("converge")

    assert go("a", "healthy") == 0
    host.forget_calls()
    assert go("a", "healthy") == 0
    assert host.changes() == []
    assert go("b", "healthy") == 0
    assert host.labels() == {"api": "b"}
    assert go("c", "unhealthy") == 1
