"""The lab's site file, release pins and pyinfra inventory, as an operator would have written them."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from callfleet.secrets import write_private
from lab import network, paths
from lab.ca import public_names
from lab.model import FLEET, REGISTRY_PORT, Lab
from lab.registry import USERNAME

WORKERS = 4
RELEASE = "1"
# Image name in the site: repository in the lab's registry. The lab has no MongoDB and no MinIO: stand-ins.
IMAGES = {
    **{name: name for name in ("cxb-core-worker", "cxb-api", "cxb-dialler", "cxb-console", "haproxy", "redis")},
    "mongo": "mongo-standin",
    "minio": "minio-standin",
}


def files(lab: Lab) -> list[Path]:
    """What `write` makes and `remove` removes. The default lab's .py is part of the repository."""
    made = [lab.inventory, lab.inventory.with_suffix(".release.yml")]
    return made if lab.site == "lab" else [*made, lab.inventory.with_suffix(".py")]


def write(lab: Lab, digests: dict[str, str]) -> Path:
    """Write the site's files, private to root because they say where the secrets are; returns the site file."""
    write_private(lab.inventory, render_site(lab).encode())
    write_private(lab.inventory.with_suffix(".release.yml"), render_release(digests).encode())
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
        fleet=FLEET,
        workers=WORKERS,
        ipv6=network.has_ipv6(),
        registry_username=USERNAME,
        registry_port=REGISTRY_PORT,
        public_names=public_names(lab),
        addresses={name: own.get(name, lab.hub.address) for name in public_names(lab)},
    )


def render_release(digests: dict[str, str]) -> str:
    """Text of the release file: tag 1 of every image, by digest where the registry has it."""
    lines = ["callfleet_release: 1", f"release: {json.dumps(RELEASE)}", "images:"]
    for image, repository in IMAGES.items():
        pin = {"repository": repository, "tag": "1"}
        if digest := digests.get(f"{repository}:1"):
            pin["digest"] = digest
        lines.append(f"  {image}: {json.dumps(pin)}")
    return "\n".join(lines) + "\n"
