"""The process that keeps one host running: it boots the container again when the host reboots, and ends with it.

`python -m lab.keeper LAB HOST`, started by lab.hosts inside the host's own control group, so whoever empties that
group ends it too. It ends with 0 after a power-off, with the container's exit code otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lab import cgroups, mounts
from lab.model import Lab, LabHost

REBOOT = 133  # systemd-nspawn's exit code for "boot me again" with --keep-unit
INIT_SECONDS = 30.0
# What Docker inside needs beyond nspawn's default filter.
SYSTEM_CALLS = "add_key keyctl bpf @keyring perf_event_open"


def main(lab_name: str, host_name: str) -> int:
    """Keep the host running until it is powered off."""
    host = Lab.load(lab_name).host(host_name)
    lower = json.loads((host.directory / "lower.json").read_text())
    host.root.mkdir(exist_ok=True)
    mounts.mount_overlay(":".join(lower), host.upper, host.directory / "work", host.root)
    while (code := run_once(host)) == REBOOT:
        say("reboot")
    say(f"off ({code})")
    mounts.unmount_below(host.root)
    return code


def run_once(host: LabHost) -> int:
    """One boot, until power-off or reboot."""
    with subprocess.Popen(command(host), stdin=subprocess.DEVNULL, preexec_fn=lambda: join(host)) as container:
        init = wait_for_init(container)
        if init:
            allow_limits(init)
            say(f"booted, init is {init}")
        return container.wait()


def join(host: LabHost) -> None:
    """Put the container's processes into the group that bounds the host."""
    cgroups.enter(host.label, cgroups.PAYLOAD)


def command(host: LabHost) -> list[str]:
    """The container's command line."""
    directory = host.directory
    return [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        f"--directory={host.root}",
        f"--machine={host.machine}",
        f"--hostname={host.name}",
        "--boot",
        f"--network-bridge={host.bridge}",
        "--capability=all",
        f"--system-call-filter={SYSTEM_CALLS}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        # The engine's own overlays cannot be on an overlay.
        f"--bind={directory / 'docker'}:/var/lib/docker",
        f"--bind={directory / 'containerd'}:/var/lib/containerd",
    ]


def wait_for_init(container: subprocess.Popen[bytes]) -> int | None:
    """Process id of the host's PID 1 once systemd runs there; None if the container ended first."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    deadline = time.monotonic() + INIT_SECONDS
    while container.poll() is None and time.monotonic() < deadline:
        try:
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        except OSError:
            pass
        time.sleep(0.02)
    return None


def allow_limits(init: int) -> None:
    """Make version 1 controllers writable inside: nspawn mounts them read-only, and Docker's limits write there."""
    for root in cgroups.hierarchies():
        controllers = Path(f"/proc/{init}/mountinfo").read_text()
        if f" {root} ro" in controllers or f" {root} ro," in controllers:
            inside = ["nsenter", "--target", str(init), "--mount"]
            subprocess.run([*inside, "mount", "-o", "remount,bind,rw", str(root)], check=False)


def say(what: str) -> None:
    """One line in the keeper's log."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} keeper {os.getpid()}: {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
