"""Root filesystems that hosts are overlays of: built once, cached by what they are made from, never changed after.

The hub's is a second layer over the plain one, with the image registry in it; a legacy host's has its services.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from lab import apt, paths
from lab.errors import LabError
from lab.locks import locked
from lab.model import DEFAULT_SUITE
from lab.mounts import delete, mount_overlay, unmount_below
from lab.tool import tool

Say = Callable[[str], None]

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "ca-certificates", "iproute2", "python3-minimal"),
    *("curl", "procps"),
)
HUB_PACKAGES = ("docker-registry",)
# What has no hardware or console to work on in a container, and would make the host `degraded`.
MASKED = (
    "getty.target",
    "console-getty.service",
    "systemd-modules-load.service",
    "modprobe@.service",
    "systemd-logind.service",
    "systemd-networkd-wait-online.service",
)
ENABLED = ("systemd-networkd.service",)
SUDOERS = "ops ALL=(ALL) NOPASSWD: ALL\n"
RECIPE = 1  # raise it when the code below makes something else from the same lists


def ensure(suite: str, say: Say) -> Path:
    """The suite's root filesystem; built if the cache has none (about a minute)."""
    target = paths.cache() / f"rootfs-{suite}-{_key(PACKAGES, MASKED, ENABLED, suite)}"
    with locked(paths.cache() / f"rootfs-{suite}.lock"):
        if not target.exists():
            say(f"building the {suite} root filesystem (once; it is cached)")
            candidate = paths.cache() / f".building-{target.name}"
            delete(candidate)
            _bootstrap(suite, candidate)
            _customise(candidate)
            candidate.rename(target)
    return target


def ensure_hub(say: Say) -> list[Path]:
    """The hub's layers, uppermost first; built if the cache has none."""
    return ensure_layer("hub", [ensure(DEFAULT_SUITE, say)], HUB_PACKAGES, say)


def ensure_layer(name: str, below: list[Path], packages: tuple[str, ...], say: Say) -> list[Path]:
    """The layers with one of these packages over them, uppermost first; built if the cache has none."""
    target = paths.cache() / f"{name}-{below[0].name}-{_key(packages)}"
    with locked(paths.cache() / f"{name}.lock"):
        if not target.exists():
            say(f"adding {', '.join(packages)} (once; it is cached)")
            building = paths.cache() / f".building-{target.name}"
            delete(building)
            for part in ("upper", "work", "root"):
                (building / part).mkdir(parents=True)
            lower = ":".join(map(str, below))
            mount_overlay(lower, building / "upper", building / "work", building / "root")
            try:
                _install(building / "root", packages)
            finally:
                unmount_below(building)
            (building / "upper").rename(target)
            delete(building)
    return [target, *below]


def _key(*made_from: object) -> str:
    text = json.dumps([RECIPE, SUDOERS, apt.LAB_SETTINGS, *made_from])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _bootstrap(suite: str, target: Path) -> None:
    include = f"--include={','.join(PACKAGES)}"
    sources = apt.sources(suite, signed=True)
    try:
        tool(
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            include,
            suite,
            str(target),
            *sources,
        )
    except LabError as error:
        raise LabError(f"the {suite} root filesystem cannot be built: {error.what}", "apt-get update") from error


def _customise(root: Path) -> None:
    """Make it a host's: units masked, no identity of its own, a sudo user without a password."""
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for unit in ENABLED:
        (wants / unit).unlink(missing_ok=True)
        (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # every host gets a key of its own
    tool("chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "ops")
    sudoers = root / "etc/sudoers.d/ops"
    sudoers.write_text(SUDOERS)
    sudoers.chmod(0o440)
    (root / "etc/apt/apt.conf.d/90callfleet-lab").write_text(apt.settings())
    for stamp in ("etc/.updated", "var/.updated"):  # the first boot need not rebuild caches that are fresh
        (root / stamp).touch()


def _install(root: Path, packages: tuple[str, ...]) -> None:
    """Install packages into a mounted root without starting anything; /dev and /proc are private to the step."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    resolver = root / "etc/resolv.conf"
    resolver.write_text(Path("/etc/resolv.conf").read_text())
    script = (
        'mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" && cd "$1" && '
        'exec chroot "$1" sh -c "apt-get update && apt-get install -y --no-install-recommends $2 && apt-get clean && '
        'rm -rf /var/lib/apt/lists/*"'
    )
    env = {"PATH": os.environ["PATH"], "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(root), " ".join(packages)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{', '.join(packages)} cannot be installed: {done.stderr.strip()[-1500:]}", "apt-get update")
    policy.unlink()
    resolver.unlink()
