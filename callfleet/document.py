"""YAML files read with the place of every value, so that each mistake can be named by line and path."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from callfleet.errors import Problem

Key = str | int
Place = tuple[Key, ...]
Model = TypeVar("Model", bound="Strict")

LARGEST_BYTES = 1_000_000
MOST_VALUES = 100_000
_SECRET_KEY = re.compile(r"secret|passw|token|credential|private|pem$|api_?key", re.IGNORECASE)
_SECRET_PLACES: tuple[Place, ...] = (("secrets",), ("tls", "certificates"), ("tls", "internal", "ingress"),
                                     ("tls", "internal", "hosts"), ("tls", "internal", "authority", "key"),
                                     ("tls", "acme", "account_key"))  # fmt: skip


class Strict(BaseModel):
    """A part of a document: immutable, and an unknown key in it is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False, arbitrary_types_allowed=True)


@dataclass
class Document:
    """A file's content as plain values, the line of every path in it, and what was wrong with it."""

    file: Path
    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Place, expected: str, *, got: str = "", hint: str = "") -> Problem:
        """A mistake at `path`, with the line of the path or of the nearest part above it."""
        return Problem(self.file, shown(path), expected, got=got, line=self.line(path), hint=hint)

    def line(self, path: Place) -> int | None:
        """The line of a path, or of the nearest part above it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def expected(text: str, hint: str = "") -> PydanticCustomError:
    """What a validator raises: the words after `expected` in the message, and what to do about it."""
    return PydanticCustomError("callfleet", "{expected}", {"expected": text, "hint": hint})


def whole(low: int, high: int, what: str = "a whole number") -> BeforeValidator:
    """A whole number in a range; text, fractions and true/false are not whole numbers."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            hint = "without quotes" if isinstance(value, str) and value.isdigit() else ""
            raise expected(f"{what} from {low} to {high}", hint)
        return value

    return BeforeValidator(check)


def text(check: Callable[[str], object], what: str, hint: str = "") -> BeforeValidator:
    """Text for which `check` is true; the text stays as it is written."""

    def validate(value: object) -> str:
        if not isinstance(value, str):
            numeric = isinstance(value, (int, float))
            raise expected(what, "write it in quotes" if numeric else hint)
        if not check(value):
            raise expected(what, hint)
        return value

    return BeforeValidator(validate)


Text = Annotated[str, text(lambda value: bool(value.strip()) and value.isprintable(), "text on one line")]


def read(file: Path, text: str | None = None) -> Document:
    """Read a YAML file, or `text` in its place. What is wrong is in `problems`; nothing is raised for a bad file."""
    document = Document(file)
    try:
        raw = file.read_bytes() if text is None else text.encode()
    except OSError as error:
        document.problems.append(Problem(file, "", "a readable file", got=error.strerror or "an error"))
        return document
    if len(raw) > LARGEST_BYTES:
        document.problems.append(Problem(file, "", f"at most {LARGEST_BYTES} bytes", got=f"{len(raw)} bytes"))
        return document
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        document.problems.append(Problem(file, "", "UTF-8 text", got=f"byte 0x{raw[error.start]:02x}", line=line))
        return document
    node = _compose(content, document)
    if document.problems:
        return document
    if node is None:
        document.problems.append(Problem(file, "", "a mapping (key: value lines)", got="an empty file"))
        return document
    document.lines[()] = 1
    document.data = _Reader(document).value(node, ())
    return document


def _compose(content: str, document: Document) -> Node | None:
    """The file's nodes. The reader's own words are kept, the excerpts it quotes are not: they may hold a secret."""
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = (error.problem or error.context or "unreadable").split(" with value")[0]
        document.problems.append(Problem(document.file, "", "YAML", got=f"a syntax error ({what})",
                                         line=mark.line + 1 if mark else None))  # fmt: skip
    except RecursionError:
        document.problems.append(Problem(document.file, "", "fewer levels", got="a file nested too deeply"))
    except (YAMLError, ValueError) as error:
        what = str(error).splitlines()[0] if isinstance(error, YAMLError) else "unreadable"
        document.problems.append(Problem(document.file, "", "YAML", got=f"a syntax error ({what})"))
    else:
        return node
    return None


class _Reader:
    """Turns nodes into plain values and notes lines, duplicate keys, and what has no plain value."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.above: list[Node] = []
        self.count = 0

    def value(self, node: Node, path: Place) -> Any:
        self.count += 1
        if self.count > MOST_VALUES or any(node is parent for parent in self.above) or len(self.above) > 50:
            if self.count <= MOST_VALUES + 1:
                self.complain(path, "a file of moderate size, without aliases that contain themselves")
                self.count += MOST_VALUES
            return None
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.above.append(node)
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            if isinstance(node, SequenceNode):
                return self.sequence(node, path)
        finally:
            self.above.pop()
        return None

    def mapping(self, node: MappingNode, path: Place) -> dict[str, Any]:
        if not _plain(node, "map"):
            self.complain(path, "a plain mapping", got="a YAML tag")
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self.complain(path, "plain text as a key", got="a list or mapping as a key")
                continue
            key = str(key_node.value)
            here = (*path, key)
            line = key_node.start_mark.line + 1
            if key in values:
                first = self.document.lines[here]
                self.document.problems.append(
                    Problem(self.document.file, shown(here), "each key once", line=line,
                            got=f"the key a second time (first on line {first})", hint="Remove one of the two.")
                )  # fmt: skip
                continue
            self.document.lines[here] = line
            values[key] = self.value(value_node, here)
        return values

    def sequence(self, node: SequenceNode, path: Place) -> list[Any]:
        if not _plain(node, "seq"):
            self.complain(path, "a plain list", got="a YAML tag")
        values = []
        for index, item in enumerate(node.value):
            self.document.lines[(*path, index)] = item.start_mark.line + 1
            values.append(self.value(item, (*path, index)))
        return values

    def scalar(self, node: ScalarNode, path: Place) -> Any:
        kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
        raw = str(node.value)
        if kind in ("str", "timestamp"):
            return raw
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[raw.lower()]
            if kind == "int":
                digits = raw.replace("_", "")
                return int(digits) if re.fullmatch(r"[-+]?[0-9]{1,30}", digits) else int(digits, 0)
            if kind == "float":
                return float(raw.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):
            pass
        self.complain(path, "a plain value", got="a YAML tag or number that cannot be read")
        return None

    def complain(self, path: Place, what: str, got: str = "") -> None:
        self.document.problems.append(self.document.problem(path, what, got=got))


def _plain(node: Node, kind: str) -> bool:
    return str(node.tag) == f"tag:yaml.org,2002:{kind}"


def validate(document: Document, model: type[Model]) -> Model | None:
    """The document as a model, or None after adding everything that is wrong to `document.problems`."""
    if document.problems:
        return None
    if not isinstance(document.data, dict):
        document.problems.append(
            document.problem((), "a mapping (key: value lines)", got=shown_value((), document.data))
        )
        return None
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        document.problems.extend(_explain(document, model, details) for details in error.errors(include_url=False))
        return None


def version_problem(document: Document, key: str, known: int) -> Problem | None:
    """A file of another format version: one clear message instead of what would follow from it."""
    if not isinstance(document.data, dict) or key not in document.data:
        return None
    version = document.data[key]
    if isinstance(version, int) and not isinstance(version, bool) and version == known:
        return None
    hint = "Use the callfleet release that reads this format." if isinstance(version, int) else f"Write {key}: {known}"
    return document.problem(
        (key,), f"{known}: this callfleet reads format version {known} alone", got=shown_value((key,), version),
        hint=hint,
    )  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean …?`, or the whole list when nothing is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Known here: {', '.join(choices)}." if choices else ""


def shown(path: Place) -> str:
    """A path as people write it: `hosts.a.roles[0]`, `tls.certificates["*.example.com"]`."""
    parts: list[str] = []
    for key in path:
        if isinstance(key, int):
            parts.append(f"[{key}]")
        elif re.fullmatch(r"[A-Za-z0-9_<-][A-Za-z0-9_<>-]*", key):
            parts.append(f".{key}" if parts else key)
        else:
            parts.append(f"[{json.dumps(key[:60])}]")
    return "".join(parts)


def shown_value(path: Place, value: object) -> str:
    """A value as it may stand in a message: short, on one line, and never one that may be a secret."""
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    if is_secret_place(path) or (isinstance(value, str) and ("PRIVATE KEY" in value or re.search("://[^/]*@", value))):
        return "a value (not shown)"
    return json.dumps(value if not isinstance(value, str) or len(value) <= 60 else value[:57] + "...", default=str)


def is_secret_place(path: Place) -> bool:
    """Whether a value at this path could be a secret somebody wrote in place."""
    if any(path[: len(place)] == place for place in _SECRET_PLACES):
        return True
    return any(isinstance(key, str) and bool(_SECRET_KEY.search(key)) for key in path[-2:])


_WORDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value lines)",
    "model_type": "a mapping (key: value lines)",
    "model_attributes_type": "a mapping (key: value lines)",
    "tuple_type": "a list",
    "list_type": "a list",
}


def _explain(document: Document, model: type[BaseModel], details: ErrorDetails) -> Problem:
    """One of pydantic's errors in our words."""
    is_key = bool(details["loc"]) and details["loc"][-1] == "[key]"
    path: Place = tuple(details["loc"][:-1]) if is_key else tuple(details["loc"])
    kind, context = details["type"], details.get("ctx", {})
    got = shown_value(path, details["input"])
    if kind == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        return document.problem(path, "a known key", got="an unknown key", hint=nearest(str(path[-1]), known))
    if kind == "missing":
        return document.problem(path, "a value: this key is required")
    if kind == "literal_error":
        return document.problem(path, f"one of {context['expected']}", got=got)
    if is_key:
        got = f"the name {got}"
    if kind == "callfleet":
        return document.problem(path, context["expected"], got=got, hint=context["hint"])
    return document.problem(path, _WORDS.get(kind, details["msg"]), got=got)


def _keys_at(model: type[BaseModel], path: Place) -> list[str]:
    """The keys that the schema knows below a path."""
    current: Any = model
    for key in path:
        current = _inner(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = {(field.alias or name): field.annotation for name, field in current.model_fields.items()}
            current = fields.get(str(key))
        elif get_origin(current) in (dict, tuple, Mapping):
            current = next((each for each in reversed(get_args(current)) if each is not Ellipsis), None)
        else:
            return []
    current = _inner(current)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []


def _inner(annotation: Any) -> Any:
    """A type without `| None` and `Annotated[...]` around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        arguments = [each for each in get_args(annotation) if each is not type(None)]
        if type(None) in get_args(annotation) and len(arguments) == 1:
            annotation = arguments[0]
            continue
        return annotation
