"""Errors an operator can act on: what is wrong, where, what was expected, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class CallfleetError(Exception):
    """An error whose text is meant for the operator. Callers print it and exit 1; it never needs a traceback."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a file.

    `path` is the place inside the file (`fleets.eu1.hosts.eu1-a.workers`), empty for the file as a whole. `got` is the
    value as it may be shown: it is empty when there is none, and never holds a secret. `line` counts from 1.
    """

    file: Path
    path: str
    expected: str
    got: str = ""
    line: int | None = None
    hint: str = ""

    @property
    def place(self) -> str:
        """`file:line: path`, with the file relative to the working directory where it lies below it."""
        where = shown_path(self.file) + (f":{self.line}" if self.line else "")
        return f"{where}: {self.path}" if self.path else where

    def __str__(self) -> str:
        what = f"got {self.got}; expected {self.expected}" if self.got else f"expected {self.expected}"
        return f"{self.place}: {what}" + (f"\n    {self.hint}" if self.hint else "")


class SiteError(CallfleetError):
    """Everything that is wrong with a site's files, all at once. Raised before anything connects."""

    def __init__(self, errors: Sequence[Problem], headline: str = "") -> None:
        self.errors = list(errors)
        self.headline = headline
        super().__init__(headline)

    def __str__(self) -> str:
        count = "1 mistake" if len(self.errors) == 1 else f"{len(self.errors)} mistakes"
        headline = self.headline or f"{count} in the site's files; nothing was connected to or changed"
        return "\n".join([f"{headline}:", *(f"  {problem}" for problem in self.errors)])


def shown_path(path: Path) -> str:
    """A path as people type it: relative to the working directory if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
