"""A plan as a document, and as text: what would change, host by host, and the calls that it touches. Pure.

The document is what `--json` prints and `--out` saves; docs/plan-schema.md describes it. It holds no secret value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from callfleet.actual import Actual, Slot, SlotWord, Unknown
from callfleet.diff import file_diff
from callfleet.expected import Command, Directory, File, Item, Package, Stack, Unit, sha256
from callfleet.plan import Change, HostPlan, Word
from callfleet.reasons import service_reasons

SCHEMA = 1
NOTHING, FAILED, CHANGES, WAITING = 0, 1, 2, 3
"""Exit codes of a plan: nothing to do, it cannot be told, changes, changes of which some wait for a call's end."""

CALL_BACKENDS = ("workers", "dispatch", "dispatch_full")
"""Backends of the host proxy whose connections are calls."""


@dataclass(frozen=True)
class Looked:
    """One host as it was looked at; `plan` None: `error` says why. `before` holds files that are about to change."""

    name: str
    address: str
    plan: HostPlan | None
    error: str
    actual: Actual
    fingerprint: Callable[[bytes], str] = field(repr=False)
    before: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def document(
    site: str,
    release: str,
    hosts: Iterable[Looked],
    unreached: Mapping[str, str],
    duties: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole plan. `basis` names what it was made from: two plans of equal basis carry out the same.

    `duties` is what each host is there for, by its name; see `duty`.
    """
    every = [_host(host) for host in hosts]
    every += [_nothing(name, f"not reached: {why}") for name, why in unreached.items()]
    every = [{"name": host["name"], **duty(), **(duties or {}).get(host["name"], {}), **host} for host in every]
    code = _code(every)
    basis = {host["name"]: host["basis"] for host in every}
    plan = sha256(json.dumps(basis, sort_keys=True).encode())[:12]
    changes = sum(len(host["changes"]) for host in every)
    return {
        "schema": SCHEMA,
        "kind": "plan",
        "site": site,
        "release": release,
        "plan": plan,
        "exit": code,
        "changes": changes,
        "hosts": every,
    }


def duty(address: str = "", roles: Iterable[str] = (), fleet: str | None = None) -> dict[str, Any]:
    """What a host is there for, as the site file says it; all that is known of one that was not reached."""
    return {"address": address, "roles": sorted(roles), "fleet": fleet}


def _host(host: Looked) -> dict[str, Any]:
    if host.plan is None:
        return _nothing(host.name, host.error)
    changes = [_change(host, concern.name, change) for concern in host.plan.concerns for change in concern.changes]
    return {
        "name": host.name,
        "address": host.address,
        "error": "",
        "basis": _basis(host, host.plan),
        "changes": changes,
        "slots": list(_slots(host.actual, host.plan)),
    }


def _nothing(name: str, error: str) -> dict[str, Any]:
    return {"name": name, "error": error, "basis": "", "changes": [], "slots": []}


def _change(host: Looked, concern: str, change: Change) -> dict[str, Any]:
    item = change.item
    value: dict[str, Any] = {
        "concern": concern,
        "kind": change.kind,
        "subject": change.subject,
        "word": str(change.word),
        "reason": change.reason,
        "calls": change.calls,
        "waits": waits(change),
    }
    if isinstance(item, File) and change.kind == "file" and change.word is not Word.BLOCKED:
        value["diff"] = _diff(host, item, change)
    if isinstance(item, Stack) and change.word is Word.RECREATE:
        compose = f"/opt/stacks/{item.name}/compose.yml"
        value["because"] = _because(host, item, change, compose)
    return value


def _diff(host: Looked, item: File, change: Change) -> list[str]:
    if not item.secret:
        return file_diff(item, host.before.get(item.path))
    state = host.actual.file(item.path)
    was = state.sha256 if state is not None and not isinstance(state, Unknown) else None
    old = host.fingerprint(was.encode())[:12] if isinstance(was, str) else "none"
    new = host.fingerprint(item.sha256.encode())[:12]
    said = "unchanged" if old == new else "changed"
    return [f"--- {item.path}", f"+++ {item.path} (secret, {said}: {old} -> {new}; content not shown)"]


def _because(host: Looked, item: Stack, change: Change, compose: str) -> list[str]:
    assert host.plan is not None  # noqa: S101 - by its caller
    service = change.subject.partition("/")[2]
    found = [one.item for one in host.plan.changes if one.subject == compose and isinstance(one.item, File)]
    reasons = service_reasons(host.before.get(compose), found[0].content, service) if found else []
    env = f"/opt/stacks/{item.name}/secrets/{'worker' if item.kinds.get(service) == 'slot' else service}.env"
    if any(one.subject == env for one in host.plan.changes):
        reasons.append("its secret environment")
    return reasons or ["what it was made from: a certificate or secret, or a definition that is no longer there"]


def waits(change: Change) -> bool:
    """Whether it is left to a later run while the call goes on."""
    return "left serving" in change.calls or change.calls.startswith("state unknown")


def _slots(actual: Actual, plan: HostPlan) -> Iterator[dict[str, Any]]:
    """Every slot of the host, and what happens to it."""
    touched = {change.subject: change for change in plan.changes if change.kind in ("container", "slot")}
    if isinstance(actual.slots, Unknown):
        return
    for stack, slots in actual.slots.items():
        if slots is None or isinstance(slots, Unknown):
            continue
        ages = call_ages(actual, stack)
        for slot in slots:
            change = touched.get(f"{stack}/worker-{slot.number}")
            yield {
                "stack": stack,
                "slot": slot.number,
                "state": str(slot.word),
                "calls": slot.calls,
                "age": ages.get(slot.number) if slot.calls else None,
                "will": _will(slot, change),
            }


def call_ages(actual: Actual, stack: str) -> dict[int, int]:
    """Seconds since when the host proxy carries each slot's call. A background call has no connection, and no age."""
    ages: dict[int, int] = {}
    processes = actual.processes(f"/run/{stack}/proxy/master.sock")
    for process in () if processes is None or isinstance(processes, Unknown) else processes:
        for (backend, server), seconds in process.ages.items():
            if backend in CALL_BACKENDS and server[:1] == "w" and server[1:].isdigit():
                ages[int(server[1:])] = max(seconds, ages.get(int(server[1:]), 0))
    return ages


def _will(slot: Slot, change: Change | None) -> str:
    if change is None:
        return "serve on" if slot.word in (SlotWord.IDLE, SlotWord.ON_A_CALL) else "stay as it is"
    return f"{change.word} when its call has ended" if waits(change) else f"{change.word} now"


def _basis(host: Looked, plan: HostPlan) -> str:
    """Keyed digest of what the plan was made from and what it does; calls are no part of it."""
    parts = [[c.kind, c.subject, str(c.word), c.reason, _made_of(c.item)] for c in plan.changes]
    text = json.dumps([host.actual.fingerprint(), parts], sort_keys=True)
    return host.fingerprint(text.encode())


def _made_of(item: Item) -> str:
    match item:
        case File():
            return f"{item.sha256} {item.mode} {item.owner} {item.group}"
        case Command():
            return hashlib.sha256(f"{item.wanted}\n{item.script}".encode()).hexdigest()
        case Stack():
            return json.dumps([dict(item.config), item.proxy_config, item.slots], sort_keys=True)
        case Directory() | Package() | Unit():
            return repr(item)
        case _:
            return repr(item)


def _code(hosts: Iterable[Mapping[str, Any]]) -> int:
    every = list(hosts)
    changes = [change for host in every for change in host["changes"]]
    if any(host["error"] for host in every) or any(change["word"] == Word.BLOCKED for change in changes):
        return FAILED
    if any(change["waits"] for change in changes):
        return WAITING
    return CHANGES if changes else NOTHING


def stale(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why a saved plan is not what would be done now, a line a host; empty when it is. Calls never make it stale."""
    lines = []
    if saved.get("schema") != SCHEMA or saved.get("kind") != "plan":
        return [f"it is no plan of schema {SCHEMA}"]
    for key in ("site", "release"):
        if saved.get(key) != now[key]:
            lines.append(f"it is for {key} {saved.get(key)}, this is {now[key]}")
    was = {host["name"]: host for host in saved.get("hosts", [])}
    here = {host["name"]: host for host in now["hosts"]}
    for name in dict.fromkeys([*was, *here]):
        if name not in here:
            lines.append(f"{name}: not in this run")
        elif name not in was:
            lines.append(f"{name}: not in the saved plan")
        elif was[name]["basis"] != here[name]["basis"]:
            lines.append(f"{name}: the host or the site changed since the plan was made")
    return lines


def text(plan: Mapping[str, Any], *, diffs: bool = True) -> Iterator[tuple[str, str]]:
    """The plan for people: lines with a style each (heading, change, waits, error, diff, quiet)."""
    for host in plan["hosts"]:
        yield "heading", f"{host['name']}"
        if host["error"]:
            yield "error", f"  {host['error']}"
            continue
        if not host["changes"]:
            yield "quiet", "  as declared"
        concern = ""
        for change in host["changes"]:
            if change["concern"] != concern:
                concern = change["concern"]
                yield "quiet", f"  {concern}"
            style = "error" if change["word"] == Word.BLOCKED else "waits" if change["waits"] else "change"
            calls = f" ({change['calls']})" if change["calls"] else ""
            yield style, f"    {change['word']} {change['kind']} {change['subject']}: {change['reason']}{calls}"
            for reason in change.get("because", []):
                yield "quiet", f"      {reason}"
            if diffs:
                for line in change.get("diff", []):
                    yield "diff", f"      {line}"
        if moving := [slot for slot in host["slots"] if slot["will"] not in ("serve on", "stay as it is")]:
            yield "quiet", "  calls"
            for slot in moving:
                calls = "?" if slot["calls"] is None else str(slot["calls"])
                calls += "" if slot["age"] is None else f" for {slot['age'] // 60}:{slot['age'] % 60:02}"
                name = f"{slot['stack']}/worker-{slot['slot']}"
                yield "quiet", f"    {name}: {slot['state']}, calls {calls}: {slot['will']}"
