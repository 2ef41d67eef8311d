"""The state of a stack as one JSON document.

{"schema": 1, "stack": NAME, "at": ISO-8601 UTC, "error": null or why containers could not be listed,
 "proven": [labels that passed a canary call here],
 "slots": [{"slot": 3, "service": "worker-3", "state": one of states.Word, "problem": null or why it is unknown,
            "calls": int or null, "connections": int or null, "published": bool,
            "declared_drained": null or {"at", "reason", "who"}, "swap": null or {"at", "step"},
            "wanted": bool (false: more slots than wanted), "up_to_date": bool, "config": label or null,
            "config_wanted": label or null, "container": id or null, "container_status": word or null,
            "image": reference or null, "image_id": digest or null, "restarts": int or null,
            "started": ISO-8601 or null}],
 "services": [{"service", "kind", "status": "running", ... or "missing", "health": word or null, "up_to_date",
               "config", "config_wanted", "container", "image", "image_id", "restarts", "started"}],
 "proxy": null or {"config_running": hash or null, "config_wanted": hash or null, "problem": null or why}}
"""

from __future__ import annotations

from typing import Any

from . import canary, proxy
from .compose import Container, Docker
from .errors import SlotError
from .journal import now, read_json
from .slots import Slot, observe
from .stack import Stack


def status(stack: Stack) -> dict[str, Any]:
    """Read everything; change nothing. Doubt shows as null and `unknown`."""
    docker = Docker(stack)
    error = None
    containers: dict[str, list[Container]] | None = None
    try:
        containers = docker.containers()
    except SlotError as trouble:
        error = str(trouble)
    slots = observe(stack, docker, containers=containers)
    return {
        "schema": 1,
        "stack": stack.name,
        "at": now(),
        "error": error,
        "proven": sorted(canary.proven(stack)),
        "slots": [_slot(stack, slot) for slot in slots.values()],
        "services": [
            {"kind": service.kind, **_service(stack, service.name, (containers or {}).get(service.name, []))}
            for service in stack.services.values()
        ],
        "proxy": _proxy(stack),
    }


def _slot(stack: Stack, slot: Slot) -> dict[str, Any]:
    service, held = stack.service_of(slot.n), slot.container
    made = _container(held, stack.wanted(service) if slot.n in stack.numbers else None)
    return {
        "slot": slot.n,
        "service": service,
        "state": slot.word.value,
        "problem": slot.problem,
        "calls": slot.seen.calls,
        "connections": slot.seen.connections,
        "published": slot.seen.published,
        "declared_drained": read_json(stack.drained_dir / str(slot.n)) or ({} if slot.seen.declared else None),
        "swap": read_json(stack.swap_dir / str(slot.n)),
        "wanted": slot.n in stack.numbers,
        **made,
        "container_status": held.status if held else None,
    }


def _service(stack: Stack, name: str, found: list[Container]) -> dict[str, Any]:
    held = next((c for c in found if c.running), found[-1] if found else None)
    return {
        "service": name,
        "status": held.status if held else "missing",
        "health": held.health if held else None,
        **_container(held, stack.wanted(name)),
    }


def _container(held: Container | None, wanted: str | None) -> dict[str, Any]:
    return {
        "up_to_date": held is not None and held.config == wanted,
        "config": held.config if held else None,
        "config_wanted": wanted,
        "container": held.id if held else None,
        "image": held.image if held else None,
        "image_id": held.image_id if held else None,
        "restarts": held.restarts if held else None,
        "started": held.started if held else None,
    }


def _proxy(stack: Stack) -> dict[str, Any] | None:
    if stack.proxy is None:
        return None
    wanted = stack.proxy.config_hash
    try:
        return {"config_running": proxy.running_config(stack.proxy), "config_wanted": wanted, "problem": None}
    except SlotError as error:
        return {"config_running": None, "config_wanted": wanted, "problem": str(error)}


def lines(value: dict[str, Any]) -> list[str]:
    """The same for people: a line per slot and service."""
    shown = [f"{value['stack']} at {value['at']}" + (f": {value['error']}" if value["error"] else "")]
    for slot in value["slots"]:
        calls = "?" if slot["calls"] is None else slot["calls"]
        notes = [slot["problem"] or ""]
        notes += ["" if slot["up_to_date"] else "not as wanted"]
        notes += ["declared drained" if slot["declared_drained"] is not None else ""]
        made = (slot["container"] or "-")[:12]
        text = f"  {slot['service']:<12} {slot['state']:<12} calls {calls}  {made:<12}  restarts {slot['restarts']}"
        shown.append(f"{text}  {'; '.join(filter(None, notes))}".rstrip())
    for service in value["services"]:
        note = "" if service["up_to_date"] else "  not as wanted"
        shown.append(f"  {service['service']:<12} {service['status']:<12} {service['health'] or ''}{note}".rstrip())
    return shown
