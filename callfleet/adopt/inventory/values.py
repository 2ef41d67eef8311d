"""Values and secrets that hosts and roles are told, and what calls are limited by. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from callfleet.adopt.contradictions.front import LARGEST_BODY, body_limit, idle_timeout
from callfleet.adopt.fleet import CALL_ROUTES, POST_ROUTES, Machine, core_secret, named
from callfleet.adopt.found import Unit, Value
from callfleet.adopt.inventory.parts import Inventory, Source, Wishes
from callfleet.adopt.platform import (
    Platform,
)
from callfleet.site.checks import DECLARED_ONCE, LOOKS_SECRET
from callfleet.site.defaults import Brand

# What callfleet itself tells each role.
_OWN = {
    "worker": {"BRAND_ENV_PREFIX", "SOCKET", "OUTBOX_DIR", "RECORDINGS_DIR", "MAX_CONCURRENT_CALLS"},
    "api": {"HOST", "PORT", "ADMIN_TOKEN_FILE", "STATE_DIR"},
    "dialler": {"API_URL", "HEALTH_HOST", "HEALTH_PORT", "FLEET_URLS"},
}


def needed_secrets(
    platform: Platform, prefix: str, secrets: dict[str, str], has_app: bool, has_fleet: bool, made: Inventory
) -> None:
    """core_secret and api_admin_token, which the schema asks for by name."""
    if has_fleet or has_app:
        secrets["core_secret"] = f"file:{prefix}/core_secret"
        for machine in platform.machines:
            units = [*(machine.workers.units[:1] if machine.workers else ()), machine.api]
            for unit in units:
                value = core_secret(machine.found.environment(unit)) if unit else None
                if value is not None:
                    _source(made, secrets["core_secret"], machine, value)
        if not any(each.reference == secrets["core_secret"] for each in made.sources):
            made.do("secrets.core_secret", "nobody told it: put what workers show to the API there, mode 0600")
    if has_app:
        secrets["api_admin_token"] = f"file:{prefix}/api_admin_token"
        app = platform.app
        path = None
        if app is not None and app.api is not None:
            path = named(app.found.environment(app.api), "ADMIN_TOKEN_FILE")
        if app is not None and path is not None and path.text:
            made.sources.append(Source(secrets["api_admin_token"], app.name, (path.text,)))
        else:
            made.do("secrets.api_admin_token", "an API token that may change settings: put it there, mode 0600")


def _source(made: Inventory, reference: str, machine: Machine, value: Value) -> None:
    """A secret of a variable; the first host that has it is where it is fetched from."""
    if any(each.reference == reference for each in made.sources):
        return
    path = value.place.rpartition(": ")[0]
    made.sources.append(Source(reference, machine.name, (path,), value.name))


def app_section(
    platform: Platform, web: Mapping[str, str], domain: str, prefix: str, secrets: dict[str, str], brand: Brand,
    made: Inventory,
) -> dict[str, Any]:  # fmt: skip
    """`app`: what is declared once, and what each role is told besides."""
    app = platform.app
    section: dict[str, Any] = {}
    database = _agreed(platform, "MONGODB_DB")
    if database:
        section["mongodb_db"] = database
    elif app is not None:
        made.do("app.mongodb_db", "the name of the API's database")
    api_name = web.get("api", f"api.{domain}")
    if api_name != f"api.{domain}":
        section["api_name"] = api_name
    if web.get("console", f"console.{domain}") != f"console.{domain}":
        section["console_name"] = web["console"]
    for key, canonical, default in (
        ("config_url", "CONFIG_URL", f"https://{api_name}/api/v1/config"),
        ("result_url", "RESULT_URL", f"https://{api_name}/api/v1/call-results"),
        ("vite_api_url", "VITE_API_URL", f"https://{api_name}"),
    ):
        value = _agreed(platform, canonical)
        if value and value.rstrip("/") != default:
            section[key] = value.rstrip("/")
    if app is None:
        return section
    # Stores that run on the host stay what they are: callfleet runs none beside them.
    section["stores"] = []
    for role, unit in (("api", app.api), ("dialler", app.dialler)):
        if unit is None:
            made.do(f"app.{role}", f"no unit of it was found on {app.name}: its variables are not known")
            continue
        variables = _variables(app, unit, role, prefix, secrets, brand, made)
        if variables:
            section[role] = variables
    return section


def _agreed(platform: Platform, canonical: str) -> str:
    """The value that most hosts have."""
    counts: dict[str, int] = {}
    for machine in platform.machines:
        for unit in (*(machine.workers.units[:1] if machine.workers else ()), machine.api, machine.dialler):
            value = named(machine.found.environment(unit), canonical) if unit else None
            if value is not None and value.text:
                counts[value.text] = counts.get(value.text, 0) + 1
    return max(counts, key=lambda text: counts[text]) if counts else ""


def _variables(
    machine: Machine, unit: Unit, role: str, prefix: str, secrets: dict[str, str], brand: Brand, made: Inventory
) -> dict[str, Any]:
    """What a role is told besides what callfleet tells it."""
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    environment = machine.found.environment(unit)
    held = core_secret(environment)
    place = {"worker": "core", "api": "app.api", "dialler": "app.dialler"}[role]
    for name, value in environment.items():
        if name in _OWN[role] or name in DECLARED_ONCE or value is held or _once(name, brand):
            continue
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            made.do(f"{place}.environment", f"{value.place} is not carried over: names are in upper case")
        elif value.secret:
            key = _secret_name(name)
            if made.marks.setdefault(key, value.mark) != value.mark:
                key = f"{role}_{key}"[:64]
            secrets[key] = f"file:{prefix}/{key}"
            secret[name] = key
            _source(made, secrets[key], machine, value)
        elif LOOKS_SECRET.search(name):
            made.do(f"{place}.secret_environment", f"{value.place} is not carried over: it is called like a secret")
        elif value.text is not None and value.text.isprintable():
            plain[name] = value.text
        else:
            made.do(f"{place}.environment", f"{value.place} is not carried over: it is not one line of text")
    paths = sorted(name for name, text in plain.items() if text.startswith("/"))
    if paths:
        made.do(f"{place}.environment", f"paths on the host, which a container does not have: {', '.join(paths)}")
    found: dict[str, Any] = {}
    if plain:
        found["environment"] = dict(sorted(plain.items()))
    if secret:
        found["secret_environment"] = dict(sorted(secret.items()))
    return found


def _once(name: str, brand: Brand) -> bool:
    return name.endswith("_WORKERS") or name == f"{brand.worker_env_prefix}_WORKERS" or any(
        name.endswith(f"_{each}") for each in ("CONFIG_URL", "RESULT_URL", "FLEET_URLS", "MONGODB_DB", "VITE_API_URL")
    )  # fmt: skip


def _secret_name(variable: str) -> str:
    name = re.sub(r"[^a-z0-9_]", "_", variable.lower()).strip("_")[:64]
    return name if name[:1].isalpha() else f"secret_{name}"[:64]


def core_section(
    platform: Platform, prefix: str, secrets: dict[str, str], brand: Brand, made: Inventory
) -> dict[str, Any]:
    """`core`: what the workers are told, as the first host that was read has it."""
    for one in platform.fleet_hosts:
        if one.machine and one.machine.workers and one.machine.workers.units:
            return _variables(one.machine, one.machine.workers.units[0], "worker", prefix, secrets, brand, made)
    return {}


def call_limits(platform: Platform, wishes: Wishes) -> dict[str, Any]:
    """The longest call, the body limit and the silence after which a call ends, as they hold today."""
    found: dict[str, Any] = {}
    if wishes.longest_call != 600:
        found["max_seconds"] = wishes.longest_call
        if wishes.longest_call > 900:
            found["drain_deadline_seconds"] = min(86400, wishes.longest_call + 300)
    bodies, silences = [], []
    for one in platform.fleet_hosts:
        routes = one.machine.front.routes if one.machine and one.machine.front else {}
        bodies += [body_limit(routes[path])[0] or LARGEST_BODY for path in POST_ROUTES if path in routes]
        silences += [idle_timeout(routes[path])[0] for path in CALL_ROUTES if path in routes]
    if bodies:
        found["largest_body_bytes"] = max(1024, min(LARGEST_BODY, max(bodies)))
    if silences:
        found["tunnel_timeout_seconds"] = int(max(5, min(86400, max(silences))))
    return found
