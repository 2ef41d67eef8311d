"""The release file: what is pulled for a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from site_files import DIGEST, dump, valid_release

from callfleet.errors import SiteError
from callfleet.release import Release, load_release


def _release(**pin: str) -> Release:
    return Release.model_validate({"callfleet_release": 1, "release": "r", "images": {"cxb-api": pin}})


@pytest.mark.parametrize(
    ("pin", "registry", "reference"),
    [
        ({"repository": "cxb/api", "tag": "1", "digest": DIGEST}, "r.test:5000", f"r.test:5000/cxb/api@{DIGEST}"),
        ({"repository": "cxb/api", "digest": DIGEST}, None, f"cxb/api@{DIGEST}"),
        ({"tag": "1"}, "r.test", "r.test/cxb-api:1"),
        ({"repository": "docker.io/library/redis", "tag": "7"}, "r.test", "docker.io/library/redis:7"),
        ({"repository": "10.0.0.1:5000/x", "tag": "7"}, "r.test", "10.0.0.1:5000/x:7"),
        ({"repository": "localhost/x", "tag": "7"}, "r.test", "localhost/x:7"),
    ],
)
def test_a_digest_wins_and_a_full_repository_keeps_its_registry(
    pin: dict[str, str], registry: str | None, reference: str
) -> None:
    """References are by digest where there is one, below the site's registry unless they name their own."""
    assert _release(**pin).reference("cxb-api", registry) == reference


@pytest.mark.parametrize(
    ("pin", "path"),
    [
        ({"digest": "sha256:abc"}, "digest"),
        ({"digest": "SHA256:" + "0" * 64}, "digest"),
        ({"digest": "0" * 64}, "digest"),
        ({"repository": "CXB/api", "tag": "1"}, "repository"),
        ({"repository": "cxb/api:1", "tag": "1"}, "repository"),
        ({"repository": "https://r.test/api", "tag": "1"}, "repository"),
        ({"tag": "a tag"}, "tag"),
        ({"tag": 7}, "tag"),
        ({"tags": "7"}, "tags"),
        ({"repository": "cxb/api"}, ""),
        ("cxb/api:1", ""),
    ],
)
def test_a_wrong_pin_is_named(tmp_path: Path, pin: Any, path: str) -> None:
    """Each wrong pin is refused at its place."""
    release = valid_release()
    release["images"]["cxb-api"] = pin
    dump(tmp_path / "acme.release.yml", release)
    with pytest.raises(SiteError) as caught:
        load_release(tmp_path / "acme.release.yml")
    assert [each.path for each in caught.value.errors] == [f"images.cxb-api.{path}".rstrip(".")]
    assert caught.value.errors[0].line


def test_another_format_version_is_refused_alone(tmp_path: Path) -> None:
    """A newer format gives one message, not what follows from its new keys."""
    dump(tmp_path / "r.yml", {"callfleet_release": 2, "everything": "new"})
    with pytest.raises(SiteError) as caught:
        load_release(tmp_path / "r.yml")
    assert "version 1" in str(caught.value.errors[0])


def test_provenance_is_kept(tmp_path: Path) -> None:
    """When, from what and by whom are plain text, times included."""
    release = valid_release()
    text = "callfleet_release: 1\nrelease: '1'\nimages:\n  x: {tag: '1', built: 2026-11-20T06:00:00Z, commit: '0123'}\n"
    dump(tmp_path / "r.yml", text)
    pin = load_release(tmp_path / "r.yml").images["x"]
    assert (pin.built, pin.commit, pin.pinned) == ("2026-11-20T06:00:00Z", "0123", False)
    assert release["images"]["redis"]["digest"] == DIGEST
