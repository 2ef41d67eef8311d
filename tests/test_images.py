"""The image builder: the same input gives the same digests, and what it writes is an OCI layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lab.images import REPOS
from lab.images.build import (
    STANDIN_SOURCE,
    VARIANTS,
    BuildError,
    Layer,
    app_tar,
    base_key,
    build,
    mirror,
    pack_layer,
    write_layout,
)


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Layer, Layer]:
    """A tiny base and the real code layer."""
    base = io.BytesIO()
    with tarfile.open(fileobj=base, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("base"))
    base.seek(0)
    return pack_layer(base, tmp_path / "base.tar.gz"), pack_layer(app_tar(STANDIN_SOURCE), tmp_path / "app.tar.gz")


def manifests(layout: Path) -> dict[str, str]:
    """Digest of each reference."""
    index = json.loads((layout / "index.json").read_text())
    return {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in index["manifests"]}


def blob(layout: Path, digest: str) -> Any:
    """A JSON blob."""
    return json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_text())


def test_every_repository_refers_to_an_image() -> None:
    """No tag of the lab points at nothing, and no image is built for nothing."""
    assert set(REPOS.values()) == set(VARIANTS)


def test_every_blob_is_what_its_name_says(layers: tuple[Layer, Layer], tmp_path: Path) -> None:
    """Names are the contents' hashes, sizes are right, and diff ids are those of the unpacked layers."""
    write_layout(tmp_path / "oci", *layers)
    for path in (tmp_path / "oci" / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    for ref, digest in manifests(tmp_path / "oci").items():
        manifest = blob(tmp_path / "oci", digest)
        config = blob(tmp_path / "oci", manifest["config"]["digest"])
        assert config["config"]["Entrypoint"] == list(VARIANTS[ref].entrypoint)
        for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
            packed = (tmp_path / "oci" / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")).read_bytes()
            assert layer["size"] == len(packed)
            assert diff_id == f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"


def test_the_same_input_gives_the_same_digests(layers: tuple[Layer, Layer], tmp_path: Path) -> None:
    """Twice the same code, copied in between so that times and order on disk differ."""
    copied = tmp_path / "copy"
    shutil.copytree(STANDIN_SOURCE, copied)
    (copied / "__pycache__").mkdir(exist_ok=True)
    (copied / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    again = pack_layer(app_tar(copied), tmp_path / "again.tar.gz")
    assert again.digest == layers[1].digest
    write_layout(tmp_path / "one", layers[0], layers[1])
    write_layout(tmp_path / "two", layers[0], again)
    assert manifests(tmp_path / "one") == manifests(tmp_path / "two")


def test_other_code_gives_other_digests_and_no_old_blob_stays(layers: tuple[Layer, Layer], tmp_path: Path) -> None:
    """A changed file changes every stand-in, leaves haproxy and redis as they are, and the layout does not grow."""
    copied = tmp_path / "copy"
    shutil.copytree(STANDIN_SOURCE, copied)
    (copied / "extra.py").write_text("")
    write_layout(tmp_path / "oci", *layers)
    before, blobs_before = manifests(tmp_path / "oci"), len(list((tmp_path / "oci/blobs/sha256").iterdir()))
    write_layout(tmp_path / "oci", layers[0], pack_layer(app_tar(copied), tmp_path / "new.tar.gz"))
    after = manifests(tmp_path / "oci")
    assert {ref for ref in VARIANTS if before[ref] == after[ref]} == {"haproxy", "redis"}
    assert len(list((tmp_path / "oci/blobs/sha256").iterdir())) == blobs_before


def test_the_variants_are_different_images(layers: tuple[Layer, Layer], tmp_path: Path) -> None:
    """A rollout from one to the next must see another digest."""
    write_layout(tmp_path / "oci", *layers)
    assert len(set(manifests(tmp_path / "oci").values())) == len(VARIANTS)


def test_a_cached_base_is_not_built_again(
    layers: tuple[Layer, Layer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base in the cache no package is fetched; `force` asks for a new one."""
    base = layers[0]
    packed = tmp_path / f"base-{base_key()}.tar.gz"
    base.path.rename(packed)
    packed.with_suffix(".json").write_text(json.dumps({"digest": base.digest, "diff_id": base.diff_id}))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "standin" in manifests(build(tmp_path))
    with pytest.raises(BuildError, match="apt-get install mmdebstrap"):
        build(tmp_path, force=True)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "sources.list.d/d.sources",
            "Types: deb\n# a note\nURIs: http://mirror.example.com/debian\nSuites: trixie\nSigned-By: /k.gpg\n",
            ["--keyring=/k.gpg", "http://mirror.example.com/debian"],
        ),
        (
            "sources.list",
            "deb http://mirror.example.com/other x main\ndeb [a=b] http://mirror.example.com/debian/ trixie main\n",
            ["http://mirror.example.com/debian/"],
        ),
    ],
)
def test_the_mirror_is_the_machines_own(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    """Both forms of apt sources are read."""
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(content)
    assert mirror(tmp_path) == expected


def test_no_mirror_is_a_clear_error(tmp_path: Path) -> None:
    """The message names the directory and the next step."""
    with pytest.raises(BuildError, match="no Debian mirror in the apt sources; next:"):
        mirror(tmp_path)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_every_image(layers: tuple[Layer, Layer], tmp_path: Path) -> None:
    """The tool that pushes the images understands the layout."""
    write_layout(tmp_path / "oci", *layers)
    for ref, digest in manifests(tmp_path / "oci").items():
        command = ["skopeo", "inspect", f"oci:{tmp_path / 'oci'}:{ref}"]
        seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert seen["Digest"] == digest
