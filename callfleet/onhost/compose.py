"""Docker and Compose, as far as one stack needs them. Images are never pulled or built here."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

from .errors import SlotError
from .stack import Stack

ASK_SECONDS = 30
CHANGE_SECONDS = 300
LOG_LINES = 20
STACK_LABEL, SERVICE_LABEL, CONFIG_LABEL = "callfleet.stack", "callfleet.service", "callfleet.config"
STOPPED = frozenset({"created", "exited", "dead", "restarting", "removing"})


class DockerError(SlotError):
    """Docker did not answer or refused."""


@dataclass(frozen=True)
class Container:
    """One container of the stack. `config` is the label it was made with, `started` Docker's time of its start."""

    id: str
    service: str
    config: str | None
    image: str
    image_id: str
    status: str
    health: str | None
    pid: int
    started: str
    restarts: int

    @property
    def running(self) -> bool:
        return self.status == "running"


class Docker:
    """Docker calls for one stack; changes are made one at a time."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.changing = threading.Lock()

    def containers(self) -> dict[str, list[Container]]:
        """Service name -> its containers (more than one only after a crash or by hand)."""
        listed = self.ask("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={STACK_LABEL}={self.stack.name}")
        result: dict[str, list[Container]] = {}
        ids = listed.split()
        if not ids:
            return result
        # One that vanished in between makes inspect fail although it prints the rest; the rest is what exists.
        done = self.run(["inspect", "--type", "container", *ids], ASK_SECONDS)
        if done.returncode != 0 and "no such" not in done.stderr.lower():
            raise DockerError(f"docker inspect: {done.stderr.strip()}")
        for value in json.loads(done.stdout or "[]"):
            labels = value["Config"]["Labels"] or {}
            if labels.get("com.docker.compose.oneoff") == "True":
                continue
            found = _container(value, labels)
            result.setdefault(found.service, []).append(found)
        return result

    def start(self, services: list[str], recreate: bool) -> None:
        """`docker compose up -d` for exactly these services. `recreate` allows replacing a changed container."""
        words = ["up", "--detach", "--no-deps", "--no-build", "--pull", "never"]
        self.change("compose", *self._project(), *words, *([] if recreate else ["--no-recreate"]), *services)

    def start_beside(self, service: str) -> None:
        """A second container of a service, made as the project says now; the first is not touched."""
        words = ["up", "--detach", "--no-deps", "--no-build", "--pull", "never", "--no-recreate"]
        self.change("compose", *self._project(), *words, "--scale", f"{service}=2", service)

    def keep_stopped(self, container: Container) -> None:
        """Docker will not start it again once it has ended."""
        self.change("update", "--restart", "no", container.id)

    def stop(self, container: Container, signal: str | None = None, seconds: float | None = None) -> None:
        """Stop a container. Its own stop signal and grace unless told; afterwards Docker kills it."""
        words = ["--signal", signal] if signal else []
        words += ["-t", str(int(seconds))] if seconds is not None else []
        limit = CHANGE_SECONDS + (seconds or self.stack.limits.max_call_seconds * 2)
        self.change("stop", *words, container.id, seconds=limit)

    def remove(self, container: Container) -> None:
        """Remove a stopped container; refuses a running one."""
        self.change("rm", container.id)

    def inside(self, container: Container, *words: str) -> str:
        return self.ask("exec", container.id, *words)

    def last_lines(self, container: Container) -> list[str]:
        done = self.run(["logs", "--tail", str(LOG_LINES), container.id], ASK_SECONDS)
        return (done.stdout + done.stderr).splitlines()[-LOG_LINES:]

    def ask(self, *words: str) -> str:
        done = self.run(list(words), ASK_SECONDS)
        if done.returncode != 0:
            raise DockerError(f"docker {words[0]}: {(done.stderr + done.stdout).strip()[-1000:]}")
        return done.stdout

    def change(self, *words: str, seconds: float = CHANGE_SECONDS) -> None:
        # Compose files of one project are not made for two writers; stops may go side by side.
        if words[0] == "stop":
            done = self.run(list(words), seconds)
        else:
            with self.changing:
                done = self.run(list(words), seconds)
        if done.returncode != 0:
            raise DockerError(f"docker {' '.join(words)}: {(done.stderr + done.stdout).strip()[-1000:]}")

    def run(self, words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "DOCKER_CONFIG": str(self.stack.docker_config)}
        try:
            return subprocess.run(
                ["docker", *words],
                env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DockerError(f"docker {words[0]}: {error}") from error

    def _project(self) -> list[str]:
        directory = self.stack.project_dir
        files = [word for name in self.stack.compose_files for word in ("--file", str(directory / name))]
        return ["--project-name", self.stack.name, "--project-directory", str(directory), *files]


def _container(value: dict[str, Any], labels: dict[str, str]) -> Container:
    state = value["State"]
    return Container(
        id=value["Id"],
        service=labels.get(SERVICE_LABEL) or labels.get("com.docker.compose.service", ""),
        config=labels.get(CONFIG_LABEL),
        image=value["Config"]["Image"],
        image_id=value.get("Image", ""),
        status=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        pid=int(state.get("Pid") or 0),
        started=state.get("StartedAt", ""),
        restarts=int(value.get("RestartCount") or 0),
    )
