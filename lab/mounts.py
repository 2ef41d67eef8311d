"""Mounts of this machine, and deleting directories without ever deleting through a mount."""

from __future__ import annotations

from pathlib import Path

from lab.errors import LabError
from lab.tool import succeeds, tool


def below(directory: Path) -> list[Path]:
    """Mount points at or below the directory, deepest first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point == directory or directory in point.parents:
            points.append(point)
    return sorted(points, key=lambda point: len(point.parts), reverse=True)


def mount_overlay(lower: str, upper: Path, work: Path, root: Path) -> None:
    """Mount `upper` over the colon-separated `lower` directories at `root`, unless it is mounted already.

    Volatile where the kernel can: a host's fsync costs nothing then, and unmounting does not wait for everybody's dirty
    pages. Nothing is lost by it unless this machine itself goes down, and with it the lab.
    """
    if root in below(root):
        return
    delete(work)  # a volatile mount leaves a mark there that refuses the next mount
    work.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    for options in (f"volatile,{layers}", layers):
        if succeeds("mount", "-t", "overlay", "callfleet-lab", "-o", options, str(root)):
            return
    tool("mount", "-t", "overlay", "callfleet-lab", "-o", layers, str(root))


def unmount_below(directory: Path) -> None:
    """Detach everything mounted at or below the directory. Raises LabError if something stays."""
    for point in below(directory):
        if not succeeds("umount", str(point)):
            succeeds("umount", "--lazy", str(point))
    if left := below(directory):
        raise LabError(f"{left[0]} cannot be unmounted", f"umount {left[0]}")


def delete(directory: Path) -> None:
    """Unmount what is below the directory, then delete it, never crossing into another file system."""
    if directory.exists():
        unmount_below(directory)
        tool("rm", "-rf", "--one-file-system", str(directory))
