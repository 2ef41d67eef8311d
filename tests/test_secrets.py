"""Secrets: found where their reference says, and shown nowhere."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from callfleet.secrets import Secret, SecretError, SecretRef, parse, resolve

WORD = "correct-horse-battery"


def _file(folder: Path, content: bytes, mode: int = 0o600) -> SecretRef:
    path = folder / "word"
    path.write_bytes(content)
    path.chmod(mode)
    return SecretRef("file", "word")


def test_each_kind_of_reference_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """env, file (relative to the site's folder) and command give the value without the line end after it."""
    monkeypatch.setenv("A_WORD", WORD)
    for ref in (SecretRef("env", "A_WORD"), _file(tmp_path, f"{WORD}\n".encode()), parse(f"command:echo {WORD}")):
        assert resolve(ref, tmp_path).reveal() == WORD


def test_a_value_shows_in_no_rendering() -> None:
    """str, repr, format, containers, copies and JSON hold no trace of it."""
    secret = Secret(WORD)
    assert f"{secret} {secret!r} {secret!s} {secret:>40} {[secret]} {'%s'}" % secret
    assert WORD not in f"{secret} {secret!r} {secret:>40} {[secret]}" + "%s" % secret  # noqa: UP031
    assert not hasattr(secret, "__dict__")
    for leak in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError) as caught:
            leak(secret)
        assert WORD not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [WORD, "", "env:", "env:not a name", "file:", "vault:x", f"file:{WORD}\nmore", "command:echo 'open", 5, None],
)
def test_what_is_no_reference_is_refused_without_echo(text: object) -> None:
    """A secret written in place of a reference does not come back in the error."""
    with pytest.raises(ValueError, match="reference to a secret") as caught:
        parse(text)
    assert WORD not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The message says the command that mends it."""
    with pytest.raises(SecretError, match="chmod 600"):
        resolve(_file(tmp_path, WORD.encode(), mode), tmp_path)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("env:NOT_SET_ANYWHERE", "not set"),
        ("file:nowhere", "no file"),
        ("file:.", "cannot be read|not a regular file"),
        ("command:/nowhere/program", "cannot be run"),
        ("command:sh -c 'echo correct-horse-battery; echo correct-horse-battery >&2; exit 3'", "exit code 3"),
        ("command:true", "empty"),
        (r"command:printf '\377correct'", "UTF-8"),
        (r"command:printf 'a\000b'", "NUL"),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path: Path, reference: str, says: str) -> None:
    """Each failure has its reason; nothing that a command printed is repeated."""
    with pytest.raises(SecretError, match=says) as caught:
        resolve(parse(reference), tmp_path)
    assert WORD not in str(caught.value).replace(reference, "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_commands_see_no_shell(tmp_path: Path) -> None:
    """Shell syntax in a command is plain text to it."""
    assert resolve(parse("command:echo $(id); true"), tmp_path).reveal() == "$(id); true"
