"""A host in a temporary directory: real sockets, real worker processes, a stand-in for docker."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callfleet.onhost import cli, sockets
from callfleet.onhost.canary import WebSocket
from callfleet.onhost.compose import Docker
from callfleet.onhost.slots import observe
from callfleet.onhost.stack import Stack, load

HERE = Path(__file__).parent
REPO = HERE.parent.parent
NAME = "t-fleet"


class Host:
    """One host; `declare` lays down what an apply would lay down, `slotctl` runs the program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run" / NAME
        self.docker_dir = root / "docker"
        self.started: list[subprocess.Popen[str]] = []
        self.docker_dir.mkdir()
        self.run_dir.mkdir(parents=True)
        (root / "opt/stacks" / NAME).mkdir(parents=True)

    def declare(self, slots: int = 2, label: str = "a", mode: str = "ok", **more: Any) -> None:
        services = more.pop("services", {})
        workers = {f"worker-{n}": {"label": label, "mode": mode} for n in range(1, slots + 1)}
        others = {
            name: {"label": spec.pop("label", "a"), "mode": spec.pop("mode", "ok")} for name, spec in services.items()
        }
        made = {**workers, **others}
        value = {
            "schema": 1, "stack": NAME, "project_dir": f"/opt/stacks/{NAME}", "run_dir": f"/run/{NAME}",
            "socket_prefix": "t", "slots": slots, "worker_uid": os.getuid(), "services": services,
            "config": {name: spec["label"] for name, spec in made.items()},
            "canary": {"frames": 3, "timeout_seconds": 30}, "limits": {"start_seconds": 60, "stop_seconds": 5},
            "health": {"answer_seconds": 20}, **more,
        }  # fmt: skip
        project = self.root / "opt/stacks" / NAME
        (project / "compose.yml").write_text(json.dumps({"services": made}))
        (project / "stack.json").write_text(json.dumps(value))

    @property
    def stack(self) -> Stack:
        return load(NAME)

    def slotctl(self, *words: str) -> int:
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return cli.main([words[0], NAME, *words[1:]])
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "callfleet.onhost", words[0], NAME, *words[1:]]
        self.started.append(subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def states(self) -> dict[int, str]:
        return {n: slot.word.value for n, slot in observe(self.stack, Docker(self.stack)).items()}

    def labels(self) -> dict[str, str]:
        return {value["service"]: value["label"] for value in self.containers()}

    def containers(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.docker_dir.glob("*.container")]

    def pid(self, service: str) -> int:
        return next(value["pid"] for value in self.containers() if value["service"] == service)

    def published(self) -> list[int]:
        names = (self.run_dir / "published").glob("t_*.sock")
        return sorted(int(path.stem[2:]) for path in names)

    def call(self, n: int, own: bool = False, seconds: float = 600) -> WebSocket:
        path = self.run_dir / (f"slots/{n}" if own else "published") / f"t_{n}.sock"
        return WebSocket(path, "/ws/bot", time.monotonic() + seconds)

    def behave(self, n: int, how: str) -> None:
        (self.run_dir / f"slots/{n}/behave").write_text(how)

    def kill(self, *services: str) -> None:
        """End containers as a crash does; without names all. Returns when they are gone."""
        dying = [value["pid"] for value in self.containers() if not services or value["service"] in services]
        for pid in dying:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in dying))

    def listens(self, n: int) -> bool:
        """Whether a worker accepts connections in its own directory."""
        return sockets.listening(self.stack.own_socket(n)) is True

    def docker_runs(self) -> bool:
        """Whether a docker command is still under way, though whoever began it may be dead."""
        own = str(self.root / "bin/docker").encode()
        return any(own in command.split(b"\0") for command in map(command_line, Path("/proc").glob("[0-9]*")))

    def docker_calls(self) -> list[str]:
        path = self.docker_dir / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def changes(self) -> list[str]:
        return [call for call in self.docker_calls() if call.split()[0] in ("compose", "stop", "rm")]

    def forget_calls(self) -> None:
        (self.docker_dir / "calls").unlink(missing_ok=True)

    def journal(self) -> list[dict[str, Any]]:
        path = self.root / "etc/callfleet/journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def was_cut(self) -> bool:
        """A worker got TERM during a call, or a running container was recreated under it."""
        return (self.run_dir / "cut").exists() or (self.docker_dir / "recreated-while-running").exists()

    def close(self) -> None:
        for run in self.started:
            run.kill()
            run.wait()
        self.kill()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    root = Path(tempfile.mkdtemp(prefix="slots-"))  # short: a socket's path has 108 bytes
    programs = root / "bin"
    programs.mkdir()
    program = (HERE / "standin_docker.py").read_text().partition("\n")[2]
    (programs / "docker").write_text(f"#!{sys.executable} -SE\n{program}")
    shutil.copy(HERE / "standin_worker.py", programs / "standin_worker.py")
    (programs / "docker").chmod(0o755)
    # Other network namespaces of this machine are not this host's, and reading them takes time: test_sockets.py does.
    (programs / "nsenter").symlink_to(str(shutil.which("true")))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLFLEET_ROOT", str(root))
    monkeypatch.setenv("STANDIN_DOCKER", str(root / "docker"))
    monkeypatch.setenv("STANDIN_RUN", str(root / "run" / NAME))
    made = Host(root)
    yield made
    made.close()
    shutil.rmtree(root)
    assert not root.exists()


def command_line(process: Path) -> bytes:
    """The arguments of a process by its folder in /proc; empty when it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.05)
