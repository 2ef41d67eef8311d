"""The description of one stack (stack.json), checked on reading, and every path that follows from it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .errors import UsageError

SCHEMA = 1
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
T = TypeVar("T")
KINDS = ("plain", "guarded", "proxy")


@dataclass(frozen=True)
class Quiet:
    """A guarded service may be restarted when the JSON document at `url` has `field` equal to `equals`."""

    url: str
    field: str
    equals: int | str | bool


@dataclass(frozen=True)
class Service:
    """A service of the project that is not a call slot."""

    name: str
    kind: str
    quiet: Quiet | None = None


@dataclass(frozen=True)
class Proxy:
    """The host proxy. `config_hash` is what `show env CALLFLEET_CONFIG` must say; None means it is not compared.

    `config` is its file on the host, which it must have been loaded after.
    """

    config_hash: str | None
    admin_socket: Path
    master_socket: Path
    container_config: str
    config: Path | None = None


@dataclass(frozen=True)
class Health:
    """Where a worker says how many calls it has, and how long it may take."""

    path: str = "/health"
    calls_field: str = "worker_calls"
    id_field: str = "worker_id"
    answer_seconds: float = 3.0


@dataclass(frozen=True)
class Canary:
    """The trial call of a new worker. `echo`: frames must come back unchanged; otherwise any one frame will do."""

    path: str = "/ws/{bot}"
    bot: str = "canary"
    frames: int = 10
    interval_seconds: float = 0.02
    timeout_seconds: float = 10.0
    busy_value: int = 1
    echo: bool = True


@dataclass(frozen=True)
class Outbox:
    """Where all workers of the host keep call results until the API has them, and which files there are such."""

    directory: Path
    pattern: str

    def waiting(self) -> set[str]:
        """Names of the results that are not delivered. OSError when the folder cannot be read."""
        found = self.directory.iterdir() if self.directory.exists() else ()
        return {path.name for path in found if fnmatch.fnmatch(path.name, self.pattern)}


@dataclass(frozen=True)
class Limits:
    """Times in seconds; `max_out` is how many slots may be out of service at once during swaps.

    `settle_seconds`: after a withdrawal, for connections to end: longer than uvicorn keeps an idle one (5 s).
    """

    start_seconds: float = 60.0
    max_call_seconds: float = 600.0
    stop_seconds: float = 30.0
    settle_seconds: float = 6.0
    max_out: int = 1


@dataclass(frozen=True)
class Stack:
    """One stack on this host. Paths already carry the root prefix."""

    name: str
    root: Path
    project_dir: Path
    compose_files: tuple[str, ...]
    run_dir: Path
    socket_prefix: str
    slots: int
    slot_service: str
    docker_config: Path
    worker_uid: int
    services: dict[str, Service]
    config: dict[str, str]
    worker_config: str | None
    proxy: Proxy | None
    outbox: Outbox | None = None
    health: Health = field(default_factory=Health)
    canary: Canary = field(default_factory=Canary)
    limits: Limits = field(default_factory=Limits)

    @property
    def numbers(self) -> range:
        return range(1, self.slots + 1)

    def service_of(self, n: int) -> str:
        return self.slot_service.replace("{n}", str(n))

    def number_of(self, service: str) -> int | None:
        """The slot number in a service name, None for a service that is not a slot."""
        before, after = self.slot_service.split("{n}")
        middle = service.removeprefix(before).removesuffix(after)
        return int(middle) if service == before + middle + after and re.fullmatch(r"[1-9]\d{0,3}", middle) else None

    @property
    def worker_label(self) -> str | None:
        """One hash for what all workers are to run: as declared, else their common label, else that of slot 1."""
        return self.worker_config or (self.config[self.service_of(1)] if self.slots else None)

    def wanted(self, service: str) -> str | None:
        return self.config.get(service)

    def of_kind(self, kind: str) -> list[Service]:
        return [service for service in self.services.values() if service.kind == kind]

    def socket_name(self, n: int) -> str:
        return f"{self.socket_prefix}_{n}.sock"

    def slot_dir(self, n: int) -> Path:
        return self.run_dir / "slots" / str(n)

    def own_socket(self, n: int) -> Path:
        return self.slot_dir(n) / self.socket_name(n)

    def published_socket(self, n: int) -> Path:
        return self.published_dir / self.socket_name(n)

    @property
    def published_dir(self) -> Path:
        return self.run_dir / "published"

    @property
    def metrics_socket(self) -> Path:
        """Beside the published slots, where the host proxy reaches it."""
        return self.published_dir / "metrics.sock"

    @property
    def swap_dir(self) -> Path:
        return self.run_dir / "swap"

    @property
    def record_dir(self) -> Path:
        return self.run_dir / "record"

    @property
    def mark_dir(self) -> Path:
        return self.root / "etc/callfleet"

    @property
    def drained_dir(self) -> Path:
        return self.mark_dir / "stacks" / self.name / "drained"

    @property
    def canary_file(self) -> Path:
        return self.mark_dir / "stacks" / self.name / "canary.json"

    @property
    def made_file(self) -> Path:
        return self.mark_dir / "stacks" / self.name / "made.json"

    @property
    def lock_dir(self) -> Path:
        return self.root / "run/callfleet"


def load(name: str, root: Path | None = None) -> Stack:
    """Read /opt/stacks/<name>/stack.json below `root` ($CALLFLEET_ROOT or /). UsageError says what is wrong."""
    if not NAME.match(name):
        raise UsageError(f"{name!r} is not a stack name: lower-case letters, digits, - and _ are allowed")
    root = root or Path(os.environ.get("CALLFLEET_ROOT", "/"))
    path = root / "opt/stacks" / name / "stack.json"
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; is {name!r} a stack of this host?") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    return _Reader(path, root).stack(name, data)


class _Reader:
    """Turns the JSON document into a Stack and names the place of every fault."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        self.root = root

    def stack(self, name: str, data: Any) -> Stack:
        top = self.table(data, "")
        if self.get(top, "schema", int, "") != SCHEMA:
            self.fail("schema", f"expected {SCHEMA}, got {top['schema']!r}; update the slot program with the stack")
        if self.get(top, "stack", str, "") != name:
            self.fail("stack", f"expected {name!r}, got {top['stack']!r}")
        services = self.table(top.get("services", {}), "services")
        config = self.table(top.get("config", {}), "config")
        slots = self.get(top, "slots", int, "", 0)
        slot_service = self.get(top, "slot_service", str, "", "worker-{n}")
        if not 0 <= slots <= 999:
            self.fail("slots", f"expected 0 to 999, got {slots}")
        if slot_service.count("{n}") != 1:
            self.fail("slot_service", f"expected {{n}} once, got {slot_service!r}")
        stack = Stack(
            name=name,
            root=self.root,
            project_dir=self.below(self.get(top, "project_dir", str, "")),
            compose_files=tuple(top.get("compose_files", ["compose.yml"])),
            run_dir=self.below(self.get(top, "run_dir", str, "", f"/run/{name}")),
            socket_prefix=self.get(top, "socket_prefix", str, "", "worker"),
            slots=slots,
            slot_service=slot_service,
            docker_config=self.below(self.get(top, "docker_config", str, "", "/etc/callfleet/docker")),
            worker_uid=self.get(top, "worker_uid", int, "", 1000),
            services={key: self.service(key, value) for key, value in services.items()},
            config={key: self.get(config, key, str, "config") for key in config},
            worker_config=top.get("worker_config"),
            proxy=self.proxy(name, top["proxy"]) if top.get("proxy") else None,
            outbox=self.outbox(top["outbox"]) if top.get("outbox") else None,
            health=self.plain(Health, top.get("health", {}), "health"),
            canary=self.plain(Canary, top.get("canary", {}), "canary"),
            limits=self.plain(Limits, top.get("limits", {}), "limits"),
        )
        if not 1 <= stack.limits.max_out <= max(1, slots):
            self.fail("limits.max_out", f"expected 1 to {max(1, slots)}, got {stack.limits.max_out}")
        unlabelled = [s for s in [*stack.services, *map(stack.service_of, stack.numbers)] if s not in stack.config]
        if unlabelled:
            self.fail("config", f"no wanted label for {', '.join(unlabelled)}")
        return stack

    def service(self, name: str, value: Any) -> Service:
        at = f"services.{name}"
        table = self.table(value, at)
        kind = self.get(table, "kind", str, at)
        if kind not in KINDS:
            self.fail(f"{at}.kind", f"expected one of {', '.join(KINDS)}, got {kind!r}")
        if kind != "guarded":
            return Service(name, kind)
        quiet = self.table(table.get("quiet"), f"{at}.quiet")
        if "equals" not in quiet:
            self.fail(f"{at}.quiet.equals", "missing")
        url, key = self.get(quiet, "url", str, f"{at}.quiet"), self.get(quiet, "field", str, f"{at}.quiet")
        return Service(name, kind, Quiet(url, key, quiet["equals"]))

    def proxy(self, name: str, value: Any) -> Proxy:
        table = self.table(value, "proxy")
        return Proxy(
            config_hash=table.get("config_hash"),
            admin_socket=self.below(self.get(table, "admin_socket", str, "proxy", f"/run/{name}/proxy/admin.sock")),
            master_socket=self.below(self.get(table, "master_socket", str, "proxy", f"/run/{name}/proxy/master.sock")),
            container_config=self.get(table, "container_config", str, "proxy", "/usr/local/etc/haproxy/haproxy.cfg"),
            config=self.below(self.get(table, "config", str, "proxy")) if "config" in table else None,
        )

    def outbox(self, value: Any) -> Outbox:
        table = self.table(value, "outbox")
        directory = self.below(self.get(table, "directory", str, "outbox"))
        return Outbox(directory, self.get(table, "pattern", str, "outbox"))

    def plain(self, kind: type[T], value: Any, at: str) -> T:
        """A dataclass of numbers, strings and flags; unknown keys are left to newer versions."""
        table, given = self.table(value, at), {}
        for spec in fields(kind):  # type: ignore[arg-type]
            if spec.name in table:
                given[spec.name] = self.like(spec.default, table[spec.name], f"{at}.{spec.name}")
        return kind(**given)

    def like(self, default: Any, value: Any, at: str) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, float) and number and value >= 0:
            return float(value)
        if type(value) is not type(default):
            self.fail(at, f"expected {type(default).__name__}, got {value!r}")
        return value

    def get(self, table: dict[str, Any], key: str, kind: type, at: str, default: Any = None) -> Any:
        value = table.get(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(f"{at}.{key}".lstrip("."), f"expected {kind.__name__}, got {value!r}")
        return value

    def table(self, value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(at or "the document", f"expected an object, got {value!r}")
        result: dict[str, Any] = value
        return result

    def below(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def fail(self, at: str, text: str) -> NoReturn:
        raise UsageError(f"{self.path}: {at}: {text}")
