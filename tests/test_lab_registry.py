"""The registry's cached storage: blobs are shared between labs, what a registry rewrites is not."""

from __future__ import annotations

import json
from pathlib import Path

from lab.registry import CONFIG, copy_storage, layout_digests, newest_storage


def test_blobs_are_linked_and_tags_are_copied(tmp_path: Path) -> None:
    """A registry writes tag links in place: one lab's push must not change another's tag."""
    source, target = tmp_path / "source", tmp_path / "target"
    blob = source / "docker/registry/v2/blobs/sha256/ab/abc/data"
    tag = source / "docker/registry/v2/repositories/cxb-api/_manifests/tags/1/current/link"
    upload = source / "docker/registry/v2/repositories/cxb-api/_uploads/1/data"
    for path in (blob, tag, upload):
        path.parent.mkdir(parents=True)
        path.write_text("first")
    copy_storage(source, target)
    tag.write_text("second")
    assert (target / blob.relative_to(source)).samefile(blob)
    assert (target / tag.relative_to(source)).read_text() == "first"
    assert not (target / upload.relative_to(source)).exists()


def test_digests_come_from_the_layout_index(tmp_path: Path) -> None:
    """The digest that hosts will pull is known before anything is pushed."""
    entry = {"digest": "sha256:1", "annotations": {"org.opencontainers.image.ref.name": "standin"}}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [entry]}))
    assert layout_digests(tmp_path) == {"standin": "sha256:1"}


def test_no_cached_storage_is_not_an_error(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The first hub starts with an empty registry; a lock file of the same prefix is no storage."""
    monkeypatch.setenv("CALLFLEET_LAB_DIR", str(tmp_path))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "registry-x.lock").touch()
    assert newest_storage() is None


def test_the_registry_has_tls_and_a_password() -> None:
    """Neither may get lost from the configuration."""
    assert "tls:" in CONFIG
    assert "htpasswd:" in CONFIG
