"""The controller's apt configuration, carried over to the hosts, and the cache of downloaded packages.

Mirror and proxy are read from this machine every time; neither is ever part of the repository.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.errors import LabError
from lab.requirements import KEYRING
from lab.tool import tool

ARCHIVES = "var/cache/apt/archives"
COPIED_SETTINGS = re.compile(r"Acquire::(https?::[Pp]roxy|Check-Valid-Until|Check-Date|Retries)")
# Files that hosts download stay, for the cache; translations would double what every `apt-get update` reads.
LAB_SETTINGS = (
    'APT::Keep-Downloaded-Packages "true";',
    'Binary::apt::APT::Keep-Downloaded-Packages "true";',
    'Acquire::Languages "none";',
    'APT::Periodic::Enable "0";',
)


@dataclass(frozen=True)
class Archive:
    """One Debian archive of the controller: `suffix` is what follows the suite's name, such as `-security`."""

    uri: str
    suffix: str

    def line(self, suite: str, *, signed: bool = False) -> str:
        """The one-line source for a suite."""
        option = f"[signed-by={KEYRING}] " if signed else ""
        return f"deb {option}{self.uri} {suite}{self.suffix} main"


def archives(etc: Path = Path("/etc/apt")) -> list[Archive]:
    """Debian's archives in the controller's sources, main archive first. Raises LabError if there is none."""
    found: list[Archive] = []
    for uri, suites in _entries(etc):
        path = uri.rstrip("/")
        if not path.endswith(("/debian", "/debian-security")):
            continue
        for suite in suites:
            suffix = "".join(re.findall(r"-(?:security|updates)$", suite))
            if "backports" not in suite and "/" not in suite:
                found.append(Archive(path, suffix))
    unique = sorted(set(found), key=lambda archive: (archive.suffix != "", archive.suffix))
    if not unique or unique[0].suffix:
        raise LabError(
            f"no Debian archive in the apt sources under {etc}",
            "add a Debian source there (any suite): the lab takes its mirror from it",
        )
    return unique


def sources(suite: str, *, signed: bool = False) -> list[str]:
    """The suite's source lines, from the controller's mirrors."""
    return [archive.line(suite, signed=signed) for archive in archives()]


def settings() -> str:
    """apt.conf of the hosts: the lab's own settings, and the controller's proxy and date checks."""
    copied = [line for line in tool("apt-config", "dump").splitlines() if COPIED_SETTINGS.match(line)]
    return "\n".join([*LAB_SETTINGS, *copied]) + "\n"


def package_cache(suite: str) -> Path:
    """Package files that any lab host ever downloaded."""
    return paths.cache() / f"apt-{suite}"


def seed(suite: str, upper: Path) -> None:
    """Give a new host the package files of the cache, as hard links: apt checks each and downloads only others."""
    archive = upper / ARCHIVES
    archive.mkdir(parents=True, exist_ok=True)
    _link_all(package_cache(suite), archive)


def harvest(suite: str, upper: Path) -> None:
    """Keep what the host downloaded. Only complete files: apt moves them here when their hash is right."""
    package_cache(suite).mkdir(parents=True, exist_ok=True)
    if (upper / ARCHIVES).is_dir():
        _link_all(upper / ARCHIVES, package_cache(suite))


def _link_all(source: Path, target: Path) -> None:
    for package in source.glob("*.deb"):
        with suppress(FileExistsError, FileNotFoundError):
            os.link(package, target / package.name)


def _entries(etc: Path) -> list[tuple[str, list[str]]]:
    """URI and suites of every enabled binary source, of both formats."""
    entries = []
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                entries += [(uri, fields.get("Suites", "").split()) for uri in fields.get("URIs", "").split()]
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        if path.is_file():
            found = re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", path.read_text(), re.MULTILINE)
            entries += [(uri, [suite]) for uri, suite in found]
    return entries
