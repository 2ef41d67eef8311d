"""What every Compose project on a host has in common: folders, files, description, images, unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from callfleet.desired.context import Context
from callfleet.desired.docker import AUTH_DIR
from callfleet.desired.program import SOURCE, TARGET
from callfleet.expected import Concern, Directory, File, Images, Item, Stack, Unit, config_hash, unit_check
from callfleet.templates import render


@dataclass(frozen=True)
class Service:
    """One Compose service.

    `kind` says how it is changed: `slot` (one call, swapped when idle), `proxy`, `plain` (recreated), `guarded`
    (recreated when `quiet` holds). `secrets` is the content of its env file. `made_from` lists further bytes that
    a change of must recreate it for.
    """

    kind: str
    spec: Mapping[str, Any]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    made_from: tuple[bytes, ...] = field(default=(), repr=False)
    quiet: Mapping[str, Any] | None = None


LOGGING = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


def project(
    context: Context,
    concern: str,
    name: str,
    services: Mapping[str, Service],
    *,
    files: tuple[Item, ...] = (),
    directories: tuple[Directory, ...] = (),
    slots: int = 0,
    proxy_config: str = "",
    description: Mapping[str, Any] | None = None,
    keeper: bool = False,
) -> Concern:
    """The concern that lays down a Compose project and brings its services to what they are made from."""
    folder = f"/opt/stacks/{name}"
    run = f"/run/{name}"
    secret_files: list[Item] = []
    config: dict[str, str] = {}
    rendered: dict[str, dict[str, Any]] = {}
    for service_name, service in services.items():
        spec = dict(service.spec)
        parts: list[object] = [spec, [context.fingerprint(part) for part in service.made_from]]
        if service.secrets:
            env = "".join(f"{key}='{value}'\n" for key, value in sorted(service.secrets.items())).encode()
            env_file = f"secrets/{_env_name(service_name)}.env"
            item = File(f"{folder}/{env_file}", env, mode="0600", secret=True)
            if item not in secret_files:
                secret_files.append(item)
            spec["env_file"] = [env_file]
            parts.append(context.fingerprint(env))
        config[service_name] = config_hash(parts)
        spec["labels"] = {
            "callfleet.stack": name,
            "callfleet.service": service_name,
            "callfleet.config": config[service_name],
        }
        spec.setdefault("logging", LOGGING)
        rendered[service_name] = spec
    stack_json = {
        "schema": 1,
        "stack": name,
        "project_dir": folder,
        "compose_files": ["compose.yml"],
        "run_dir": run,
        "slots": slots,
        "docker_config": AUTH_DIR,
        "services": {
            n: {"kind": s.kind} | ({"quiet": dict(s.quiet)} if s.quiet else {})
            for n, s in services.items()
            if s.kind != "slot"
        },
        "config": config,
        "worker_uid": context.site.defaults.worker_uid,
    } | dict(description or {})
    images = tuple(sorted({str(s.spec["image"]) for s in services.values()}))
    tmpfiles = "".join(
        f"d {d.path} {d.mode} {d.owner} {d.group} -\n" for d in directories if d.path.startswith("/run/")
    )
    tmp_items: tuple[Item, ...] = ()
    if tmpfiles:
        tmp_items = (File(f"/etc/tmpfiles.d/{name}.conf", f"# Written by callfleet.\n{tmpfiles}".encode()),)
    drop_in = f"/etc/systemd/system/stack@{name}.service.d"
    compose = render("stack/compose.yml.j2", host=context.host.name, stack=name, services=rendered)
    return Concern(
        concern,
        (
            Directory("/opt/stacks"),
            Directory(folder),
            Directory(f"{folder}/secrets", mode="0700"),
            Directory("/etc/callfleet/stacks"),
            Directory(f"/etc/callfleet/stacks/{name}"),
            *directories,
            *tmp_items,
            Directory(drop_in),
            File(
                f"{drop_in}/callfleet.conf",
                render("stack/stop.conf.j2", stop_seconds=stop_seconds(context)),
                check=unit_check(f"{drop_in}/callfleet.conf"),
            ),
            *secret_files,
            *files,
            Images(images),
            File(
                f"{folder}/compose.yml",
                compose,
                check=f"docker compose --project-directory {folder} -f {{path}} config -q",
            ),
            File(f"{folder}/stack.json", (json.dumps(stack_json, indent=1, sort_keys=True) + "\n").encode()),
            Stack(
                name,
                config,
                {n: s.kind for n, s in services.items()},
                slots=slots,
                proxy_config=proxy_config,
                proxy_file=f"{folder}/haproxy/haproxy.cfg" if proxy_config else "",
            ),
            Unit(f"stack@{name}.service"),
            *(
                (Unit(f"callfleet-keeper@{name}.service", config=program_files(), on_change="restart"),)
                if keeper
                else ()
            ),
        ),
    )


def stop_seconds(context: Context) -> int:
    """How long systemd lets a stack stop: above the longest call and the grace that every container has beyond it."""
    return context.site.calls.max_seconds + 600


def _env_name(service: str) -> str:
    """Workers share one env file; every other service has its own."""
    return "worker" if service.startswith("worker-") else service


def program_files() -> tuple[str, ...]:
    """Files that the keeper must have been started after."""
    return tuple(f"{TARGET}/{path.name}" for path in sorted(SOURCE.glob("*.py")))
