"""Puts a legacy site on the lab's hosts, over SSH."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from lab import hosts, rootfs
from lab.errors import LabError
from lab.legacy.contradictions import seeded
from lab.legacy.files import HostFiles, files_of, packages
from lab.legacy.site import LegacySite, site_of
from lab.model import Lab, LabHost

Say = Callable[[str], None]
PROGRAM = Path(__file__).with_name("onhost.py")
CALL = "\nprint(lay_down({document}, {digest!r}))\n"


def layers(lab: Lab, host: LabHost, say: Say) -> list[Path]:
    """Root filesystem of a legacy host, uppermost layer first: its Debian packages are in it already."""
    app = host.name == lab.hub.name
    below = rootfs.ensure_hub(say) if app else [rootfs.ensure(host.suite, say)]
    return rootfs.ensure_layer("legacy", below, packages(lab.hub not in lab.fleet_hosts, app=app), say)


def lay_down(lab: Lab, contradictions: Collection[str], say: Say) -> None:
    """Make every host what the site's files say, fleet hosts first; one that is so already is left as it is."""
    site = seeded(site_of(lab), contradictions)
    others = [host for host in lab.hosts if host.name != site.app_host]
    with ThreadPoolExecutor() as pool:
        words = dict(zip(others, pool.map(lambda host: _lay(lab, site, host), others), strict=True))
    words[lab.hub] = _lay(lab, site, lab.hub)
    say(f"legacy: {', '.join(f'{host.name} {word}' for host, word in words.items())}")


def _lay(lab: Lab, site: LegacySite, host: LabHost) -> str:
    made = files_of(site, host.name, lambda name: lab.tls(f"{name}.pem").read_text(), lab.tls("ca.pem").read_text())
    done = hosts.run(host, "python3 -", stdin=program(made), check=False, timeout=300)
    if done.returncode:
        again = f"callfleet lab down --name {lab.name}"
        raise LabError(f"{host.name} cannot be made a legacy host: {done.stderr.strip()[-2000:]}", again)
    return done.stdout.strip().splitlines()[-1]


def program(made: HostFiles) -> str:
    """The program with its input: over standard input, so that no secret is on a command line."""
    document = json.dumps(asdict(made))
    return PROGRAM.read_text() + CALL.format(document=f"json.loads({document!r})", digest=made.digest)
