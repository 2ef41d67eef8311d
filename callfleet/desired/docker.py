"""Docker engine: pinned and held, containers outlive the daemon, logs rotate, the registry is trusted and logged in."""

from __future__ import annotations

import base64
import json
from typing import Any

from callfleet.actual import Actual, Os, Unknown
from callfleet.desired.context import Context
from callfleet.errors import CallfleetError
from callfleet.expected import Command, Concern, Directory, File, Item, Package, Unit
from callfleet.site.schema import HELD_PACKAGES
from callfleet.templates import render

DAEMON_JSON = "/etc/docker/daemon.json"
AUTH_DIR = "/etc/callfleet/docker"

# What we insist on: with it containers outlive the daemon.
INSISTED = {"live-restore": True}
# What an operator's own daemon.json may say otherwise, key by key.
PREFERRED = {"log-driver": "json-file", "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}]}
# Where the driver is json-file, which keeps everything for ever unless told otherwise.
ROTATION = {"max-size": "10m", "max-file": "3"}

PACKAGES = {
    "debian": ("containerd", "runc", "docker.io", "docker-cli", "docker-compose", "iptables"),
    "docker": ("containerd.io", "docker-ce", "docker-ce-cli", "docker-compose-plugin", "iptables"),
}
ENGINE = {"debian": "docker.io", "docker": "docker-ce"}
# What provides an engine or its `docker` command in another way.
OTHERS = {
    "debian": ("docker-ce", "docker-ce-cli", "moby-engine", "podman-docker", "containerd.io"),
    "docker": ("docker.io", "docker-cli", "moby-engine", "podman-docker", "containerd"),
}


def concern(context: Context, actual: Actual | None) -> Concern | None:
    """Hosts that run containers: fleet and app."""
    if not context.host.roles & {"fleet", "app"}:
        return None
    source = context.site.docker.source
    versions = context.site.versions
    return Concern(
        "docker",
        (
            # The configuration comes before the package, so that the daemon's first start already has it.
            Directory("/etc/docker"),
            File(DAEMON_JSON, _daemon_json(actual)),
            *_registry(context),
            *_authority(context),
            *_repository(context, actual),
            *(
                Package(
                    name,
                    version=versions.get(name, ""),
                    hold=name in HELD_PACKAGES[source],
                    never_beside=OTHERS[source] if name in (ENGINE[source], "docker-cli", "docker-ce-cli") else (),
                )
                for name in PACKAGES[source]
            ),
            Unit("docker.service"),
            Command(
                subject="live-restore",
                fact="docker.live_restore",
                wanted="true",
                action="reload",
                script="systemctl reload docker.service\n"
                "for _ in 1 2 3 4 5 6 7 8 9 10; do\n"
                "  [ \"$(docker info -f '{{.LiveRestoreEnabled}}' 2>/dev/null)\" = true ] && break; sleep 0.5\n"
                "done\n"
                "[ \"$(docker info -f '{{.LiveRestoreEnabled}}')\" = true ] || "
                "{ echo 'live-restore is still off after a reload of the daemon' >&2; exit 1; }",
                reason="containers would stop with the daemon",
            ),
        ),
    )


def _daemon_json(actual: Actual | None) -> bytes:
    kept: dict[str, Any] = {}
    if actual is not None:
        content = actual.content(DAEMON_JSON)
        if isinstance(content, Unknown):
            raise CallfleetError(f"{DAEMON_JSON} could not be read, and its own keys must be kept: {content.reason}")
        if content is not None and content.strip():
            kept = _operators(content)
            if _merged(kept) == kept:
                return content  # already right, however it is laid out
    return (json.dumps(_merged(kept), indent=2) + "\n").encode()


def _merged(kept: dict[str, Any]) -> dict[str, Any]:
    """An operator's keys with what we insist on, and with what they leave open."""
    merged = {**PREFERRED, **kept, **INSISTED}
    if merged["log-driver"] == "json-file":
        options = merged.get("log-opts", {})
        if not isinstance(options, dict):
            raise CallfleetError(f"{DAEMON_JSON} has log-opts that are no object; repair it by hand, its keys are kept")
        merged["log-opts"] = {**ROTATION, **options}
    return merged


def _operators(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise CallfleetError(f"{DAEMON_JSON} is not JSON ({error}); repair it by hand, its keys are kept") from None
    if not isinstance(found, dict):
        raise CallfleetError(f"{DAEMON_JSON} is not a JSON object; repair it by hand, its keys are kept")
    return found


def _registry(context: Context) -> list[Item]:
    registry = context.site.registry
    if registry is None:
        return []
    items: list[Item] = [Directory(AUTH_DIR, mode="0700")]
    if registry.ca:
        folder = f"/etc/docker/certs.d/{registry.address}"
        items += [
            Directory("/etc/docker/certs.d"),
            Directory(folder),
            File(f"{folder}/ca.crt", context.credential(registry.ca)),
        ]
    auths: dict[str, Any] = {}
    if registry.username and registry.password:
        login = f"{registry.username}:{context.secret(registry.password)}"
        auths[registry.address] = {"auth": base64.b64encode(login.encode()).decode()}
    items.append(File(f"{AUTH_DIR}/config.json", json.dumps({"auths": auths}).encode(), mode="0600", secret=True))
    return items


def _authority(context: Context) -> list[Item]:
    """The private authority that containers trust, where the site's names have certificates of one."""
    bundle = context.site.tls.ca_bundle
    if not bundle:
        return []
    return [Directory("/etc/callfleet/ca"), File("/etc/callfleet/ca/ca.pem", context.credential(bundle))]


def _repository(context: Context, actual: Actual | None) -> list[Item]:
    """Docker's own apt repository. Not tested: no host of the lab can reach it."""
    if context.site.docker.source != "docker":
        return []
    release = actual.os if actual is not None and isinstance(actual.os, Os) else Os("debian", "", "stable")
    key = "/etc/apt/keyrings/docker.asc"
    return [
        Directory("/etc/apt/keyrings"),
        Command(
            subject=key,
            fact=f"file:{key}",
            wanted="present",
            action="fetch",
            script=f"curl -fsSL https://download.docker.com/linux/{release.id}/gpg -o {key}.new && mv {key}.new {key}",
            reason="the key of Docker's apt repository",
        ),
        File(
            "/etc/apt/sources.list.d/docker.sources",
            render("docker/docker.sources.j2", key=key, id=release.id, codename=release.codename),
        ),
    ]
