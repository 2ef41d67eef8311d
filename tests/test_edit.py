"""Edits of site files: only the intended lines change, comments and order stay, what is read back is what was meant."""

from __future__ import annotations

import copy
import difflib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from site_files import REPOSITORY, valid, write_site

from callfleet.errors import CallfleetError, SiteError
from callfleet.site import load_site
from callfleet.site.edit import (
    EditError,
    add_fleet,
    add_host,
    remove_fleet,
    remove_host,
    remove_key,
    replace_file,
    set_address,
    set_value,
    set_workers,
    write_text,
)
from lab.inventory import render_release, render_site
from lab.model import Lab

SHIPPED = {name: (REPOSITORY / "inventories" / f"{name}.yml").read_text() for name in ("prod", "staging", "local")}
LAB = render_site(Lab("lab", 0, "trixie", ("hub", "eu1-a", "eu1-b")))
FORMS = {**SHIPPED, "lab": LAB, "json": json.dumps(valid(), indent=1), "one line": json.dumps(valid())}
FLEETS = {"prod": "eu1", "staging": "st1", "local": "local", "lab": "eu1", "json": "eu1", "one line": "eu1"}


def read(text: str) -> dict[str, Any]:
    """The file as plain values."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return found


def diff(before: str, after: str) -> list[str]:
    """Lines that went and came."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[:2] in ("- ", "+ ")]


def test_a_host_is_added_in_three_lines_of_the_shipped_site() -> None:
    """In the form that its sisters have, behind them, and nothing else changes."""
    text = SHIPPED["prod"]
    after = add_host(text, "eu1", "eu1-c", {"address": "203.0.113.13", "workers": 16}, internal="file:c.pem")
    assert diff(text, after) == [
        "+       eu1-c: file:c.pem",
        "+       eu1-c:",
        "+         address: 203.0.113.13",
        "+         workers: 16",
    ]
    lines = after.splitlines()
    assert lines.index("      eu1-c:") < lines.index("  in1:")
    staging = SHIPPED["staging"]
    after = add_host(staging, "st1", "st1-c", {"address": "192.0.2.13", "workers": 4})
    assert diff(staging, after) == ["+       st1-c: {address: 192.0.2.13, workers: 4}"]


@pytest.mark.parametrize("form", FORMS)
def test_adding_and_removing_is_nothing(form: str) -> None:
    """In every form of file: what is read back has the host, the others are as before, and removal undoes it."""
    text, fleet = FORMS[form], FLEETS[form]
    entry = {"address": "2001:db8::7", "workers": 3, "public_name": "new.example.com"}
    after = add_host(
        text, fleet, "new", entry, internal="file:n.pem", certificate=("new.example.com", "env:NEW"),
        static_name=("new.example.com", "2001:db8::7"),
    )  # fmt: skip
    before, found = read(text), read(after)
    assert found["fleets"][fleet]["hosts"].pop("new") == entry
    assert found["tls"]["internal"]["hosts"].pop("new") == "file:n.pem"
    assert found["tls"]["certificates"].pop("new.example.com") == "env:NEW"
    assert found["names"].pop("new.example.com") == "2001:db8::7"
    if not found["names"] and "names" not in before:
        found.pop("names")
    assert found == before
    back = remove_key(after, ("fleets", fleet, "hosts", "new"))
    back = remove_key(back, ("tls", "internal", "hosts", "new"))
    back = remove_key(back, ("tls", "certificates", "new.example.com"))
    back = remove_key(back, ("names", "new.example.com"))
    back = back if "names" in before else remove_key(back, ("names",))
    assert back == text


def test_a_host_leaves_with_what_only_it_needed(tmp_path: Path) -> None:
    """Its entry, its internal certificate, its own certificate and static name; a shared certificate stays."""
    lab = tmp_path / "lab.yml"
    (tmp_path / "lab.release.yml").write_text(render_release({}, "cxbridge"))
    lab.write_text(LAB)
    after = remove_host(LAB, load_site(lab), "eu1-b")
    gone = diff(LAB, after)
    assert all(line.startswith("- ") and "eu1-b" in line for line in gone), gone
    assert len(gone) == 4
    assert [host.name for host in load_site(lab, after).fleet_hosts] == ["eu1-a"]
    prod = load_site(REPOSITORY / "inventories" / "prod.yml")
    gone = diff(SHIPPED["prod"], remove_host(SHIPPED["prod"], prod, "eu1-b"))
    assert gone == [
        "-       eu1-b: file:secrets/prod/internal-eu1-b.pem",
        "-       eu1-b:",
        "-         address: 203.0.113.12",
        "-         memory_mb: 8192",
    ]


def test_the_last_host_of_a_fleet_leaves_an_empty_fleet() -> None:
    """The fleet, its comments and its name stay."""
    prod = load_site(REPOSITORY / "inventories" / "prod.yml")
    after = remove_host(SHIPPED["prod"], prod, "in1-a")
    assert read(after)["fleets"]["in1"] == {"hosts": {}}
    assert "+     hosts: {}" in diff(SHIPPED["prod"], after)
    again = add_host(after, "in1", "in1-b", {"address": "192.0.2.22", "workers": 2}, internal="file:b.pem")
    assert read(again)["fleets"]["in1"]["hosts"] == {"in1-b": {"address": "192.0.2.22", "workers": 2}}


def test_one_value_changes_in_its_place() -> None:
    """Workers and address, with the comment behind them; workers that were a default become a line of their own."""
    prod = load_site(REPOSITORY / "inventories" / "prod.yml")
    text = SHIPPED["prod"]
    assert diff(text, set_workers(text, prod, "eu1-a", 6)) == [
        "-         workers: 16             # call slots; a change is rolled out without ending calls",
        "+         workers: 6             # call slots; a change is rolled out without ending calls",
    ]
    assert diff(text, set_workers(text, prod, "eu1-b", 6)) == ["+         workers: 6"]
    moved = diff(text, set_address(text, prod, "eu1-b", "2001:db8::12"))
    assert moved == ["-         address: 203.0.113.12", '+         address: "2001:db8::12"']


def test_a_fleet_comes_and_goes() -> None:
    """At the end of the fleets; removal leaves the file as it was."""
    for form, text in FORMS.items():
        after = add_fleet(text, "us1", "us1.calls.example.com")
        assert read(after)["fleets"]["us1"] == {"public_name": "us1.calls.example.com", "hosts": {}}, form
        assert remove_fleet(after, "us1") == text, form


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)


@settings(deadline=None, max_examples=40)
@given(names, names, st.sampled_from(["staging", "json"]))
def test_any_name_is_read_back_as_itself(fleet: str, host: str, form: str) -> None:
    """Numbers, `no` and `on` too: what was written is text when it is read."""
    text = FORMS[form]
    if fleet in read(text)["fleets"]:
        return
    after = set_value(add_fleet(text, fleet), ("fleets", fleet, "hosts", host), {"address": "192.0.2.9"})
    # As the site's reader takes keys: by their text.
    wanted = copy.deepcopy(read(text))
    wanted["fleets"][fleet] = {"hosts": {host: {"address": "192.0.2.9"}}}
    assert read(after) == wanted


def test_a_key_with_nothing_behind_it_is_filled() -> None:
    """`hosts:` alone, with or without a comment; null too."""
    for text in ("fleets:\n  eu1:\n    hosts:  # none yet\nhosts: {}\n", "fleets:\n  eu1:\n    hosts:\nhosts: {}\n"):
        after = set_value(text, ("fleets", "eu1", "hosts", "a"), {"address": "192.0.2.1"})
        assert read(after) == {"fleets": {"eu1": {"hosts": {"a": {"address": "192.0.2.1"}}}}, "hosts": {}}


def test_what_is_no_mapping_is_left_to_the_operator() -> None:
    """An error names the place; nothing is guessed."""
    with pytest.raises(EditError, match="fleets"):
        set_value("fleets: [a]\n", ("fleets", "eu1"), {})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Validated first, mode kept, and refused when somebody else wrote it meanwhile."""
    path = write_site(tmp_path, json.dumps(valid(), indent=1))
    path.chmod(0o640)
    before = path.read_text()
    after = set_workers(before, load_site(path), "a", 2)
    assert replace_file(path, before, after).host("a").workers == 2
    assert (path.read_text(), path.stat().st_mode & 0o777) == (after, 0o640)
    with pytest.raises(CallfleetError, match="changed by somebody else"):
        replace_file(path, before, before)
    with pytest.raises(SiteError, match="workers"):
        replace_file(path, after, set_workers(after, load_site(path), "a", 500))
    assert path.read_text() == after
    assert sorted(each.name for each in path.parent.iterdir()) == ["acme.release.yml", "acme.yml"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A site file kept elsewhere is written there."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("a\n")
    link.symlink_to(real)
    write_text(link, "a\n", "b\n")
    assert link.is_symlink()
    assert real.read_text() == "b\n"
