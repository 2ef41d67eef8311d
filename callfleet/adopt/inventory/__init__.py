"""The site file that describes a platform, and what is left for its operator to do. Pure."""

from __future__ import annotations

from typing import Any

from callfleet.adopt.inventory.brand import brand_of
from callfleet.adopt.inventory.hosts import front_addresses, hosts_of
from callfleet.adopt.inventory.layout import release_text, text
from callfleet.adopt.inventory.names import certificates, images, own_ports, static_names
from callfleet.adopt.inventory.parts import UNKNOWN_DOMAIN, Inventory, Source, Wishes, entries
from callfleet.adopt.inventory.values import app_section, call_limits, core_section, needed_secrets
from callfleet.adopt.platform import Platform, call_names, domain_of, web_names
from callfleet.site.defaults import Defaults

__all__ = ["Inventory", "Source", "Wishes", "describe", "release_text", "text"]


def describe(platform: Platform, wishes: Wishes, defaults: Defaults) -> Inventory:
    """The site file that describes a platform; `text` lays it out."""
    made = Inventory()
    brand_name, overrides, brand = brand_of(platform, wishes, defaults, made)
    prefix = wishes.secrets or f"secrets/{wishes.site}"
    app = platform.app
    web = {kind: name for name, kind in reversed(web_names(app).items())} if app else {}
    calls = call_names(platform)
    publics = [one.public_name for one in platform.fleet_hosts if one.public_name]
    domain = wishes.domain or domain_of([*publics, *calls, *web.values()])
    if not domain:
        made.do("domain", "the domain that the hosts' names lie in (--domain)")
    parts: dict[str, Any] = {"callfleet": 1, "site": wishes.site, "stage": wishes.stage, "brand": brand_name}
    if overrides:
        parts["brand_overrides"] = overrides
    parts["domain"] = domain or UNKNOWN_DOMAIN
    if wishes.release:
        parts["release"] = wishes.release
    if wishes.ssh:
        parts["ssh"] = dict(wishes.ssh)
    secrets: dict[str, str] = {}
    application = app_section(platform, web, domain, prefix, secrets, brand, made)
    core = core_section(platform, prefix, secrets, brand, made)
    fronts = front_addresses(platform, wishes, made)
    fleets, hosts = hosts_of(platform, wishes, domain, fronts, made, defaults)
    has_ingress = any("ingress" in entry.get("roles", ()) for entry in entries(fleets, hosts))
    has_app = app is not None
    needed_secrets(platform, prefix, secrets, has_app, bool(platform.fleet_hosts), made)
    parts["secrets"] = dict(sorted(secrets.items()))
    if application:
        parts["app"] = application
    if core:
        parts["core"] = core
    if limits := call_limits(platform, wishes):
        parts["calls"] = limits
    if has_ingress and calls:
        if calls[0] != f"calls.{domain}":
            parts["ingress"] = {"public_name": calls[0]}
        if len(calls) > 1:
            made.do(
                "ingress.public_name",
                f"callers use {len(calls)} names ({', '.join(calls)}): one is the site's, others can be "
                "fleets.<fleet>.public_name, one each",
            )
    parts["tls"] = certificates(platform, domain, prefix, parts, fleets, hosts, has_ingress, made)
    if fleets:
        parts["fleets"] = fleets
    if hosts:
        parts["hosts"] = hosts
    if ports := own_ports(platform, defaults):
        parts["ports"] = ports
    names = static_names(platform, parts, wishes, domain, fronts)
    if names:
        parts["names"] = names
    if not wishes.release:
        made.do("release", "pin the images: callfleet release pin, or a release file of your own (--release FILE)")
    made.images = images(brand, defaults, has_app, application)
    made.parts = parts
    return made
