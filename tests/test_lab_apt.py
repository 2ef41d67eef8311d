"""The mirror comes from the machine's own apt sources, whatever their format."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import apt
from lab.errors import LabError

DEB822 = """Types: deb
# a comment
URIs: http://mirror.example.com/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main

Types: deb
URIs: http://mirror.example.com/debian-security/
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example.com/debian
Suites: bookworm
"""
FOREIGN = "Types: deb\nURIs: https://vendor.example.com/apt\nSuites: nodistro\nComponents: main\n"
ONE_LINE = """# deb http://off.example.com/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example.com/debian bookworm main contrib
deb-src http://source.example.com/debian bookworm main
"""


def etc(tmp_path: Path, files: dict[str, str]) -> Path:
    """A made-up /etc/apt."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_sources_of_another_suite_serve_any_suite(tmp_path: Path) -> None:
    """A Debian 12 controller boots Debian 13 hosts; backports, foreign and disabled sources are left out."""
    found = apt.archives(etc(tmp_path, {"sources.list.d/debian.sources": DEB822, "sources.list.d/x.sources": FOREIGN}))
    assert [archive.line("trixie") for archive in found] == [
        "deb http://mirror.example.com/debian trixie main",
        "deb http://mirror.example.com/debian-security trixie-security main",
        "deb http://mirror.example.com/debian trixie-updates main",
    ]


def test_one_line_sources_are_read(tmp_path: Path) -> None:
    """The older format, with options, without what is commented out or source only."""
    found = apt.archives(etc(tmp_path, {"sources.list": ONE_LINE}))
    assert found == [apt.Archive("http://mirror.example.com/debian", "")]


def test_a_machine_without_a_debian_source_is_told_so(tmp_path: Path) -> None:
    """There is no built-in mirror to fall back to."""
    with pytest.raises(LabError, match="add a Debian source"):
        apt.archives(etc(tmp_path, {"sources.list.d/x.sources": FOREIGN}))


def test_packages_go_from_host_to_host_as_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one host downloaded is there for the next one; files still being downloaded are not."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    first, second = tmp_path / "first", tmp_path / "second"
    (first / apt.ARCHIVES / "partial").mkdir(parents=True)
    (first / apt.ARCHIVES / "a_1_amd64.deb").write_text("package")
    (first / apt.ARCHIVES / "partial" / "b_1_amd64.deb").write_text("half")
    for _ in range(2):
        apt.harvest("trixie", first)
    apt.seed("trixie", second)
    assert [path.name for path in (second / apt.ARCHIVES).iterdir()] == ["a_1_amd64.deb"]
    assert (second / apt.ARCHIVES / "a_1_amd64.deb").stat().st_nlink == 3
