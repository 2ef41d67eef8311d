"""Edits of a site file: text in, text out, touching no line but those that an edit is about.

Places are found by the YAML parser's marks and changed as text. Loading and dumping the whole file would lay out long
lines, quotes and comments anew, and an operator could no longer review what was done.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from callfleet.document import shown
from callfleet.errors import CallfleetError
from callfleet.site.load import load_site
from callfleet.site.model import Site

Value = str | int | Mapping[str, "Value"] | Sequence[str]
Path_ = tuple[str, ...]
STEP = 2
_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~:@+-]*")
_NOT_TEXT = re.compile(r"(?i)[-+.0-9][0-9_.eExXoO:+-]*|true|false|yes|no|on|off|null|~")


class EditError(CallfleetError):
    """An edit that the file's layout does not allow, or a file that moved meanwhile."""


def set_value(text: str, path: Path_, value: Value) -> str:
    """The text with `value` at `path`: replaced where the key is, else added as the last key of its mapping.

    Mappings on the way that are missing are added too. EditError where something else than a mapping is in the way.
    """
    node, depth = _deepest(text, path)
    if depth == len(path):
        return text[: node.start_mark.index] + _flow(value) + text[_end(node) :]
    if not isinstance(node, MappingNode):
        if not _is_empty(node):
            raise EditError(f"{shown(path[:depth])}: expected a mapping (key: value lines); edit the file by hand")
        return _fill(text, path, depth, node, value)
    for key in reversed(path[depth + 1 :]):
        value = {key: value}
    return _append(text, node, path[depth], value)


def remove_key(text: str, path: Path_) -> str:
    """The text without the key at `path` and all below it; unchanged where there is none.

    Comments between the lines that go go with them, all others stay.
    """
    parent, depth = _deepest(text, path[:-1])
    if depth < len(path) - 1 or not isinstance(parent, MappingNode):
        return text
    pairs = parent.value
    at = next((i for i, (key, _) in enumerate(pairs) if key.value == path[-1]), None)
    if at is None:
        return text
    key, value = pairs[at]
    if parent.flow_style:
        return _remove_flow(text, parent, at)
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    if text[start : key.start_mark.index].strip():
        raise EditError(f"{shown(path)}: stands on one line with other keys; edit the file by hand")
    end = _end_of_line(text, max(_end(value), key.end_mark.index))
    # Comments that stand deeper than the key are about what is inside of it.
    indent = key.start_mark.column
    while match := re.compile(rf"[ ]{{{indent + 1},}}#[^\n]*\n").match(text, end):
        end = match.end()
    if len(pairs) > 1:
        return text[:start] + text[end:]
    # The last key: an empty mapping stays, so that its comment and its place do.
    above = path[:-1]
    if not above:
        return text[:start] + text[end:]
    without = text[:start] + text[end:]
    colon = _key_end(text, above)
    return without[:colon] + " {}" + without[colon:]


# Hosts and fleets


def add_host(
    text: str,
    fleet: str,
    name: str,
    entry: Mapping[str, Value],
    *,
    internal: str = "",
    certificate: tuple[str, str] = ("", ""),
    static_name: tuple[str, str] = ("", ""),
) -> str:
    """A fleet host with what it needs besides: references of its internal and its public certificate, a static name."""
    text = set_value(text, ("fleets", fleet, "hosts", name), entry)
    if internal:
        text = set_value(text, ("tls", "internal", "hosts", name), internal)
    if certificate[0]:
        text = set_value(text, ("tls", "certificates", certificate[0]), certificate[1])
    if static_name[0]:
        text = set_value(text, ("names", static_name[0]), static_name[1])
    return text


def remove_host(text: str, site: Site, name: str) -> str:
    """The text without a fleet host, and without what only it needed."""
    host = site.host(name)
    text = remove_key(text, tuple(map(str, host.place)))
    text = remove_key(text, ("tls", "internal", "hosts", name))
    public = host.public_name
    others = {each for other in site.hosts if other.name != name for each in site.public_names(other)}
    if public and public not in others:
        for section in (("tls", "certificates"), ("names",)):
            text = remove_key(text, (*section, public))
    return text


def set_workers(text: str, site: Site, name: str, workers: int) -> str:
    """The number of call slots of a fleet host."""
    return set_value(text, (*map(str, site.host(name).place), "workers"), workers)


def set_address(text: str, site: Site, name: str, address: str, address6: str = "") -> str:
    """A host's address, its IPv6 address if given, and where its public name leads if the file says it."""
    host = site.host(name)
    text = set_value(text, (*map(str, host.place), "address"), address)
    if address6:
        text = set_value(text, (*map(str, host.place), "address6"), address6)
    if host.public_name in site.names:
        text = set_value(text, ("names", str(host.public_name)), address)
    return text


def add_fleet(text: str, name: str, public_name: str = "") -> str:
    """A fleet without hosts."""
    entry: dict[str, Value] = {"public_name": public_name} if public_name else {}
    return set_value(text, ("fleets", name), entry | {"hosts": {}})


def remove_fleet(text: str, name: str) -> str:
    """The text without a fleet."""
    return remove_key(text, ("fleets", name))


# The file


def replace_file(path: Path, before: str, after: str) -> Site:
    """Put `after` in the place of the site file in one step and return the site that it declares.

    SiteError when that site is not valid, EditError when the file is no longer `before`; then nothing was written.
    Mode and owner stay.
    """
    site = load_site(path, after)
    write_text(path, before, after)
    return site


def write_text(path: Path, before: str, after: str, *, mode: int = 0o644) -> None:
    """Replace a text file in one step, keeping mode and owner; a new one (`before` empty) gets `mode`."""
    target = path.resolve()
    if (target.read_text("utf-8") if target.exists() else "") != before:
        raise EditError(f"{path} was changed by somebody else meanwhile; nothing was written. Run again")
    if before == after:
        return
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            if target.exists():
                found = target.stat()
                mode = stat.S_IMODE(found.st_mode)
                if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(out.fileno(), found.st_uid, found.st_gid)
            os.fchmod(out.fileno(), mode)
            out.write(after)
            out.flush()
            os.fsync(out.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# Finding


def _deepest(text: str, path: Path_) -> tuple[Node, int]:
    """The node at the longest part of `path` that the text has, and how long that part is."""
    node: Node | None = YAML(typ="safe", pure=True).compose(text)
    if node is None:
        raise EditError("expected a site file, got an empty one")
    depth = 0
    while depth < len(path) and isinstance(node, MappingNode):
        below = next((value for key, value in node.value if str(key.value) == path[depth]), None)
        if below is None:
            break
        node, depth = below, depth + 1
    return node, depth


def _key_end(text: str, path: Path_) -> int:
    """Where the colon of a key ends."""
    parent, _ = _deepest(text, path[:-1])
    if not isinstance(parent, MappingNode):
        raise EditError(f"{shown(path)}: expected a mapping; edit the file by hand")
    key = next(key for key, _ in parent.value if str(key.value) == path[-1])
    return text.index(":", key.end_mark.index) + 1


def _end(node: Node) -> int:
    """Where a node's own text ends. A block mapping's mark lies after the comments that follow it."""
    if not isinstance(node, CollectionNode) or node.flow_style:
        return int(node.end_mark.index)
    if not node.value:
        return int(node.start_mark.index)
    last = node.value[-1]
    if isinstance(last, tuple):
        return max(_end(last[1]), int(last[0].end_mark.index) + 1)
    return _end(last)


def _is_empty(node: Node) -> bool:
    """A key without a value, or with none."""
    return isinstance(node, ScalarNode) and str(node.tag).endswith(":null")


def _end_of_line(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


# Writing


def _append(text: str, parent: MappingNode, key: str, value: Value) -> str:
    if parent.flow_style:
        return _append_flow(text, parent, key, value)
    last_key, last_value = parent.value[-1]
    end = _end_of_line(text, max(_end(last_value), last_key.end_mark.index))
    indent = parent.value[0][0].start_mark.column
    # Comments that stand deeper belong to the entry before.
    while match := re.compile(rf"[ ]{{{indent + 1},}}#[^\n]*\n").match(text, end):
        end = match.end()
    # Entries follow the form of the one before: all on one line, or a line a key.
    block = isinstance(value, Mapping) and not (isinstance(last_value, MappingNode) and last_value.flow_style)
    newline = "" if end == 0 or text[end - 1] == "\n" else "\n"
    return text[:end] + newline + _lines(key, value, indent, block=block) + text[end:]


def _fill(text: str, path: Path_, depth: int, node: Node, value: Value) -> str:
    """Keys below one that has no value yet: `hosts:` with nothing behind it."""
    if depth == 0:
        raise EditError("expected a site file, got an empty one")
    parent, _ = _deepest(text, path[: depth - 1])
    if isinstance(parent, MappingNode) and parent.flow_style:
        raise EditError(f"{shown(path[:depth])}: has no value; write {{}} there, then run again")
    key = next(key for key, _ in parent.value if str(key.value) == path[depth - 1])
    for name in reversed(path[depth + 1 :]):
        value = {name: value}
    end = _end_of_line(text, key.end_mark.index)
    return text[:end] + _lines(path[depth], value, key.start_mark.column + STEP, block=True) + text[end:]


def _lines(key: str, value: Value, indent: int, *, block: bool) -> str:
    lead = " " * indent + _scalar(key) + ":"
    if isinstance(value, Mapping) and value and block:
        return f"{lead}\n" + "".join(_lines(k, v, indent + STEP, block=True) for k, v in value.items())
    return f"{lead} {_flow(value)}\n"


def _append_flow(text: str, parent: MappingNode, key: str, value: Value) -> str:
    if not parent.value:
        return text[: parent.start_mark.index] + _flow({key: value}) + text[parent.end_mark.index :]
    first, (_, last) = parent.value[0][0], parent.value[-1]
    spread = text.rfind("\n", parent.start_mark.index, first.start_mark.index) >= 0
    lead = ",\n" + " " * first.start_mark.column if spread else ", "
    end = _end(last)
    return text[:end] + lead + f"{_scalar(key)}: {_flow(value)}" + text[end:]


def _remove_flow(text: str, parent: MappingNode, at: int) -> str:
    pairs = parent.value
    if len(pairs) == 1:
        return text[: parent.start_mark.index] + "{}" + text[parent.end_mark.index :]
    if at == 0:
        return text[: pairs[0][0].start_mark.index] + text[pairs[1][0].start_mark.index :]
    return text[: _end(pairs[at - 1][1])] + text[_end(pairs[at][1]) :]


def _flow(value: Value) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, str):
        return _scalar(value)
    return "[" + ", ".join(_scalar(each) for each in value) + "]"


def _scalar(value: str) -> str:
    """Text as YAML reads it back as the same text: plain where that is safe, else in double quotes."""
    quads = re.fullmatch(r"\d+\.\d+\.\d+\.\d+", value)
    if (
        _PLAIN.fullmatch(value)
        and not value.endswith(":")
        and value.count(":") < 2
        and (quads or not _NOT_TEXT.fullmatch(value))
    ):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
