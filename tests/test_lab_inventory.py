"""The site file that the lab writes is one that callfleet takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from callfleet.site import load_site
from lab import ca, inventory, paths
from lab.model import Lab, allocate

DIGESTS = {f"{repository}:1": "sha256:" + "0" * 64 for repository in inventory.images("cxbridge").values()}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose inventories go to the test's own directory."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    (tmp_path / "inventories").mkdir()
    (tmp_path / "inventories" / "lab.py").write_text("entry = 1\n")
    monkeypatch.setattr(paths, "INVENTORIES", tmp_path / "inventories")
    made = allocate("demo", 3, "trixie")
    ca.ensure(made)
    return made


def test_the_site_is_valid_and_has_the_labs_hosts(lab: Lab) -> None:
    """Checked by the same loader that every command uses."""
    site = load_site(inventory.write(lab, DIGESTS))
    assert {host.name: host.address for host in site.hosts} == {host.name: host.address for host in lab.hosts}
    assert site.image("cxb-core-worker") == f"{lab.registry}/cxb-core-worker@sha256:{'0' * 64}"


def test_a_lab_of_one_host_is_valid_too(lab: Lab) -> None:
    """Only the hub: no fleet, no ingress."""
    alone = allocate("alone", 1, "trixie")
    ca.ensure(alone)
    assert [host.name for host in load_site(inventory.write(alone, DIGESTS)).hosts] == ["hub"]


def test_no_secret_is_in_the_files(lab: Lab) -> None:
    """The site refers to the files that hold them, and is itself private."""
    inventory.write(lab, DIGESTS)
    for path in inventory.files(lab):
        assert path.stat().st_mode & 0o777 == 0o600
        for secret in ca.SECRETS:
            assert lab.secret(secret).read_text() not in path.read_text()


def test_remove_takes_what_write_made_and_nothing_else(lab: Lab) -> None:
    """The repository's own lab.py stays."""
    inventory.write(lab, DIGESTS)
    inventory.remove(lab)
    assert [path.name for path in paths.INVENTORIES.iterdir()] == ["lab.py"]


def test_the_default_lab_uses_the_repositorys_own_entry(lab: Lab) -> None:
    """`down` must never delete a file that git knows."""
    default = Lab("lab", 0, "trixie", ("hub",))
    assert all(path.suffix == ".yml" for path in inventory.files(default))
