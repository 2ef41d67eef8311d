"""The core worker's environment, read once; brand-dependent names are built from BRAND_ENV_PREFIX and SOCKET."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CALL_SECONDS = 600.0  # the platform's max_call_duration_seconds
# The only place where a worker looks for its siblings; there is no setting for it.
SIBLING_DIRECTORY = Path("/tmp")  # noqa: S108 - the platform's path, not a temporary file


@dataclass(frozen=True)
class WorkerSettings:
    """One worker's settings; `worker_id` and `socket_prefix` come from the socket's name."""

    socket: Path
    socket_prefix: str
    worker_id: str
    workers: int
    max_calls: int
    config_url: str
    result_url: str
    outbox: Path | None
    recordings: Path | None
    ws_refusal: int
    post_refusal: int
    refuses_when_busy: bool
    broken: bool
    event_log: Path | None

    @property
    def slow_file(self) -> Path:
        """Beside the socket, for tests: while it is there, health answers come as many seconds late as it says."""
        return self.socket.with_suffix(".slow")

    def sibling(self, worker_id: str) -> Path:
        """Where the worker with this id is looked for."""
        return SIBLING_DIRECTORY / f"{self.socket_prefix}_{worker_id}.sock"


def read_settings(env: dict[str, str]) -> WorkerSettings:
    """Settings from the environment; exits with a message that names the variable."""
    prefix = env.get("BRAND_ENV_PREFIX", "CXBCORE")
    socket = Path(env.get("SOCKET") or sys.exit("SOCKET is not set: expected /tmp/<prefix>_<n>.sock"))
    named = re.fullmatch(r"(.+)_(\d+)\.sock", socket.name)
    if named is None:
        sys.exit(f"SOCKET: {socket}: expected a name like <prefix>_<n>.sock, the worker id is derived from it")
    return WorkerSettings(
        socket=socket,
        socket_prefix=named.group(1),
        worker_id=named.group(2),
        workers=int(env.get(f"{prefix}_WORKERS") or sys.exit(f"{prefix}_WORKERS is not set: the number of workers")),
        max_calls=int(env.get("MAX_CONCURRENT_CALLS", "1")),
        config_url=env.get("CONFIG_URL", "").rstrip("/"),
        result_url=env.get("RESULT_URL", ""),
        outbox=Path(env["OUTBOX_DIR"]) if env.get("OUTBOX_DIR") else None,
        recordings=Path(env["RECORDINGS_DIR"]) if env.get("RECORDINGS_DIR") else None,
        ws_refusal=int(env.get("STANDIN_WS_REFUSAL", "403")),
        post_refusal=int(env.get("STANDIN_POST_REFUSAL", "429")),
        refuses_when_busy=env.get("STANDIN_REFUSE", "1") != "0",
        broken=env.get("STANDIN_BROKEN") == "1",
        event_log=Path(env["STANDIN_EVENT_LOG"]) if env.get("STANDIN_EVENT_LOG") else None,
    )
