"""Compose projects: files first, then the host's own slot program brings each service to what it is made from."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api.host import Host

from callfleet.expected import Images, Stack
from callfleet.plan import Change, ConcernPlan
from callfleet.pyinfra_adapter import run_of
from callfleet.pyinfra_remote import StepError, run_script
from callfleet.script import script

PULL_SECONDS = 1800.0
LOCK_SECONDS = 120  # a host that has just booted may still be publishing its slots


def converge_stack(host: Host, todo: ConcernPlan) -> None:
    """Carry out one project's changes: folders and files, images, services, units. Calls that are on are waited for."""
    before, stacks, after = _split(todo.changes)
    _files_and_images(host, before)
    names = {change.item.name for change in stacks if isinstance(change.item, Stack)}
    for name in sorted(names):
        _converge(host, name)
    if after:
        run_script(host, script(after))


def _split(changes: tuple[Change, ...]) -> tuple[list[Change], list[Change], list[Change]]:
    stacks = [change for change in changes if isinstance(change.item, Stack)]
    if not stacks:
        return list(changes), [], []
    first = changes.index(stacks[0])
    return list(changes[:first]), stacks, [c for c in changes[first:] if not isinstance(c.item, Stack)]


def _files_and_images(host: Host, changes: list[Change]) -> None:
    files = [change for change in changes if not isinstance(change.item, Images)]
    pulls = [change for change in changes if isinstance(change.item, Images)]
    # Every image is on the host before the first file names it.
    if pulls:
        lines = ["set -u", "export DOCKER_CONFIG=/etc/callfleet/docker"]
        lines += [f"docker pull -q {change.subject} </dev/null || exit 1" for change in pulls]
        run_script(host, "\n".join(lines), seconds=PULL_SECONDS)
    if files:
        run_script(host, script(files))


def _converge(host: Host, name: str) -> None:
    run = run_of(host)
    # Its own code says pending or failed too; what it did for each service stands in its result.
    command = f'/usr/local/sbin/slotctl converge {name} --json --wait {LOCK_SECONDS} --fence "$CALLFLEET_FENCE"'
    lines = run_script(host, f"{command}\nprintf '{{\"exit\": %s}}\\n' $?")
    result = _result(lines)
    services = dict(result.get("services", {}))
    failed = [f"{service}: {one['detail']}" for service, one in services.items() if one["outcome"] == "failed"]
    for service, one in services.items():
        if one["outcome"] == "pending":
            run.pending.append(f"{name}/{service}: {one['detail']}")
    if result.get("error") or failed:
        raise StepError(f"{name}: " + "\n".join([*failed, str(result.get("error") or "")]).strip())
    code = json.loads(lines[-1])["exit"]
    if code not in (0, 3):
        raise StepError(f"{name}: slotctl ended with {code}: " + "\n".join(lines[-10:]))


def _result(lines: list[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            answer = json.loads(line)
            if isinstance(answer.get("result"), dict):
                return dict(answer["result"])
    return {}
