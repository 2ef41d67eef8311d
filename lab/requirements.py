"""What this machine must be and have. Missing packages are installed with apt; what cannot be mended is said."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from lab import paths
from lab.errors import LabError
from lab.tool import tool

# Program: the Debian package that has it.
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "skopeo": "skopeo",
    "ssh": "openssh-client",
    "mount": "mount",
}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NESTING_REFUSED = ("overlay", "aufs", "fuse", "nfs")


def check_machine() -> None:
    """Raises LabError where no lab can run: not Linux, not root, or a file system that overlays cannot be on."""
    if sys.platform != "linux":
        raise LabError(
            f"the lab boots real Linux hosts and this is {sys.platform}", "run it in a Debian virtual machine, as root"
        )
    if os.geteuid() != 0:
        raise LabError(
            "the lab needs root: it boots hosts, mounts and makes a bridge", "sudo callfleet lab ..., or a root shell"
        )
    if "\toverlay\n" not in open("/proc/filesystems").read():  # noqa: SIM115, PTH123
        raise LabError("this kernel has no overlay file system", "use a machine whose kernel has overlayfs")


def check_state() -> None:
    """Raises LabError if the state directory cannot carry overlays."""
    paths.state().mkdir(parents=True, exist_ok=True, mode=0o755)
    kind = tool("stat", "--file-system", "--format=%T", str(paths.state())).strip()
    if kind.startswith(NESTING_REFUSED):
        raise LabError(
            f"{paths.state()} is on {kind}, which cannot carry overlays",
            "set CALLFLEET_LAB_DIR to a directory on ext4 or xfs",
        )


def install_missing(say: Callable[[str], None]) -> None:
    """Install the packages of programs that are missing, with apt. Raises LabError where there is no apt."""
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if not os.path.exists(KEYRING):  # noqa: PTH110
        missing.append("debian-archive-keyring")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise LabError(f"missing here: {', '.join(missing)}, and there is no apt to install them with")
    say(f"installing {', '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        tool("apt-get", "update", env=env)
        tool("apt-get", "install", "--yes", "--no-install-recommends", *missing, env=env)
    except LabError as error:
        raise LabError(f"{', '.join(missing)} could not be installed: {error.what}") from error
