"""Docker and Compose, as far as one stack needs them. Images are never pulled or built here."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass, replace
from typing import Any

from .errors import SlotError
from .journal import read_json, write_json
from .stack import Stack

ASK_SECONDS = 30
CHANGE_SECONDS = 300
LOG_LINES = 20
STACK_LABEL, SERVICE_LABEL, CONFIG_LABEL = "callfleet.stack", "callfleet.service", "callfleet.config"
COMPOSE_LABEL, LIMITS = "com.docker.compose.config-hash", ("Memory", "NanoCpus", "PidsLimit")
BY_HAND = " changed by hand"
STOPPED = frozenset({"created", "exited", "dead", "restarting", "removing"})


class DockerError(SlotError):
    """Docker did not answer or refused."""


@dataclass(frozen=True)
class Container:
    """One container of the stack. `config` is the label it was made with, which says so where it was changed by hand
    since; `started` is Docker's time of its start.

    `made` is what it was really made from: Compose's own hash of the service, and limits, which can be changed in place
    (memory in bytes, billionths of a CPU, processes; 0 is none).
    """

    id: str
    service: str
    config: str | None
    made: tuple[str | int, ...]
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

    @property
    def label(self) -> str:
        """What it is said to be made from, whether that is still true or not."""
        return (self.config or "").removesuffix(BY_HAND)


class Docker:
    """Docker calls for one stack; changes are made one at a time."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.changing = threading.Lock()
        self.noting = threading.Lock()

    def containers(self) -> dict[str, list[Container]]:
        """Service name -> its containers (more than one only after a crash or by hand)."""
        listed = self.ask("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={STACK_LABEL}={self.stack.name}")
        result: dict[str, list[Container]] = {}
        ids, noted = listed.split(), self._noted()
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
            known = noted.get(found.service, {}).get(found.config)
            if known not in (None, list(found.made)):
                found = replace(found, config=f"{found.config}{BY_HAND}")
            result.setdefault(found.service, []).append(found)
        return result

    def start(self, services: list[str], recreate: bool) -> None:
        """`docker compose up -d` for exactly these services. `recreate` makes their containers anew in any case."""
        self._up(services, "--force-recreate" if recreate else "--no-recreate")

    def start_beside(self, service: str) -> None:
        """A second container of a service, made as the project says now; the first is not touched."""
        self._up([service], "--no-recreate", "--scale", f"{service}=2")

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

    def _up(self, services: list[str], *words: str) -> None:
        """`docker compose up -d`, and a note of what the containers that it made are made from."""
        before = {one.id for found in self.containers().values() for one in found}
        always = ["up", "--detach", "--no-deps", "--no-build", "--pull", "never"]
        self.change("compose", *self._project(), *always, *words, *services)
        with self.noting:
            found, noted = self.containers(), self._noted()
            for service in services:
                known = noted.get(service, {})
                noted[service] = {
                    one.label: known[one.label] if one.id in before and one.label in known else one.made
                    for one in found.get(service, [])
                }
            write_json(self.stack.made_file, {name: made for name, made in noted.items() if name in self.stack.config})

    def _noted(self) -> dict[str, dict[str | None, Any]]:
        """What containers were made from, by service and label. Garbage is no note."""
        noted = read_json(self.stack.made_file) or {}
        return {service: made for service, made in noted.items() if isinstance(made, dict)}

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
        made=(labels.get(COMPOSE_LABEL, ""), *(int(value["HostConfig"].get(limit) or 0) for limit in LIMITS)),
        image=value["Config"]["Image"],
        image_id=value.get("Image", ""),
        status=state["Status"],
        health=(state.get("Health") or {}).get("Status"),
        pid=int(state.get("Pid") or 0),
        started=state.get("StartedAt", ""),
        restarts=int(value.get("RestartCount") or 0),
    )
