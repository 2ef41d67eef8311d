"""docs/plan-schema.md names every key of the documents that it describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from site_files import REPOSITORY, valid, write_site

from callfleet import health, report
from callfleet.actual import ProxyProcess, Slot, SlotWord
from callfleet.commands.plan import finish
from callfleet.pyinfra_session import Ended
from callfleet.site import load_site
from tests.test_health import ALIVE, RUNNING, container, looked
from tests.test_report import document
from tests.test_report import looked as planned


def keys(value: Any) -> Iterator[str]:
    """Every key of a document, at any depth; names of states are none."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from () if key == "drained" or (key == "slots" and isinstance(each, dict)) else keys(each)
    elif isinstance(value, list):
        for each in value:
            yield from keys(each)


def status(folder: Path) -> dict[str, Any]:
    """A status with something of each kind in it."""
    site = load_site(write_site(folder, valid()))
    stack = site.brand.stack
    full = replace(
        ALIVE,
        slots={stack: (Slot(1, SlotWord.ON_A_CALL, 1, None, None, None, None),)},
        drained={stack: {}},
        containers=(container(stack, "worker-1"),),
        proxies={f"/run/{stack}/proxy/admin.sock": RUNNING},
        proxy_processes={f"/run/{stack}/proxy/master.sock": (ProxyProcess(5, "worker", 3, True),)},
        certificates={"/x.pem": None},
    )
    found: dict[str, Any] = health.document(site, [looked(site, "a", full)], {"b": "no route"})
    return found


def applied(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `apply --json` prints."""
    with pytest.raises(SystemExit):
        finish(load_site(REPOSITORY / "inventories" / "prod.yml"), {"plan": "1"}, [Ended("a", "changed")], "", True)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_every_key_of_plan_apply_and_status_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control: a key that nobody described is missed."""
    text = (REPOSITORY / "docs" / "plan-schema.md").read_text()
    made = document(planned(SlotWord.ON_A_CALL, label="c0", secret=b"1", wanted=b"2"), c="no route")
    every = {*keys(made), *keys(status(tmp_path)), *keys(applied(capsys))}
    assert {"because", "diff", "age", "old", "tag", "outcome"} <= every
    assert {key for key in every if not _described(text, key)} == set()
    assert not _described(text, "nosuch")
    assert f"| {report.SCHEMA}, `plan` |" in text


def _described(text: str, key: str) -> bool:
    """In backquotes, with or without its place."""
    return any(f"`{lead}{key}{tail}`" in text for lead in ("", ".", "..") for tail in ("", "[]"))
