"""The lab's own image registry, on the hub: Debian's docker-registry with TLS, a password, and the stand-in images.

A filled storage directory is cached, so that only the first hub after a change of the images is pushed to.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bcrypt

from callfleet.secrets import write_private
from lab import hosts, paths
from lab.errors import LabError
from lab.locks import locked
from lab.model import REGISTRY_PORT, Lab
from lab.mounts import delete
from lab.tool import tool

Say = Callable[[str], None]

USERNAME = "callfleet"
STORAGE = "var/lib/docker-registry"
CONFIG_DIR = "etc/docker/registry"
START_SECONDS = 90
MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
CONFIG = f"""version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: /{STORAGE}}}
  delete: {{enabled: true}}
http:
  addr: ":{REGISTRY_PORT}"
  tls: {{certificate: /{CONFIG_DIR}/registry.pem, key: /{CONFIG_DIR}/registry.pem}}
auth:
  htpasswd: {{realm: callfleet lab, path: /{CONFIG_DIR}/htpasswd}}
"""


def prepare(lab: Lab, layer: Path) -> None:
    """Configure the registry on a hub that has not booted yet, filled from the cache if these images are in it.

    `layer` is the root filesystem with the registry's user in it.
    """
    own = lab.hub.upper
    entry = next(
        line for line in (layer / "etc/passwd").read_text().splitlines() if line.startswith("docker-registry:")
    )
    uid, gid = (int(part) for part in entry.split(":")[2:4])
    password = bcrypt.hashpw(lab.secret("registry_password").read_bytes(), bcrypt.gensalt(4)).decode()
    config = own / CONFIG_DIR
    config.mkdir(parents=True, exist_ok=True)
    (config / "config.yml").write_text(CONFIG)
    write_private(config / "htpasswd", f"{USERNAME}:{password}\n".encode())
    write_private(config / "registry.pem", lab.tls("registry.pem").read_bytes())
    for name in ("htpasswd", "registry.pem"):
        os.chown(config / name, uid, gid)
    storage = own / STORAGE
    storage.mkdir(parents=True, exist_ok=True)
    filled = newest_storage()
    if filled:
        copy_storage(filled, storage)
    for path in [storage, *storage.rglob("*")]:
        os.chown(path, uid, gid)


def sync(lab: Lab, layout: Path, repos: dict[str, str], say: Say) -> dict[str, str]:
    """Make the registry hold every `repository:tag` of `repos`; returns their digests. Pushes what is missing."""
    wanted = layout_digests(layout)
    wait_until_up(lab)
    digests = {name: wanted[ref] for name, ref in repos.items()}
    missing = [name for name, digest in digests.items() if remote_digest(lab, name) != digest]
    if missing:
        say(f"pushing {len(missing)} images to {lab.registry}")
    for name in missing:
        pushed = push(lab, layout, name, ref=repos[name])
        if pushed != digests[name]:
            raise LabError(f"{name} was pushed as {pushed}, not as {digests[name]}")
    if missing:
        keep_storage(lab, digests)
    return digests


def push(lab: Lab, layout: Path, name: str, *, ref: str = "") -> str:
    """Push one image of an OCI layout as `repository:tag`; returns its digest. `ref` is its name in the layout."""
    ref = ref or name.rpartition(":")[2]
    with tempfile.TemporaryDirectory(prefix="callfleet-lab-") as folder:
        login = base64.b64encode(_login(lab).encode()).decode()
        write_private(Path(folder) / "auth.json", json.dumps({"auths": {lab.registry: {"auth": login}}}).encode())
        certificates = Path(folder) / "certs"
        certificates.mkdir()
        shutil.copy(lab.tls("ca.pem"), certificates / "ca.crt")
        digest = Path(folder) / "digest"
        options = ["--dest-authfile", f"{folder}/auth.json", "--dest-cert-dir", str(certificates)]
        source, target = f"oci:{layout}:{ref}", f"docker://{lab.registry}/{name}"
        tool("skopeo", "--insecure-policy", "copy", "--quiet", *options, "--digestfile", str(digest), source, target)
        return digest.read_text().strip()


def remote_digest(lab: Lab, name: str) -> str | None:
    """Digest of `repository:tag` as the registry has it, None if it has none. Raises LabError on another answer."""
    repository, _, tag = name.rpartition(":")
    status, digest = _head(lab, f"/v2/{repository}/manifests/{tag}")
    if status not in (200, 404):
        raise LabError(f"the registry at {lab.registry} answered {status} for {name}", "callfleet lab ssh hub")
    return digest if status == 200 else None


def wait_until_up(lab: Lab) -> None:
    """Until the registry takes our password."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            status, _ = _head(lab, "/v2/")
            break
        except OSError as error:
            if time.monotonic() > deadline:
                why = hosts.run(lab.hub, "journalctl -u docker-registry -n 20 --no-pager", check=False).stdout
                raise LabError(f"the registry at {lab.registry} does not answer ({error}):\n{why}") from error
            time.sleep(0.1)
    if status != 200:
        raise LabError(f"the registry at {lab.registry} answers {status} to its password")


def layout_digests(layout: Path) -> dict[str, str]:
    """Manifest digest of each reference in an OCI layout."""
    index = json.loads((layout / "index.json").read_text())
    name = "org.opencontainers.image.ref.name"
    return {entry["annotations"][name]: entry["digest"] for entry in index["manifests"]}


def keep_storage(lab: Lab, digests: dict[str, str]) -> None:
    """Cache the hub's filled storage under what is in it; older ones are dropped."""
    key = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
    with locked(paths.cache() / "registry.lock"):
        target = paths.cache() / f"registry-{key}"
        if target.exists():
            return
        candidate = paths.cache() / ".building-registry"
        delete(candidate)
        copy_storage(lab.hub.upper / STORAGE, candidate)
        candidate.rename(target)
        for other in paths.cache().glob("registry-*"):
            if other.is_dir() and other != target:
                delete(other)


def newest_storage() -> Path | None:
    """The cached storage, if there is one."""
    found = [path for path in paths.cache().glob("registry-*") if path.is_dir()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def copy_storage(source: Path, target: Path) -> None:
    """Copy a storage directory: blobs, which never change, as hard links; the links to them, which do, as files."""
    for path in sorted(source.rglob("*")):
        if "_uploads" in path.parts:
            continue
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif path.name == "data":
            with suppress(FileExistsError):
                os.link(path, copy)
        else:
            shutil.copyfile(path, copy)


def _head(lab: Lab, path: str) -> tuple[int, str | None]:
    context = ssl.create_default_context(cafile=str(lab.tls("ca.pem")))
    link = http.client.HTTPSConnection(lab.hub.address, REGISTRY_PORT, timeout=5, context=context)
    try:
        login = base64.b64encode(_login(lab).encode()).decode()
        link.request("HEAD", path, headers={"Authorization": f"Basic {login}", "Accept": MANIFEST_TYPES})
        answer = link.getresponse()
        answer.read()
        return answer.status, answer.getheader("Docker-Content-Digest")
    finally:
        link.close()


def _login(lab: Lab) -> str:
    return f"{USERNAME}:{lab.secret('registry_password').read_text()}"
