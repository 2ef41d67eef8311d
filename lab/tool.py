"""Run a program of the controller; a failure becomes a LabError with what the program said."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from lab.errors import LabError

SAID = 2000  # characters of a failed program's output that are shown: its end is where the reason is


def tool(*command: str, stdin: str | None = None, env: dict[str, str] | None = None, ok: Sequence[int] = (0,)) -> str:
    """Standard output of the command. An exit code that is not in `ok` raises LabError."""
    done = subprocess.run(list(command), input=stdin, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        said = (done.stderr or done.stdout).strip()[-SAID:]
        raise LabError(f"`{' '.join(command[:6])}` failed with exit code {done.returncode}: {said}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether the command exits with 0; its output is dropped."""
    return subprocess.run(list(command), capture_output=True, check=False).returncode == 0
