"""group_data/all.py as checked values: brands, ports and the tool's own limits.

The file is read as data, not run: it holds plain literals only, which is also what pyinfra's own reading of it needs.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from callfleet.document import Document, Strict, Text, expected, text, validate
from callfleet.errors import Problem
from callfleet.release import ImageName
from callfleet.site.schema import JsonField, Name, Port, UrlPath

CHECKOUT = Path(__file__).resolve().parents[2]


class BrandServices(Strict):
    """Names of the control plane's services."""

    api: Name
    dialler: Name
    console: Name


class BrandImages(Strict):
    """Names, in the release file, of the application's images."""

    core_worker: ImageName
    api: ImageName
    dialler: ImageName
    console: ImageName


def _plain(value: object) -> object:
    if not isinstance(value, bool | int | str):
        raise expected("a whole number, text, true or false")
    return value


class DiallerQuiet(Strict):
    """The Dialler may be restarted while the document at `path` of its health port has `field` equal to `equals`."""

    path: Annotated[str, text(lambda value: value.startswith("/") and value.isprintable(), "a path such as /health")]
    field: Text
    equals: Annotated[bool | int | str, BeforeValidator(_plain)]


class BrandHealth(Strict):
    """What a worker says of itself: where, in which field the number of its calls, in which its own number."""

    path: UrlPath
    calls_field: JsonField
    id_field: JsonField


class Brand(Strict):
    """What differs between the names under which the same software is sold."""

    name: Text
    stack: Name
    app_stack: Name
    socket_prefix: Name
    worker_env_prefix: Text
    secret_header: Text
    dialler_quiet: DiallerQuiet
    outbox: Text
    services: BrandServices
    images: BrandImages
    health: BrandHealth


class CommonImages(Strict):
    """Names, in the release file, of images that have no brand."""

    proxy: ImageName
    redis: ImageName
    mongo: ImageName
    minio: ImageName


class Ports(Strict):
    """TCP ports; see group_data/all.py for what each is. The metrics ports have no default: None is off."""

    front: Port
    fleet: Port
    fleet_shared: Port
    mtls: Port
    api: Port
    console: Port
    dialler_health: Port
    redis: Port
    mongo: Port
    minio: Port
    metrics: Port | None = None
    metrics_shared: Port | None = None


class Defaults(Strict):
    """The whole of group_data/all.py."""

    brands: dict[Name, Brand] = Field(min_length=1)
    common_images: CommonImages
    ports: Ports
    worker_uid: int
    ssh_connect_seconds: int


def defaults_file(site_file: Path) -> Path:
    """The group_data that belongs to a site file: beside its folder, or else this checkout's."""
    beside = site_file.resolve().parent.parent / "group_data" / "all.py"
    return beside if beside.is_file() else CHECKOUT / "group_data" / "all.py"


def read_defaults(file: Path) -> tuple[Defaults | None, Document]:
    """The defaults, or None with what is wrong in the document's `problems`."""
    document = Document(file, data={}, lines={(): 1})
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        document.problems.append(Problem(file, "", "a readable Python file", got=type(error).__name__, line=line))
        return None, document
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            document.problems.append(
                Problem(file, "", "nothing but `name = literal`", got="another statement", line=statement.lineno)
            )
            continue
        name = statement.targets[0].id
        document.lines[(name,)] = statement.lineno
        document.data[name] = _literal(statement.value, name, document)
    return validate(document, Defaults), document


def _literal(node: ast.expr, name: str, document: Document) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        document.problems.append(document.problem((name,), "a plain literal", got="an expression"))
        return None
