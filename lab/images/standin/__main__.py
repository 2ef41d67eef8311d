"""`python3 -m standin ROLE`: run one stand-in; everything else comes from the environment."""

from __future__ import annotations

import importlib
import sys

ROLES = {
    "core-worker": "core_worker",
    "api": "api",
    "dialler": "dialler",
    "console": "console",
    "mongo": "mongo",
    "minio": "minio",
}


def main(arguments: list[str]) -> int:
    """Start the role named by the only argument; exit code 64 when there is no such role."""
    if len(arguments) != 1 or arguments[0] not in ROLES:
        sys.stderr.write(f"usage: python3 -m standin {'|'.join(ROLES)}\n")
        return 64
    module = importlib.import_module(f".{ROLES[arguments[0]]}", __package__)
    module.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
