"""Unified diffs of files, with secrets reduced to the fact that they differ. Pure."""

from __future__ import annotations

import difflib

from callfleet.expected import File


def file_diff(item: File, before: bytes | None) -> list[str]:
    """Lines of a unified diff from `before` (None: no such file) to the expected content."""
    if item.secret:
        state = "new" if before is None else "changed"
        return [f"--- {item.path}", f"+++ {item.path} (secret, {state}; content not shown)"]
    old, new = _text(before or b""), _text(item.content)
    if old is None or new is None:
        return [f"--- {item.path}", f"+++ {item.path} (binary, {len(before or b'')} -> {len(item.content)} bytes)"]
    source = "/dev/null" if before is None else item.path
    return [line.rstrip("\n") for line in difflib.unified_diff(old, new, source, item.path, n=2)]


def _text(data: bytes) -> list[str] | None:
    try:
        return data.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
