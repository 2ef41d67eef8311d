"""Runs on a lab host, sent over SSH with its input: makes the host the legacy one that the document describes.

It does nothing on a host that has the same document already, whatever has happened there since: a host that was handed
over is not taken back. Otherwise it restarts what it lays down, calls or not, as deploys did. Standard library only.
"""

import json
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MARK = Path("/etc/lab-legacy.json")
HANDED_OVER = Path("/etc/callfleet")
READY_SECONDS = 60
POLL_SECONDS = 0.1


def lay_down(wanted: dict[str, Any], digest: str) -> str:
    """One word: `unchanged` or `laid`. SystemExit says why it cannot be done."""
    if MARK.exists() and json.loads(MARK.read_text())["digest"] == digest:
        return "unchanged"
    if HANDED_OVER.exists():
        sys.exit(
            f"{HANDED_OVER} is there: callfleet was at work on this host, so it is no legacy host to lay down again"
        )
    missing = [command[0] for command in wanted["checks"] if not shutil.which(command[0])]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed: the host was booted as a bare one")
    MARK.unlink(missing_ok=True)
    for user in wanted["users"]:
        make_user(user)
    for path, owner in wanted["directories"]:
        Path(path).mkdir(parents=True, exist_ok=True)
        shutil.chown(path, owner, owner)
    for file in wanted["files"]:
        write(Path(file["path"]), file["content"], file["mode"], file["owner"])
    for path in wanted["absent"]:
        Path(path).unlink(missing_ok=True)
    for link, target in wanted["links"]:
        Path(link).unlink(missing_ok=True)
        Path(link).symlink_to(target)
    run("update-ca-certificates")
    for command in wanted["checks"]:
        run(*command)
    start(wanted)
    until_ready(wanted["ready"])
    if wanted["core_fleet"] is not None:
        tell_api(wanted)
    write(MARK, json.dumps({"digest": digest}), 0o644, "root:root")
    return "laid"


def make_user(name: str) -> None:
    """A system user with a group of the same name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        run("useradd", "--system", "--user-group", "--home-dir", f"/opt/{name}", "--shell", "/usr/sbin/nologin", name)


def write(path: Path, content: str, mode: int, owner: str) -> None:
    """The file with this content, mode and owner; one that is so already is not touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
    path.chmod(mode)
    shutil.chown(path, *owner.split(":"))


def start(wanted: dict[str, Any]) -> None:
    """Enable and restart every unit, and stop instances beyond them; then reload the proxies."""
    run("systemctl", "daemon-reload")
    if wanted["instances_of"]:
        listed = run(
            "systemctl", "list-units", "--all", "--plain", "--no-legend", f"{wanted['instances_of']}@*.service"
        )
        extra = {line.split()[0] for line in listed.splitlines()} - set(wanted["units"])
        if extra:
            run("systemctl", "disable", "--now", *sorted(extra))
    run("systemctl", "enable", "--quiet", *wanted["units"], *wanted["reloads"])
    run("systemctl", "restart", *wanted["units"])
    run("systemctl", "reload-or-restart", *wanted["reloads"])


def until_ready(places: list[str]) -> None:
    """Until each socket takes a connection and each URL answers with 200."""
    end = time.monotonic() + READY_SECONDS
    for place in places:
        while not answers(place):
            if time.monotonic() > end:
                failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
                log = run("journalctl", "-n", "20", "--no-pager", "-o", "cat")
                sys.exit(f"{place} does not answer within {READY_SECONDS} s\n{failed}\n{log}")
            time.sleep(POLL_SECONDS)


def answers(place: str) -> bool:
    """Whether a Unix socket takes a connection, or a URL is answered with 200; certificates are not looked at."""
    try:
        if place.startswith("/"):
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(place)
            return True
        trust = ssl._create_unverified_context() if place.startswith("https:") else None  # noqa: S323
        with urllib.request.urlopen(place, timeout=5, context=trust) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def tell_api(wanted: dict[str, Any]) -> None:
    """Replace the API's list of fleet hosts, the way its administrators do."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{wanted['api_port']}/api/v1/settings/fleet",
        data=json.dumps({"core_fleet": wanted["core_fleet"]}).encode(),
        headers={"Authorization": f"Bearer {wanted['admin_token']}", "Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
        answer.read()


def run(*command: str) -> str:
    """A command's output; SystemExit with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout
