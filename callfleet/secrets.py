"""Secrets are references in files, and values only in the moment of use.

A reference is `env:NAME`, `file:PATH` or `command:COMMAND`. Nothing here ever puts a value into an error, a log or a
`repr`, and what a failing command printed is dropped, since it may be the secret.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from callfleet.errors import CallfleetError

EXPECTED = "a reference to a secret: env:NAME, file:PATH or command:COMMAND"
COMMAND_SECONDS = 60
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Scheme = Literal["env", "file", "command"]


class SecretError(CallfleetError):
    """A reference that could not be resolved. Its text holds the reference and the reason, never a value."""


@dataclass(frozen=True)
class SecretRef:
    """Where a secret is to be found. Safe to print."""

    scheme: Scheme
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"


class Secret:
    """A secret's value. Printing, formatting or comparing it tells nothing; `reveal()` is the only way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not to be serialised")


def parse(text: object) -> SecretRef:
    """Read a reference. ValueError, without the text in it, for anything else: it may be a secret written in place."""
    if not isinstance(text, str):
        raise ValueError(EXPECTED)
    scheme, _, target = text.partition(":")
    target = target.strip()
    if scheme not in ("env", "file", "command") or not target or not target.isprintable():
        raise ValueError(EXPECTED)
    if scheme == "env" and not _ENV_NAME.fullmatch(target):
        raise ValueError(EXPECTED)
    if scheme == "command":
        try:
            shlex.split(target)
        except ValueError:
            raise ValueError(EXPECTED) from None
    return SecretRef(cast(Scheme, scheme), target)


def resolve(ref: SecretRef, base_dir: Path) -> Secret:
    """The secret behind a reference, without the line ends after it.

    Relative files and commands start at `base_dir`, the folder of the site file. Raises SecretError when the secret
    is missing, empty, not text, or in a file that others than its owner may read.
    """
    raw = {"env": _from_env, "file": _from_file, "command": _from_command}[ref.scheme](ref, base_dir)
    try:
        value = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretError(f"{ref}: the secret is not UTF-8 text") from None
    if not value:
        raise SecretError(f"{ref}: the secret is empty")
    if "\0" in value:
        raise SecretError(f"{ref}: the secret holds a NUL character")
    return Secret(value)


def file_path(ref: SecretRef, base_dir: Path) -> Path:
    """The file that a `file:` reference names."""
    return base_dir / Path(ref.target).expanduser()


def write_private(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Write a file that only its owner may read, never visible half written or with another mode.

    With `keep`, what lay there stays beside it as `NAME.old`.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if keep and path.exists():
        write_private(path.with_name(f"{path.name}.old"), path.read_bytes())
    candidate = path.with_name(f".{path.name}.new")
    candidate.unlink(missing_ok=True)
    with os.fdopen(os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    candidate.replace(path)


def store(ref: SecretRef, base_dir: Path, content: bytes) -> Path:
    """Put new content where a `file:` reference points, and keep the old one beside it; the file's path.

    SecretError, with nothing written, for another reference or where no file can be written.
    """
    if ref.scheme != "file":
        raise SecretError(f"{ref}: callfleet writes only what a file: reference names. Put it there by your own means.")
    path = file_path(ref, base_dir)
    try:
        path = path.resolve()
        write_private(path, content, keep=True)
    except (OSError, RuntimeError) as error:
        raise SecretError(f"{ref}: {path} cannot be written: {error}") from None
    return path


def _from_env(ref: SecretRef, _base_dir: Path) -> bytes:
    if ref.target not in os.environ:
        raise SecretError(f"{ref}: this environment variable is not set. Set it before running callfleet.")
    return os.environ[ref.target].encode("utf-8", "surrogateescape")


def _from_file(ref: SecretRef, base_dir: Path) -> bytes:
    try:
        path = file_path(ref, base_dir)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretError(f"{ref}: {path} is not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise SecretError(f"{ref}: others may read {path} (mode {mode:04o}). Run: chmod 600 {path}")
            return file.read()
    except FileNotFoundError:
        raise SecretError(f"{ref}: there is no file {path}. Create it with mode 0600.") from None
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SecretError(f"{ref}: cannot be read: {reason}") from None


def _from_command(ref: SecretRef, base_dir: Path) -> bytes:
    try:
        done = subprocess.run(
            shlex.split(ref.target),
            cwd=base_dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SecretError(f"{ref}: the command did not end within {COMMAND_SECONDS} seconds") from None
    except OSError as error:
        raise SecretError(f"{ref}: the command cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise SecretError(f"{ref}: the command failed with exit code {done.returncode}. Run it by hand to see why.")
    return done.stdout
