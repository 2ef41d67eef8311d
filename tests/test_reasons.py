"""Why a container is made anew, told from two Compose files."""

from __future__ import annotations

import pytest
import yaml

from callfleet.reasons import service_reasons

SPEC = {
    "image": "registry/core@sha256:aa",
    "environment": {"A": "1", "B": "2"},
    "mem_limit": "512m",
    "volumes": ["/a:/b"],
    "labels": {"callfleet.config": "x"},
}


def compose(**changed: object) -> bytes:
    """A Compose file of one service."""
    return yaml.safe_dump({"services": {"worker-1": SPEC | changed}}).encode()


def test_each_difference_is_named_with_old_and_new() -> None:
    """Image, one environment key, a limit, a list; labels follow from these and are left out."""
    new = compose(
        image="registry/core@sha256:bb",
        environment={"A": "1", "B": "3", "C": "4"},
        mem_limit="1024m",
        volumes=["/a:/b", "/c:/d"],
        labels={"callfleet.config": "y"},
    )
    assert service_reasons(compose(), new, "worker-1") == [
        "environment B: 2 -> 3",
        "environment C: none -> 4",
        "image: registry/core@sha256:aa -> registry/core@sha256:bb",
        "mem_limit: 512m -> 1024m",
        "volumes: /a:/b -> /a:/b, /c:/d",
    ]


def test_what_goes_away_is_named() -> None:
    """A key that is no longer there becomes none."""
    assert service_reasons(compose(), compose(environment={"A": "1"}), "worker-1") == ["environment B: 2 -> none"]


@pytest.mark.parametrize("before", [None, b"", b"\xff\xfe", b"services: 5", b"{", b"services: {other: {}}", b"- 1"])
def test_an_old_file_that_cannot_tell_says_nothing(before: bytes | None) -> None:
    """Missing, garbage, edited by hand: no reason is made up."""
    assert service_reasons(before, compose(), "worker-1") == []


def test_long_values_are_cut() -> None:
    """A line stays a line."""
    (line,) = service_reasons(compose(), compose(mem_limit="x" * 500), "worker-1")
    assert len(line) < 200
