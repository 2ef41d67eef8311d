"""The entry of the `callfleet` command."""

from __future__ import annotations

import importlib
import sys

OFFLINE = ("completion", "lab", "validate")


def main() -> None:
    """Run the command. What connects runs on gevent, whose patches must come before any other import."""
    if sys.argv[1:] and sys.argv[1] not in OFFLINE and not sys.argv[1].startswith("-"):
        importlib.import_module("pyinfra_cli")
    importlib.import_module("callfleet.cli").main()


if __name__ == "__main__":
    main()
