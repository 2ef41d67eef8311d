"""nginx configurations: crossplane reads the files, this finds what holds for a request. Pure but for scratch files.

`include` is followed within the files that were read, so that a host's configuration means elsewhere what it means
there.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crossplane

MOST_FILES = 500


@dataclass(frozen=True)
class Node:
    """One directive. `block` is None for those that have none."""

    name: str
    args: tuple[str, ...]
    file: str
    line: int
    block: tuple[Node, ...] | None = None

    @property
    def place(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"

    @property
    def text(self) -> str:
        """The directive and its arguments."""
        return " ".join((self.name, *self.args))

    def own(self, name: str) -> list[Node]:
        """Directives of this name right inside of it."""
        return [node for node in self.block or () if node.name == name]

    def walk(self) -> Iterator[Node]:
        """All inside of it, at any depth."""
        for node in self.block or ():
            yield node
            yield from node.walk()


@dataclass(frozen=True)
class Tree:
    """A configuration as one tree, and what could not be read (place, why)."""

    root: Node
    odd: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Upstream:
    """An upstream of Unix sockets `<prefix>_<n>.sock`. `numbers` are the workers; `servers` all its server lines."""

    name: str
    prefix: str
    directory: str
    numbers: tuple[int, ...]
    node: Node
    servers: tuple[Node, ...]


@dataclass(frozen=True)
class Route:
    """What answers a path at a server: the blocks around it, the innermost last, and where it passes requests to."""

    server: Node
    chain: tuple[Node, ...]
    target: str

    @property
    def place(self) -> str:
        """Where the innermost block stands."""
        return self.chain[-1].place

    def holding(self, name: str) -> list[Node]:
        """The directives of this name that hold: those of the innermost block that has any."""
        for block in reversed(self.chain):
            if found := block.own(name):
                return found
        return []


@dataclass
class _Reading:
    files: Mapping[str, str]
    prefix: str
    odd: list[tuple[str, str]] = field(default_factory=list)
    depth: int = 0
    count: int = 0


def read(files: Mapping[str, str], main: str) -> Tree:
    """The configuration that begins in the file `main`. Never raises: what cannot be read is told in `odd`."""
    reading = _Reading(files, posixpath.dirname(main))
    if main not in files:
        return Tree(Node("", (), main, 0, ()), ((main, "was not read"),))
    return Tree(Node("", (), main, 0, tuple(_file(reading, main))), tuple(dict.fromkeys(reading.odd)))


def _file(reading: _Reading, name: str) -> Iterator[Node]:
    reading.count += 1
    if reading.depth > 10 or reading.count > MOST_FILES:
        reading.odd.append((name, "is included too deeply or too often"))
        return
    with tempfile.TemporaryDirectory(prefix="callfleet-") as folder:
        copy = Path(folder) / "nginx.conf"
        copy.write_text(reading.files[name].rstrip("\n") + "\n", "utf-8", errors="replace")
        try:
            payload = crossplane.parse(str(copy), single=True, check_ctx=False, check_args=False)
        except Exception as failure:
            reading.odd.append((name, f"is not understood: {type(failure).__name__}"))
            return
    for parsed in payload["config"]:
        for error in parsed["errors"]:
            why = str(error["error"]).replace(str(copy), name).split(" in ")[0] or "a syntax error"
            reading.odd.append((f"{name}:{error['line']}" if error["line"] else name, why))
        yield from _nodes(reading, name, parsed["parsed"])


def _nodes(reading: _Reading, file: str, statements: list[dict[str, Any]]) -> Iterator[Node]:
    for each in statements:
        name, args = str(each["directive"]), tuple(map(str, each["args"]))
        if name == "include" and args:
            yield from _included(reading, f"{file}:{each['line']}", args[0])
            continue
        block = tuple(_nodes(reading, file, each["block"])) if "block" in each else None
        yield Node(name, args, file, each["line"], block)


def _included(reading: _Reading, place: str, pattern: str) -> Iterator[Node]:
    whole = posixpath.normpath(pattern if pattern.startswith("/") else posixpath.join(reading.prefix, pattern))
    depth = whole.count("/")
    matching = [name for name in reading.files if name.count("/") == depth and fnmatch.fnmatchcase(name, whole)]
    if not matching and not re.search(r"[*?\[]", whole):
        reading.odd.append((place, f"includes {whole}, which was not read"))
    reading.depth += 1
    for name in sorted(matching):
        # Types of files say nothing about calls.
        if posixpath.basename(name) not in ("mime.types", "fastcgi_params", "proxy_params_types"):
            yield from _file(reading, name)
    reading.depth -= 1


# Finding


def http(tree: Tree) -> list[Node]:
    """The `http` blocks."""
    return tree.root.own("http")


def all_servers(tree: Tree) -> list[tuple[Node, Node]]:
    """Every server with the http block around it."""
    return [(block, server) for block in http(tree) for server in block.own("server")]


def names(server: Node) -> list[str]:
    """Its names in lower case, without patterns and the catch-all."""
    found = [name.lower() for node in server.own("server_name") for name in node.args]
    return [name for name in found if re.fullmatch(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)+", name)]


def ports(server: Node) -> dict[int, bool]:
    """The TCP ports that it listens on, and whether by TLS."""
    found: dict[int, bool] = {}
    for node in server.own("listen"):
        if not node.args or node.args[0].startswith("unix:"):
            continue
        port = re.search(r"(?:^|:)([0-9]{1,5})$", node.args[0])
        number = int(port[1]) if port else 80
        tls = "ssl" in node.args[1:] or any(each.args[:1] == ("on",) for each in server.own("ssl"))
        found[number] = found.get(number, False) or tls
    return found or {80: False}


_SOCKET = re.compile(r"unix:(?P<path>/.*/(?P<prefix>[A-Za-z][A-Za-z0-9._-]*)_(?P<number>[0-9]{1,4})\.sock):?")


def socket_upstreams(tree: Tree) -> list[Upstream]:
    """The upstreams whose servers are Unix sockets of numbered workers."""
    found = []
    for block in http(tree):
        for node in block.own("upstream"):
            lines = [each for each in node.own("server") if each.args]
            matched = [match for each in lines if (match := _SOCKET.fullmatch(each.args[0]))]
            if not matched:
                continue
            numbers = tuple(sorted(int(match["number"]) for match in matched))
            path = matched[0]["path"]
            found.append(
                Upstream(
                    node.args[0] if node.args else "", matched[0]["prefix"], posixpath.dirname(path), numbers, node,
                    tuple(lines),
                )
            )  # fmt: skip
    return found


def route(around: Node, server: Node, path: str) -> Route | None:
    """What nginx does with a request for `path` there: exact, longest prefix, pattern. None: nothing passes it on."""
    chain: tuple[Node, ...] = (around, server)
    block = server
    while (inner := _location(block, path)) is not None:
        chain, block = (*chain, inner), inner
    target = next((node.args[0] for node in reversed(block.own("proxy_pass")) if node.args), "")
    if not target:
        return None
    return Route(server, chain, re.sub(r"^https?://", "", target).split("/")[0])


def _location(block: Node, path: str) -> Node | None:
    best: Node | None = None
    length, final = -1, False
    patterns = []
    for node in block.own("location"):
        modifier, where = ("", node.args[0]) if len(node.args) == 1 else (*node.args, "", "")[:2]
        if modifier == "=" and where == path:
            return node
        if modifier in ("", "^~") and path.startswith(where) and len(where) > length:
            best, length, final = node, len(where), modifier == "^~"
        elif modifier in ("~", "~*"):
            patterns.append((node, where, re.IGNORECASE if modifier == "~*" else 0))
    if final:
        return best
    for node, where, flags in patterns:
        try:
            if re.search(where, path, flags):
                return node
        except re.error:
            continue
    return best


def size(text: str) -> int | None:
    """Bytes of a size (`10m`, `64k`, `0`)."""
    match = re.fullmatch(r"([0-9]{1,12})([kKmMgG]?)", text)
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}[match[2].lower()] if match else None


def seconds(text: str) -> float | None:
    """A time of nginx (`60`, `75s`, `1h30m`)."""
    factors = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "M": 2592000, "y": 31536000, "": 1}
    if not re.fullmatch(r"(?:[0-9]{1,9}(?:ms|[smhdwMy])? ?)+", text):
        return None
    return sum(int(n) * factors[unit] for n, unit in re.findall(r"([0-9]+)(ms|[smhdwMy])?", text))
