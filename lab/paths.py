"""Where the lab keeps things. The state directory must be on a real filesystem: overlays do not nest."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
INVENTORIES = REPO / "inventories"


def state() -> Path:
    """All labs and the cache; CALLFLEET_LAB_DIR moves it."""
    return Path(os.environ.get("CALLFLEET_LAB_DIR", "/var/lib/callfleet-lab"))


def cache() -> Path:
    """What every lab may share: root filesystems, packages, images. Survives `down`."""
    return state() / "cache"


def labs() -> Path:
    """One directory a lab."""
    return state() / "labs"
