"""The lab's site file, release pins and pyinfra inventory, as an operator would have written them."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from callfleet.secrets import write_private
from lab import network, paths
from lab.brands import brand_of
from lab.ca import public_names
from lab.model import FLEET, REGISTRY_PORT, Lab
from lab.registry import USERNAME

WORKERS = 4
RELEASE = "1"
# Image name in the site that has no brand: repository in the lab's registry. The lab has no MongoDB and no MinIO.
COMMON_IMAGES = {"haproxy": "haproxy", "redis": "redis", "mongo": "mongo-standin", "minio": "minio-standin"}


def images(brand: str) -> dict[str, str]:
    """Image name in the site: repository in the lab's registry, where every brand's are the same."""
    named = brand_of(brand).images
    return {
        named.core_worker: "cxb-core-worker",
        named.api: "cxb-api",
        named.dialler: "cxb-dialler",
        named.console: "cxb-console",
        **COMMON_IMAGES,
    }


def files(lab: Lab) -> list[Path]:
    """What `write` makes and `remove` removes. The default lab's .py is part of the repository."""
    made = [lab.inventory, lab.inventory.with_suffix(".release.yml")]
    return made if lab.site == "lab" else [*made, lab.inventory.with_suffix(".py")]


def write(lab: Lab, digests: dict[str, str]) -> Path:
    """Write the site's files, private to root because they say where the secrets are; returns the site file."""
    write_private(lab.inventory, render_site(lab).encode())
    write_private(lab.inventory.with_suffix(".release.yml"), render_release(digests, lab.brand).encode())
    if lab.site != "lab":
        write_private(lab.inventory.with_suffix(".py"), (paths.INVENTORIES / "lab.py").read_bytes())
    return lab.inventory


def remove(lab: Lab) -> None:
    """Remove the site's files."""
    for path in files(lab):
        path.unlink(missing_ok=True)


def render_site(lab: Lab) -> str:
    """Text of the site file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML
    )
    own = {f"{host.name}.{lab.domain}": host.address for host in lab.hosts}
    return environment.get_template("site.yml.j2").render(
        lab=lab,
        prefix=brand_of(lab.brand).socket_prefix,
        fleet=FLEET,
        workers=WORKERS,
        ipv6=network.has_ipv6(),
        registry_username=USERNAME,
        registry_port=REGISTRY_PORT,
        public_names=public_names(lab),
        addresses={name: own.get(name, lab.hub.address) for name in public_names(lab)},
    )


def render_release(digests: dict[str, str], brand: str) -> str:
    """Text of the release file: tag 1 of every image, by digest where the registry has it."""
    lines = ["callfleet_release: 1", f"release: {json.dumps(RELEASE)}", "images:"]
    for image, repository in images(brand).items():
        pin = {"repository": repository, "tag": "1"}
        if digest := digests.get(f"{repository}:1"):
            pin["digest"] = digest
        lines.append(f"  {image}: {json.dumps(pin)}")
    return "\n".join(lines) + "\n"
