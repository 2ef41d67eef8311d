"""What a leaving host still holds, and what a wipe takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from renderings import expected, shipped

from callfleet.leaving import Held, held, look, lost, stop, wipe


def test_what_is_left_is_counted_by_the_host_itself(tmp_path: Path) -> None:
    """Results by the brand's pattern, recordings with their size; run for real, below another root."""
    site = shipped("prod")
    text = look(site)
    for folder in ("/opt/stacks", "/var/lib"):
        text = text.replace(folder, f"{tmp_path}{folder}")

    def asked() -> Held:
        return held(subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, check=True).stdout)

    assert asked() == Held(False, 0, 0, 0)
    state = tmp_path / "var/lib" / site.brand.stack
    for name, content in {
        "outbox/1--a.json": "{}", "outbox/events.jsonl": "", "recordings/x/1.wav": "123", "recordings/2.wav": "4567",
    }.items():  # fmt: skip
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text(content)
    stack = tmp_path / "opt/stacks" / site.brand.stack
    stack.mkdir(parents=True)
    (stack / "stack.json").write_text("{}")
    assert asked() == Held(True, 1, 2, 7)


@pytest.mark.parametrize("answer", ["", "stack", "stack\nx\n0 0", "stack\n0\n0"])
def test_an_answer_that_is_cut_off_is_none(answer: str) -> None:
    """Never taken for an empty host."""
    with pytest.raises(ValueError):  # noqa: PT011 - whichever
        held(answer)


def test_a_wipe_names_all_that_was_laid_down_and_an_operators_own_file_not() -> None:
    """Every file and unit of the host's expected state; daemon.json stays, packages are only let go."""
    site = shipped("prod")
    made = expected(site, "eu1-a")
    text = wipe(made, site)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    for path in ("/etc/callfleet/firewall.nft", "/usr/local/sbin/slotctl", "/etc/systemd/system/stack@.service"):
        assert path in text
    assert "rm -f -- " in text
    assert "/etc/docker/daemon.json" not in text
    assert "apt-get" not in text
    assert f"/var/lib/{site.brand.stack}" in text
    subprocess.run(["sh", "-n"], input=stop(site), text=True, check=True)


def test_what_may_be_lost_is_listed() -> None:
    """Calls, results, recordings; and how many calls if the ingress tells."""
    site = shipped("prod")
    lines = lost(site.host("eu1-a"), site, 3)
    assert "3 calls" in lines[0]
    assert len(lines) == 3
    assert "calls that were on" in lost(site.host("eu1-a"), site, None)[0]
