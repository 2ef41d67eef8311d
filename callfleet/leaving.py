"""What a host that leaves still holds, how it is stopped, and how what callfleet laid down is taken off it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from callfleet.expected import Directory, ExpectedHost, File, Images, Package, Unit
from callfleet.script import PRELUDE
from callfleet.site import Host, Site

DEREGISTRATION = frozenset({"front", "ingress", "registration", "dialler", "mark"})
"""The concerns of ingress and app hosts by which a fleet host gets calls, and what they know of it."""
KEPT = ("/etc/docker/daemon.json",)
"""Files that may hold an operator's own keys."""


@dataclass(frozen=True)
class Held:
    """What a host still holds. `stack`: whether its workers were ever laid down; recordings in files and bytes."""

    stack: bool
    results: int
    recordings: int
    recording_bytes: int

    def __str__(self) -> str:
        size = f"{self.recordings} recordings ({self.recording_bytes / 1024**2:.1f} MiB)"
        return f"{self.results} call results that the API does not have, {size}"


def look(site: Site) -> str:
    """Script that tells what a host still holds; read its answer with `held`."""
    stack = site.brand.stack
    state = f"/var/lib/{stack}"
    return f"""
export LC_ALL=C
[ -e /opt/stacks/{stack}/stack.json ] && echo stack || echo none
count() {{ if [ -d "$1" ]; then find "$1" -type f -name "$2" -printf '%s\\n' || exit 1; fi; }}
sizes=$(count {state}/outbox {shlex.quote(site.brand.outbox)}) || exit 1
printf '%s\\n' "$sizes" | awk 'NF {{ n++ }} END {{ print n + 0 }}'
sizes=$(count {state}/recordings '*') || exit 1
printf '%s\\n' "$sizes" | awk 'NF {{ n++; b += $1 }} END {{ printf "%d %.0f\\n", n, b }}'
"""


def held(answer: str) -> Held:
    """The answer to `look`. ValueError for anything else."""
    word, results, recordings = answer.splitlines()
    count, size = recordings.split()
    return Held(word == "stack", int(results), int(count), int(size))


def stop(site: Site) -> str:
    """Script that ends a drained host's project for good; a container that still runs then is an error."""
    stack = site.brand.stack
    ours = f"docker ps -aq --filter label=callfleet.stack={stack}"
    return f"""{PRELUDE}
[ -e /opt/stacks/{stack}/stack.json ] || exit 0
systemctl disable --now --quiet callfleet-keeper@{stack}.service || exit 1
# Where the first apply failed, the stack's unit never started, and stopping it would stop nothing.
/usr/local/sbin/slotctl down {stack} || exit 1
systemctl disable --now --quiet stack@{stack}.service || exit 1
# A stopped container of restart policy `always` would come back with the next start of the daemon.
left=$({ours}) || exit 1
[ -z "$left" ] || docker rm $left >/dev/null || exit 1
rm -rf /etc/callfleet/stacks/{stack}/drained /etc/callfleet/stacks/{stack}/canary.json
did stop stack {stack}
"""


def wipe(expected: ExpectedHost, site: Site) -> str:
    """Script that takes off a host what callfleet laid down there, its journal and calls' files included.

    Left: packages (no longer held), and daemon.json, which may hold an operator's own keys.
    """
    stack = site.brand.stack
    items = expected.items()
    units = [item.name for item in items if isinstance(item, Unit) and (item.enabled and _ours(item.name, stack))]
    files = [item.path for item in items if isinstance(item, File) and item.path not in KEPT]
    folders = sorted({item.path for item in items if isinstance(item, Directory)}, key=len, reverse=True)
    packages = [item.name for item in items if isinstance(item, Package) and item.hold]
    images = [reference for item in items if isinstance(item, Images) for reference in item.references]
    whole = [f"/opt/stacks/{stack}", f"/var/lib/{stack}", f"/run/{stack}", "/usr/local/lib/callfleet", "/etc/callfleet"]
    return "\n".join(
        [
            "set -u",
            "export LC_ALL=C",
            f"systemctl disable --now --quiet {_words(units)} 2>/dev/null",
            "if command -v docker >/dev/null; then",
            f"  left=$(docker ps -aq --filter label=callfleet.stack={stack}) || exit 1",
            '  [ -z "$left" ] || { echo "containers of ours are still there" >&2; exit 1; }',
            f"  docker network ls -q --filter label=com.docker.compose.project={stack} "
            "| xargs -r docker network rm >/dev/null",
            f'  for image in {_words(images)}; do docker rmi "$image" >/dev/null 2>&1; done' if images else "  :",
            "fi",
            "nft delete table inet callfleet 2>/dev/null",
            f"rm -f -- {_words(files)} || exit 1",
            f"rm -rf -- {_words(whole)} || exit 1",
            # What is not empty is not ours alone.
            f'for folder in {_words(folders)}; do rmdir -- "$folder" 2>/dev/null; done',
            f"apt-mark -qq unhold {_words(packages)} >/dev/null 2>&1" if packages else ":",
            "systemctl daemon-reload",
            "sysctl --quiet --system >/dev/null 2>&1",
            "exit 0",
            "",
        ]
    )


def lost(host: Host, site: Site, sessions: int | None) -> list[str]:
    """What may be lost with a host that is not reached; `sessions`: calls that the ingress last had with it."""
    state = f"/var/lib/{site.brand.stack}"
    calls = "calls that were on" if sessions is None else f"{sessions} calls that the ingress still holds to it"
    return [
        f"{calls}, of its {host.workers} slots",
        f"results of calls that the API does not have yet ({state}/outbox there)",
        f"recordings that lie on it alone ({state}/recordings there)",
    ]


def _ours(unit: str, stack: str) -> bool:
    return unit.startswith("callfleet-") or unit == f"stack@{stack}.service"


def _words(values: Iterable[str]) -> str:
    return " ".join(shlex.quote(value) for value in values)
