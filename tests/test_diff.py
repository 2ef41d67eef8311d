"""A diff shows what would change, and nothing of a secret."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callfleet.diff import file_diff
from callfleet.expected import File

WORD = "correct-horse-battery"


def test_shows_the_lines_that_change_with_their_surroundings() -> None:
    """A unified diff, two lines around."""
    before = b"one\ntwo\nthree\nfour\nfive\nsix\n"
    after = b"one\ntwo\nthree\nfour\n5\nsix\n"
    assert file_diff(File("/f", after), before) == [
        "--- /f",
        "+++ /f",
        "@@ -3,4 +3,4 @@",
        " three",
        " four",
        "-five",
        "+5",
        " six",
    ]


def test_a_new_file_comes_from_nothing() -> None:
    """Every line is added."""
    assert file_diff(File("/f", b"a\nb\n"), None) == ["--- /dev/null", "+++ /f", "@@ -0,0 +1,2 @@", "+a", "+b"]


def test_equal_content_has_no_diff() -> None:
    """A mode alone changes no line."""
    assert file_diff(File("/f", b"a\n"), b"a\n") == []


def test_binary_content_is_told_by_its_size() -> None:
    """Whichever side it is on, and no byte of it reaches the terminal."""
    assert file_diff(File("/f", b"\xff\x00"), b"text\n") == ["--- /f", "+++ /f (binary, 5 -> 2 bytes)"]
    assert file_diff(File("/f", b"text\n"), b"\xff") == ["--- /f", "+++ /f (binary, 1 -> 5 bytes)"]


@given(before=st.none() | st.binary(max_size=50), around=st.binary(max_size=50))
def test_a_secret_is_reduced_to_the_fact_that_it_differs(before: bytes | None, around: bytes) -> None:
    """Neither its old nor its new content shows, nor its size."""
    old = None if before is None else before + WORD.encode()
    lines = file_diff(File("/f", around + WORD.encode() + around, secret=True), old)
    state = "new" if before is None else "changed"
    assert lines == ["--- /f", f"+++ /f (secret, {state}; content not shown)"]
