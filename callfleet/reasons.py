"""Why a container is made anew, in an operator's words, from its old and its new definition. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

# Follow from everything else, so they are no reason of their own.
_DERIVED = "labels"


def service_reasons(before: bytes | None, after: bytes, service: str) -> list[str]:
    """What differs for one service between two Compose files; empty when the old one cannot tell.

    Values of plain settings are shown as they stand in the files; secrets are not in them, only in env files.
    """
    old, new = _service(before or b"", service), _service(after, service)
    if old is None or new is None:
        return []
    return list(_differences(old, new))


def _service(compose: bytes, service: str) -> Mapping[str, Any] | None:
    try:
        found = yaml.safe_load(compose)["services"][service]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        if key == _DERIVED or old.get(key) == new.get(key):
            continue
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            for name in dict.fromkeys([*was, *now]):
                if was.get(name) != now.get(name):
                    yield f"{key} {name}: {_shown(was.get(name))} -> {_shown(now.get(name))}"
        else:
            yield f"{key}: {_shown(was)} -> {_shown(now)}"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
