"""Names, addresses and places of labs: no two labs or hosts ever share one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.locks import locked
from lab.model import MAX_HOSTS, Lab, all_names, allocate, host_names


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's state in a directory of the test's own."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    return tmp_path


def test_the_hub_comes_first_and_counts() -> None:
    """`--hosts 4` is the hub and three fleet hosts."""
    assert host_names(4) == ("hub", "eu1-a", "eu1-b", "eu1-c")


@pytest.mark.parametrize("count", [0, MAX_HOSTS + 1])
def test_an_impossible_count_is_refused(count: int) -> None:
    """There is no lab without hosts, and a subnet ends."""
    with pytest.raises(LabError, match="hosts"):
        host_names(count)


def test_the_default_lab_has_the_first_subnet_and_others_never_take_it() -> None:
    """Its addresses are the same whether or not another lab came first."""
    assert allocate("demo", 2, "trixie").index == 1
    assert allocate("lab", 2, "trixie").hub.address == "10.77.0.10"


def test_labs_side_by_side_share_nothing() -> None:
    """Two labs differ in bridge, subnets, site, label and every address."""
    one, two = allocate("one", 3, "trixie"), allocate("two", 3, "trixie")
    for field in ("bridge", "subnet", "subnet6", "site", "domain", "directory", "registry"):
        assert getattr(one, field) != getattr(two, field)
    addresses = [(h.address, h.address6, h.machine, h.label) for h in (*one.hosts, *two.hosts)]
    assert len({part for host in addresses for part in host}) == 4 * 6


def test_a_second_up_keeps_the_index_and_only_adds_hosts() -> None:
    """Growing a lab leaves what runs where it is; asking for fewer hosts removes none."""
    first = allocate("demo", 2, "trixie")
    grown = allocate("demo", 4, "bookworm")
    assert (grown.index, grown.suite, grown.host_names[:2]) == (first.index, "trixie", first.host_names)
    assert allocate("demo", 2, "trixie").host_names == grown.host_names
    assert Lab.load("demo") == grown


def test_the_hub_is_always_the_current_suite() -> None:
    """`--suite` is for the hosts under test; the hub only serves them."""
    lab = allocate("old", 2, "bookworm")
    assert [host.suite for host in lab.hosts] == ["trixie", "bookworm"]


def test_every_interface_name_fits_the_kernel() -> None:
    """An interface's name has at most 15 characters, also in the last lab with the most hosts."""
    names = [host.interface for host in Lab("z", 99, "trixie", host_names(MAX_HOSTS)).hosts]
    assert max(map(len, names)) <= 15
    assert len(set(names)) == MAX_HOSTS


@pytest.mark.parametrize("name", ["", "Lab", "1st", "a/b", "..", "a-", "a" * 21, "a b"])
def test_a_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    """Names become paths, labels and DNS names."""
    with pytest.raises(LabError, match="no name for a lab"):
        allocate(name, 1, "trixie")


@pytest.mark.parametrize(("name", "site"), [("lab", "lab"), ("lab-x", "lab-x"), ("demo", "lab-demo")])
def test_site_files_have_names_that_git_ignores(name: str, site: str) -> None:
    """.gitignore knows lab.yml and lab-*."""
    assert Lab(name, 0, "trixie", ("hub",)).site == site


def test_an_unknown_lab_or_host_names_the_next_step() -> None:
    """The error of a typing mistake helps."""
    with pytest.raises(LabError, match="callfleet lab up --name nope"):
        Lab.load("nope")
    with pytest.raises(LabError, match="hub, eu1-a"):
        allocate("demo", 2, "trixie").host("eu1-z")


def test_names_are_listed_without_what_is_being_deleted(state: Path) -> None:
    """A directory that `down` is deleting is no lab any more."""
    allocate("demo", 1, "trixie")
    (state / "labs" / ".trash-old").mkdir()
    assert all_names() == ["demo"]


def test_a_lock_that_is_held_is_refused_not_waited_for(tmp_path: Path) -> None:
    """Two runs on one lab would undo each other's work."""
    with (
        locked(tmp_path / "lock"),
        pytest.raises(LabError, match="busy"),
        locked(tmp_path / "lock", wait=False, busy="busy"),
    ):
        pass
    with locked(tmp_path / "lock", wait=False):
        pass
