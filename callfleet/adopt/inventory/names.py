"""Certificates, ports and static names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from callfleet.actual import Unknown
from callfleet.adopt.certificate import covered, opened
from callfleet.adopt.contradictions.certificates import held_for
from callfleet.adopt.fleet import named
from callfleet.adopt.inventory.parts import UNKNOWN_DOMAIN, Inventory, Source, Wishes, entries
from callfleet.adopt.platform import (
    Platform,
    is_address,
)
from callfleet.site.defaults import Brand, Defaults


def certificates(
    platform: Platform, domain: str, prefix: str, parts: Mapping[str, Any], fleets: Mapping[str, Any],
    hosts: Mapping[str, Any], has_ingress: bool, made: Inventory,
) -> dict[str, Any]:  # fmt: skip
    """`tls`: a certificate for each public name, and those between ingress and hosts."""
    names: list[str] = []
    fleet_hosts = [(name, entry) for fleet in fleets.values() for name, entry in fleet["hosts"].items()]
    for name, entry in fleet_hosts:
        names.append(entry.get("public_name") or f"{name}.{domain or UNKNOWN_DOMAIN}")
    roles = {role for entry in entries(fleets, hosts) for role in entry.get("roles", ())}
    if "ingress" in roles:
        names.append(parts.get("ingress", {}).get("public_name") or f"calls.{domain}")
    if "app" in roles:
        app = parts.get("app", {})
        names += [app.get("api_name") or f"api.{domain}", app.get("console_name") or f"console.{domain}"]
    found: dict[str, str] = {}
    for name in names:
        machine_path = held_for(platform, name)
        key = name
        if machine_path is not None:
            machine, path = machine_path
            held = machine.found.certificates
            pem = None if isinstance(held, Unknown) else held.get(path)
            certificate = opened(pem) if isinstance(pem, bytes) else None
            wildcard = f"*.{name.partition('.')[2]}"
            if certificate is not None and name not in (has := covered(certificate)) and wildcard in has:
                key = wildcard
        file = f"file:{prefix}/tls/{key.replace('*', 'wildcard')}.pem"
        if key in found:
            continue
        found[key] = file
        if machine_path is not None:
            machine, path = machine_path
            keys = [k for m in (machine,) if m.front for n, c, k in m.front.certificates if c == path]
            made.sources.append(Source(file, machine.name, (path, keys[0]) if keys else (path,)))
        else:
            made.do(f"tls.certificates[{key}]", "none was found: chain and key in one PEM file, mode 0600")
    section: dict[str, Any] = {"certificates": found}
    if has_ingress and fleet_hosts:
        section["internal"] = {
            "ca": f"{prefix}/tls/internal-ca.pem",
            "authority": {"key": f"file:{prefix}/tls/internal-ca.key"},
            "ingress": f"file:{prefix}/tls/internal-ingress.pem",
            "hosts": {name: f"file:{prefix}/tls/internal-{name}.pem" for name, _ in fleet_hosts},
        }
        site = parts["site"]
        made.do(
            "tls.internal",
            f"make them: callfleet certificates authority {site}, then callfleet certificates issue {site}",
        )
    return section


def own_ports(platform: Platform, defaults: Defaults) -> dict[str, int]:
    """Where API and Dialler listen, where that is not the usual."""
    found: dict[str, int] = {}
    app = platform.app
    if app is None:
        return found
    if app.api is not None:
        words = app.api.command.split()
        port = words[words.index("--port") + 1] if "--port" in words[:-1] else ""
        value = app.found.environment(app.api).get("PORT")
        port = port or (value.text if value and value.text else "")
        if port.isdigit() and int(port) != defaults.ports.api:
            found["api"] = int(port)
    if app.dialler is not None:
        value = named(app.found.environment(app.dialler), "HEALTH_PORT")
        if value and value.text and value.text.isdigit() and int(value.text) != defaults.ports.dialler_health:
            found["dialler_health"] = int(value.text)
    return found


def static_names(
    platform: Platform, parts: Mapping[str, Any], wishes: Wishes, domain: str, fronts: Mapping[str, str]
) -> dict[str, str]:
    """Names that no DNS server known here has, with the addresses that they must lead to."""
    if not domain:
        return {}
    wanted: dict[str, str] = {}
    for one in platform.fleet_hosts:
        if one.address and is_address(one.address):
            wanted[one.public_name or f"{one.name}.{domain}"] = one.address
    for address in list(fronts.values())[:1]:
        wanted[parts.get("ingress", {}).get("public_name") or f"calls.{domain}"] = address
    if platform.app is not None:
        app = parts.get("app", {})
        for name in (app.get("api_name") or f"api.{domain}", app.get("console_name") or f"console.{domain}"):
            wanted[name] = platform.app.found.address
    return {name: address for name, address in wanted.items() if name not in wishes.names_known}


def images(brand: Brand, defaults: Defaults, has_app: bool, application: Mapping[str, Any]) -> tuple[str, ...]:
    """The images that the release file must pin."""
    images = [brand.images.core_worker, defaults.common_images.proxy]
    if has_app:
        images += [brand.images.api, brand.images.dialler, brand.images.console]
        images += [getattr(defaults.common_images, each) for each in application.get("stores", ())]
    return tuple(images)
