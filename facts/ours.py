"""Reads what callfleet itself keeps: slots, the mark under /etc/callfleet, the API's list of fleets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from callfleet.actual import Slot, SlotWord, Unknown
from facts.frame import Part, attempt, records

T = TypeVar("T")


def read_slots(part: Part) -> tuple[Slot, ...]:
    return tuple(sorted((_slot(one) for one in json.loads(part.text)["slots"]), key=lambda slot: slot.number))


def _slot(said: dict[str, Any]) -> Slot:
    """A word that this version does not know is unknown, so the slot counts as busy."""
    state = said.get("state")
    word = SlotWord(state) if state in tuple(SlotWord) else SlotWord.UNKNOWN
    strange = None if state == word else f"the slot program says {state!r}"
    calls, published = said.get("calls"), said.get("published")
    return Slot(
        number=int(said["slot"]),
        word=word,
        calls=calls if isinstance(calls, int) and not isinstance(calls, bool) and calls >= 0 else None,
        container=_text_or_none(said.get("container")),
        config=_text_or_none(said.get("config")),
        published=published if isinstance(published, bool) else None,
        why=_text_or_none(said.get("problem")) or strange,
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def read_mark(part: Part) -> dict[str, tuple[str, str]]:
    return {path: (there, text) for there, path, text in records(part.data, 3)}


def read_mark_file(
    mark: Mapping[str, tuple[str, str]] | Unknown, path: str, convert: Callable[[str], T]
) -> T | Unknown | None:
    if isinstance(mark, Unknown):
        return mark
    there, text = mark.get(path, ("", ""))
    if there == "1":
        return None
    if there != "0":
        return Unknown(f"{path} could not be read")
    return attempt(path, lambda: convert(text))


def read_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value


def read_drained(mark: Mapping[str, tuple[str, str]] | Unknown, directory: str) -> dict[str, dict[str, Any]] | Unknown:
    """A file's being there is the declaration: one that cannot be read or understood drains its slot all the same."""
    if isinstance(mark, Unknown):
        return mark
    if mark.get(directory, ("",))[0] not in ("0", "1"):
        return Unknown(f"{directory} could not be read")
    drained: dict[str, dict[str, Any]] = {}
    for path, (_, text) in mark.items():
        folder, _, slot = path.rpartition("/")
        if folder == directory:
            said = attempt(path, lambda text=text: read_object(text))  # type: ignore[misc]
            drained[slot] = {} if isinstance(said, Unknown) else said
    return drained


def read_core_fleet(part: Part) -> tuple[str, ...]:
    """The list of base URLs, alone or under ``core_fleet``; all else that the API answers is dropped here."""
    said = json.loads(part.text)
    urls = said["core_fleet"] if isinstance(said, dict) else said
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ValueError("expected a list of addresses")
    return tuple(urls)
