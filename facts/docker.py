"""Reads the container engine, its containers and its images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from callfleet.actual import Container, Engine, Image, Unknown
from facts.frame import Answer, Part

T = TypeVar("T")


def read_engine(part: Part) -> Engine:
    """Newer clients end well although the daemon refused or did not answer: only a version proves that it did."""
    said = json.loads(part.text)
    if not said["version"]:
        raise ValueError(part.reason or "; ".join(said["errors"] or ()) or "the daemon does not answer")
    plugins = {plugin["Name"]: plugin.get("Version", "") for plugin in said["plugins"] or ()}
    compose = plugins.get("compose")
    return Engine(
        version=str(said["version"]),
        compose=None if compose is None else str(compose).removeprefix("v"),
        live_restore=bool(said["live_restore"]),
        storage_driver=str(said["storage_driver"]),
        cgroup_driver=str(said["cgroup_driver"]),
        log_driver=str(said["log_driver"]),
        root=str(said["root"]),
    )


def read_engine_part(
    engine: Engine | Unknown | None, answer: Answer, name: str, reader: Callable[[dict[str, Any]], T]
) -> tuple[T, ...] | Unknown:
    """Without an engine there is nothing; with one that does not answer there may be anything."""
    if engine is None:
        return ()
    if isinstance(engine, Unknown):
        return engine
    return answer.read(name, lambda part: tuple(reader(json.loads(line)) for line in part.lines))


def read_container(said: dict[str, Any]) -> Container:
    return Container(
        id=str(said["id"]),
        name=str(said["name"]).removeprefix("/"),
        labels={str(key): str(value) for key, value in (said["labels"] or {}).items()},
        image_id=str(said["image_id"]),
        image=str(said["image"]),
        state=str(said["state"]),
        health=None if said["health"] in (None, "", "none") else str(said["health"]),
        exit_code=int(said["exit_code"]),
        restart_count=int(said["restart_count"]),
        started=str(said["started"]),
        pid=int(said["pid"]),
        restart_policy=str(said["restart_policy"] or "no"),
        network=str(said["network"]),
        stop_signal=str(said["stop_signal"] or "SIGTERM"),
        limits=(int(said["memory"] or 0), int(said["cpus"] or 0), int(said["processes"] or 0)),
    )


def read_image(said: dict[str, Any]) -> Image:
    def named(value: str) -> str | None:
        return None if value in ("", "<none>") else value

    return Image(said["id"], said["repository"], named(said["tag"]), named(said["digest"]))
