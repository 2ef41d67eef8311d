"""Sites on disk for tests: a valid one to start from, changed in one place at a time."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
DIGEST = "sha256:" + "0" * 64

IMAGES = ("cxb-core-worker", "cxb-api", "cxb-dialler", "cxb-console", "haproxy", "redis", "mongo", "minio")

VALID: dict[str, Any] = {
    "callfleet": 1,
    "site": "acme",
    "stage": "prod",
    "brand": "cxbridge",
    "domain": "acme.test",
    "secrets": {
        "core_secret": "file:core_secret",
        "api_admin_token": "env:ADMIN_TOKEN",
        "registry_password": "command:printf word",
    },
    "registry": {"address": "registry.acme.test:5000", "username": "puller", "password": "registry_password"},
    "app": {"mongodb_db": "acme"},
    "core": {"workers_default": 4},
    "tls": {
        "certificates": {"*.acme.test": "file:wildcard.pem"},
        "internal": {"ca": "ca.pem", "ingress": "file:i.pem", "hosts": {"a": "file:a.pem", "b": "file:b.pem"}},
    },
    "fleets": {
        "eu1": {
            "hosts": {
                "a": {"address": "10.1.0.11", "memory_mb": 4096},
                "b": {"address": "10.1.0.12", "workers": 8, "memory_mb": 4096},
            }
        }
    },
    "hosts": {
        "front": {"address": "10.1.0.2", "roles": ["ingress"]},
        "app": {"address": "10.1.0.3", "roles": ["app"]},
    },
}
VALID_RELEASE: dict[str, Any] = {
    "callfleet_release": 1,
    "release": "2026.11.20",
    "images": {name: {"repository": f"cxb/{name}", "tag": "1", "digest": DIGEST} for name in IMAGES},
}

Change = Callable[[dict[str, Any]], object]


def valid() -> dict[str, Any]:
    """A site of four hosts that may be changed freely."""
    return copy.deepcopy(VALID)


def valid_release() -> dict[str, Any]:
    """Its release, likewise."""
    return copy.deepcopy(VALID_RELEASE)


def write_site(folder: Path, site: object, release: object | None = None, name: str = "acme") -> Path:
    """Write a site and its release below `folder`, with this repository's group_data; the path of the site file."""
    inventories = folder / "inventories"
    inventories.mkdir(parents=True, exist_ok=True)
    (folder / "group_data").mkdir(exist_ok=True)
    shutil.copy(REPOSITORY / "group_data" / "all.py", folder / "group_data" / "all.py")
    dump(inventories / f"{name}.release.yml", valid_release() if release is None else release)
    dump(inventories / f"{name}.yml", site)
    return inventories / f"{name}.yml"


def dump(file: Path, data: object) -> None:
    """Write plain data as YAML, text and bytes as they are."""
    if isinstance(data, bytes):
        file.write_bytes(data)
    elif isinstance(data, str):
        file.write_text(data, "utf-8")
    else:
        file.write_text(json.dumps(data, indent=1), "utf-8")  # JSON is YAML
