"""The brand by the names that were found. Pure."""

from __future__ import annotations

from typing import Any

from callfleet.adopt.fleet import named
from callfleet.adopt.inventory.parts import Inventory, Wishes
from callfleet.adopt.platform import (
    Platform,
    host_name,
)
from callfleet.site.defaults import Brand, Defaults


def brand_of(
    platform: Platform, wishes: Wishes, defaults: Defaults, made: Inventory
) -> tuple[str, dict[str, Any], Brand]:
    """The brand by its sockets and units, and what differs from it."""
    workers = [one.machine.workers for one in platform.fleet_hosts if one.machine and one.machine.workers]
    prefix = workers[0].prefix if workers else ""
    units = {unit.name.removesuffix(".service") for m in platform.machines for unit in (m.api, m.dialler) if unit}
    by_prefix = [name for name, each in defaults.brands.items() if each.socket_prefix == prefix]
    by_unit = [name for name, each in defaults.brands.items() if units & {each.services.api, each.services.dialler}]
    name = wishes.brand or next(iter(by_prefix or by_unit), "")
    if not name:
        name = next(iter(defaults.brands))
        made.do("brand", f"no brand of group_data is called as what was found is; {name} stands in (--brand)")
    brand = defaults.brands.get(name) or next(iter(defaults.brands.values()))
    overrides: dict[str, Any] = {}
    if prefix and prefix != brand.socket_prefix:
        overrides["socket_prefix"] = prefix
    declared = next((each.declared.name for each in workers if each.declared), "")
    if declared and declared.removesuffix("_WORKERS") != brand.worker_env_prefix:
        overrides["worker_env_prefix"] = declared.removesuffix("_WORKERS")
    header = next((value for each in workers if (value := named(each.environment, "SECRET_HEADER"))), None)
    if header and header.text and header.text != brand.secret_header:
        overrides["secret_header"] = header.text
    services: dict[str, str] = {}
    for role in ("api", "dialler"):
        unit = next((each for m in platform.machines if (each := getattr(m, role))), None)
        if unit and (called := host_name(unit.name.removesuffix(".service"))) != getattr(brand.services, role):
            services[role] = called
    if services:
        overrides["services"] = services
    return name, overrides, brand
