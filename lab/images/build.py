"""Build the lab's images as one OCI layout directory, without Docker.

Two layers: a base made from Debian packages (slow, cached by what it is made of) and the stand-ins' code (a small,
deterministic tar).  The same base and the same code give the same digests.

    skopeo copy oci:<directory>:<ref> docker://<registry>/<repository>:<tag>    for each entry of REPOS
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUITE = "trixie"
PACKAGES = (
    "ca-certificates",
    "haproxy",
    "python3-fastapi",
    "python3-httpx",
    "python3-redis",
    "python3-uvicorn",
    "python3-websockets",
    "redis-server",
)
# What no stand-in reads; it is a third of the unpacked size.
STRIPPED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/var/cache/*",
    "/var/lib/apt/lists/*",
    "/var/log/*",
)
EPOCH = "1735689600"  # every file newer than this (2025-01-01) gets this time: the base does not depend on the hour
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
STANDIN_SOURCE = Path(__file__).parent / "standin"
APP_ROOT = "opt/standin"

MEDIA = "application/vnd.oci.image."
LAYER_TYPE = f"{MEDIA}layer.v1.tar+gzip"


@dataclass(frozen=True)
class Variant:
    """One image of the layout: what differs from the others, by name."""

    entrypoint: tuple[str, ...]
    version: str
    env: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    with_app: bool = True


STANDIN = ("python3", "-m", "standin")
VARIANTS = {
    "standin": Variant(STANDIN, "1"),
    "standin-next": Variant(STANDIN, "next"),
    "standin-broken": Variant(STANDIN, "broken", {"STANDIN_BROKEN": "1"}),
    "haproxy": Variant(("haproxy",), "1", stop_signal="SIGUSR1", with_app=False),
    "redis": Variant(("redis-server",), "1", with_app=False),
}

ROLE_REPOSITORIES = ("cxb-core-worker", "cxb-api", "cxb-dialler", "cxb-console")
# repository:tag -> reference in the layout; "next" is another digest of the same program, "broken" fails its calls.
REPOS: dict[str, str] = {
    **{f"{repository}:1": "standin" for repository in (*ROLE_REPOSITORIES, "mongo-standin", "minio-standin")},
    **{f"{repository}:next": "standin-next" for repository in ROLE_REPOSITORIES},
    "cxb-core-worker:broken": "standin-broken",
    "haproxy:1": "haproxy",
    "redis:1": "redis",
}


class BuildError(RuntimeError):
    """The image could not be built; the message names the step and the next command."""


@dataclass(frozen=True)
class Layer:
    """A compressed layer on disk and its two digests (`sha256:...`)."""

    path: Path
    digest: str
    diff_id: str
    size: int


def build(cache_dir: Path, *, force: bool = False) -> Path:
    """Make the OCI layout under `cache_dir` and return its directory.

    Reuses the cached base unless `force`; always rewrites the (small) rest.  Needs root, `mmdebstrap` and, for the
    base, the package mirror of this machine's own apt sources.  Raises BuildError.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    base = base_layer(cache_dir, force=force)
    app = pack_layer(app_tar(STANDIN_SOURCE), cache_dir / "app.tar.gz")
    layout = cache_dir / "oci"
    write_layout(layout, base, app)
    return layout


def base_key() -> str:
    """Hash of everything that the base layer is made from (but the mirror's state)."""
    made_from = json.dumps([SUITE, PACKAGES, STRIPPED, EPOCH, architecture()])
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def architecture() -> str:
    """This machine's architecture in the words of Debian and OCI (both say amd64, arm64)."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def base_layer(cache_dir: Path, *, force: bool) -> Layer:
    """The cached base, or a new one from Debian packages."""
    packed = cache_dir / f"base-{base_key()}.tar.gz"
    known = packed.with_suffix(".json")
    if not force and packed.exists() and known.exists():
        digests = json.loads(known.read_text())
        return Layer(packed, digests["digest"], digests["diff_id"], packed.stat().st_size)
    known.unlink(missing_ok=True)
    tar = cache_dir / f"base-{base_key()}.tar"
    try:
        debootstrap(tar)
        layer = pack_layer(tar.open("rb"), packed)
    finally:
        tar.unlink(missing_ok=True)
    known.write_text(json.dumps({"digest": layer.digest, "diff_id": layer.diff_id}))
    return layer


def debootstrap(tar: Path) -> None:
    """Install PACKAGES into a root directory and write it as `tar`."""
    if not shutil.which("mmdebstrap"):
        raise BuildError("mmdebstrap is not installed here; next: apt-get install mmdebstrap skopeo")
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in STRIPPED if pattern.startswith("/usr/share/")]
    emptied = " ".join(f'"$1"{pattern}' for pattern in STRIPPED if pattern.startswith("/var/"))
    command = [
        "mmdebstrap",
        "--variant=essential",
        f"--include={','.join(PACKAGES)}",
        *excluded,
        f"--customize-hook=rm -rf {emptied}",
        SUITE,
        str(tar),
        *mirror(),
    ]
    env = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"mmdebstrap failed ({done.returncode}): {done.stderr.strip()[-2000:]}")


def mirror(sources: Path = Path("/etc/apt")) -> list[str]:
    """The Debian mirror of this machine's own apt sources, as mmdebstrap arguments (never a name from this code)."""
    for path in sorted(sources.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text()):
            uri = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
            if uri and uri.group(1).rstrip("/").endswith("/debian"):
                key = re.search(r"^Signed-By:\s*(/\S+)", stanza, re.MULTILINE)
                return [*([f"--keyring={key.group(1)}"] if key else []), uri.group(1)]
    for path in [sources / "sources.list", *sorted(sources.glob("sources.list.d/*.list"))]:
        if path.exists():
            entry = re.search(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+/debian/?)\s", path.read_text(), re.MULTILINE)
            if entry:
                return [entry.group(1)]
    raise BuildError(f"{sources}: no Debian mirror in the apt sources; next: add a deb822 source for Debian")


def app_tar(source: Path) -> io.BytesIO:
    """The stand-ins' code as a tar that depends on nothing but names and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in ("opt", APP_ROOT):
            tar.addfile(entry(directory, directory=True))
        for path in [source, *sorted(source.rglob("*"))]:
            if "__pycache__" in path.parts:
                continue
            name = f"{APP_ROOT}/standin/{path.relative_to(source)}".removesuffix("/.")
            if path.is_dir():
                tar.addfile(entry(name, directory=True))
            else:
                content = path.read_bytes()
                tar.addfile(entry(name, size=len(content)), io.BytesIO(content))
    out.seek(0)
    return out


def entry(name: str, *, directory: bool = False, size: int = 0) -> tarfile.TarInfo:
    """A tar header owned by root, with time 0."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.mode = 0o755 if directory else 0o644
    info.size = size
    return info


def pack_layer(tar: io.BufferedReader | io.BytesIO, path: Path) -> Layer:
    """Compress a tar (level 1, time 0) to `path`, taking both digests on the way."""
    plain = hashlib.sha256()
    temporary = path.with_name(path.name + ".new")
    with tar, temporary.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        while block := tar.read(1 << 20):
            plain.update(block)
            packed.write(block)
    temporary.rename(path)
    with path.open("rb") as done:
        digest = hashlib.file_digest(done, "sha256").hexdigest()
    return Layer(path, f"sha256:{digest}", f"sha256:{plain.hexdigest()}", path.stat().st_size)


def write_layout(layout: Path, base: Layer, app: Layer) -> None:
    """Write blobs, index and marker; blobs that nothing refers to any more are removed."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    used = {place_layer(blobs, layer) for layer in (base, app)}
    manifests = []
    for ref, variant in VARIANTS.items():
        layers = [base, app] if variant.with_app else [base]
        config = place_json(blobs, f"{MEDIA}config.v1+json", image_config(variant, layers))
        manifest = place_json(
            blobs,
            f"{MEDIA}manifest.v1+json",
            {
                "schemaVersion": 2,
                "mediaType": f"{MEDIA}manifest.v1+json",
                "config": config,
                "layers": [{"mediaType": LAYER_TYPE, "digest": x.digest, "size": x.size} for x in layers],
            },
        )
        used |= {blob_name(config["digest"]), blob_name(manifest["digest"])}
        manifests.append({**manifest, "annotations": {"org.opencontainers.image.ref.name": ref}})
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": f"{MEDIA}index.v1+json", "manifests": manifests}
    replace(layout / "index.json", json.dumps(index, sort_keys=True).encode())
    for blob in blobs.iterdir():
        if blob.name not in used:
            blob.unlink()


def image_config(variant: Variant, layers: list[Layer]) -> dict[str, Any]:
    """The image's run configuration; it says in a label and in the environment that it is a stand-in."""
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"/{APP_ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "STANDIN_VERSION": variant.version,
        **variant.env,
    }
    run: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Entrypoint": list(variant.entrypoint),
        "WorkingDir": "/",
        "Labels": {
            "org.opencontainers.image.title": "callfleet lab stand-in" if variant.with_app else variant.entrypoint[0],
            "org.opencontainers.image.version": variant.version,
        },
    }
    if variant.stop_signal:
        run["StopSignal"] = variant.stop_signal
    return {
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "callfleet lab"} for _ in layers],
    }


def place_layer(blobs: Path, layer: Layer) -> str:
    """Hard-link a packed layer into the layout (a copy where that is impossible); returns the blob's name."""
    name = blob_name(layer.digest)
    temporary = blobs / f".{name}"
    temporary.unlink(missing_ok=True)
    try:
        os.link(layer.path, temporary)
    except OSError:
        shutil.copyfile(layer.path, temporary)
    temporary.replace(blobs / name)
    temporary.unlink(missing_ok=True)  # renaming one hard link over another of the same file leaves both names
    return name


def place_json(blobs: Path, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
    """Store a JSON document as a blob and return its descriptor."""
    content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    name = hashlib.sha256(content).hexdigest()
    replace(blobs / name, content)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(content)}


def blob_name(digest: str) -> str:
    """The file name of a blob."""
    return digest.removeprefix("sha256:")


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never half."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.rename(path)
