"""Renders what lies in templates/. A name that a template uses and nobody gave is an error, never an empty string."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "templates"


def to_yaml(value: Any) -> str:
    """YAML for a Compose file: `$` is doubled, because Compose replaces variables in every string."""
    return yaml.safe_dump(_escape(value), default_flow_style=False, sort_keys=False, width=1000).rstrip("\n")


def _escape(value: Any) -> Any:
    match value:
        case str():
            return value.replace("$", "$$")
        case dict():
            return {key: _escape(item) for key, item in value.items()}
        case list() | tuple():
            return [_escape(item) for item in value]
    return value


_environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=False,
    autoescape=False,  # noqa: S701 - configuration files, not HTML
)
_environment.filters["to_yaml"] = to_yaml

# Pages show what hosts say of themselves: everything is escaped.
_pages = Environment(
    loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True
)


def render(name: str, **values: Any) -> bytes:
    """The rendered template `name`, a path below templates/."""
    return _environment.get_template(name).render(**values).encode()


def render_page(name: str, **values: Any) -> str:
    """The rendered page `name`; every value in it is escaped."""
    return _pages.get_template(name).render(**values)


def verbatim(name: str) -> bytes:
    """A file below templates/ that needs no rendering."""
    return (TEMPLATES / name).read_bytes()
