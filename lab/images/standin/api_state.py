"""The API's durable state as JSON files in STATE_DIR: the stand-in for its MongoDB collections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .wire import write_json

CANARY_BOT = "canary"


class ApiState:
    """Settings in one file, each call result in its own."""

    def __init__(self, directory: Path) -> None:
        self.settings_file = directory / "settings.json"
        self.results_dir = directory / "results"
        self.results_dir.mkdir(parents=True, exist_ok=True)
        files = sorted(self.results_dir.glob("*.json"))
        self.results: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in files}

    @property
    def core_fleet(self) -> list[str]:
        """The registered hosts' base URLs."""
        if not self.settings_file.exists():
            return []
        settings: dict[str, list[str]] = json.loads(self.settings_file.read_text())
        return settings["core_fleet"]

    @core_fleet.setter
    def core_fleet(self, urls: list[str]) -> None:
        write_json(self.settings_file, {"core_fleet": urls})

    def upsert(self, result: dict[str, Any]) -> dict[str, Any]:
        """Store a result under its session id; a repeated one replaces it and is counted as a replay."""
        session_id = result["session_id"]
        before = self.results.get(session_id)
        replays = before["replays"] + 1 if before else 0
        stored = {**result, "canary": result.get("bot_id") == CANARY_BOT, "replays": replays}
        write_json(self.results_dir / f"{session_id}.json", stored)
        self.results[session_id] = stored
        return stored

    def report(self) -> dict[str, Any]:
        """What a customer's report would count: every result but the canaries'."""
        real = [result for result in self.results.values() if not result["canary"]]
        outcomes: dict[str, int] = {}
        for result in real:
            outcomes[result.get("outcome", "unknown")] = outcomes.get(result.get("outcome", "unknown"), 0) + 1
        return {
            "calls": len(real),
            "replays": sum(result["replays"] for result in real),
            "seconds": round(sum(result.get("duration_seconds", 0) for result in real), 3),
            "outcomes": outcomes,
        }
