"""The site file as text, and a release file with nothing in it yet. Pure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML

from callfleet.adopt.inventory.parts import Inventory

_SPACED = ("ssh", "secrets", "app", "core", "calls", "ingress", "tls", "fleets", "hosts", "ports", "names")


def text(made: Inventory, left: Iterable[str] = ()) -> str:
    """The file: its content, what is to be done as comments beside it, and what is not carried over (`left`) below."""
    parts = made.parts
    lines = [
        f"# Written by `callfleet import {parts['site']}` from what runs; inventories/prod.yml explains every key.",
        "# Lines that begin with `# TO DO` are what it could not know.",
        "",
    ]
    for key, value in parts.items():
        if key in _SPACED:
            lines.append("")
        lines += [f"# TO DO {place}: {what}" for place, what in made.todo if _below(place, key)]
        if key == "names":
            lines.append(
                "# No DNS server asked by the importing machine has these. Remove them once there are records."
            )
        lines += _dump({key: value}).rstrip("\n").split("\n")
    rest = [(place, what) for place, what in made.todo if not any(_below(place, key) for key in parts)]
    lines += ["", *(f"# TO DO {place}: {what}" for place, what in rest)] if rest else []
    kept = list(left)
    if kept:
        lines += ["", "# Not carried over, as it was found:", *(f"#   {line}" for line in kept)]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines) + "\n"


def _below(place: str, key: str) -> bool:
    return place == key or place.startswith((f"{key}.", f"{key}[", f"{key}:"))


def _dump(value: Mapping[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(dict(value), stream)
    return stream.getvalue()


def release_text(images: Iterable[str]) -> str:
    """A release file with nothing pinned yet."""
    return (
        "# Which image runs under each name. Nothing is pinned yet: validation names what is missing.\n"
        f"# Wanted: {', '.join(images)}\n"
        'callfleet_release: 1\nrelease: "none"\nimages: {}\n'
    )
