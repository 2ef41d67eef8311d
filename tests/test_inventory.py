"""A site as pyinfra sees it, and what pyinfra shows when the site is wrong: run as operators run it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from renderings import authority, certificate_only
from site_files import REPOSITORY, valid, write_site

from callfleet.inventory import groups, host_data, load, refuse_unedited
from callfleet.site import SiteError, load_site

WORD = "correct-horse-battery"


def _pyinfra(folder: Path, inventory: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "ADMIN_TOKEN": WORD}
    return subprocess.run(
        [sys.executable, "-m", "pyinfra", inventory, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def _with_inventory(folder: Path, site: object) -> Path:
    file = write_site(folder, site)
    shutil.copy(REPOSITORY / "inventories" / "prod.py", file.with_suffix(".py"))
    file.with_suffix(".known_hosts").write_text("")
    contents = {"core_secret": WORD.encode(), "ca.pem": certificate_only(authority().pem())}
    contents |= {f"{host}.pem": authority().issue(f"{host}.acme.test") for host in ("a", "b")}
    contents |= {"wildcard.pem": authority().issue("*.acme.test"), "i.pem": authority().issue("ingress", client=True)}
    for name, content in contents.items():
        file.with_name(name).write_bytes(content)
        file.with_name(name).chmod(0o600)
    (folder / "deploy.py").write_text(
        "from pyinfra.operations import server\nserver.shell(name='x', commands='true')\n"
    )
    return file


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port of this machine, and who connected to it."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                came.append(peer)
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _local(port: int) -> dict[str, Any]:
    site = valid() | {"stage": "local", "hosts": {}}
    site["ssh"] = {"port": port}
    site["fleets"]["eu1"]["hosts"] = {"a": {"address": "127.0.0.1", "roles": ["ingress", "app"]}}
    del site["tls"]["internal"]["hosts"]["b"]
    return site


def test_a_wrong_site_ends_pyinfra_before_it_connects(tmp_path: Path, listener: tuple[int, list[object]]) -> None:
    """Exit code 1, the message on stderr, no traceback, and nobody at the host's SSH port."""
    port, came = listener
    site = _local(port)
    site["core"]["workers_default"] = "four"
    _with_inventory(tmp_path, site)
    done = _pyinfra(tmp_path, "inventories/acme.py", "deploy.py")
    assert done.returncode == 1
    assert "core.workers_default" in done.stderr
    assert '"four"' in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert came == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wildcard.pem", b"\x30\x82\x01\xff\x00", "not UTF-8"),
        ("wildcard.pem", WORD.encode(), "not PEM"),
        ("ca.pem", b"", "an empty file"),
        ("i.pem", None, "there is no file"),
    ],
)
def test_a_certificate_of_no_use_ends_pyinfra_before_it_connects(
    tmp_path: Path, listener: tuple[int, list[object]], name: str, content: bytes | None, said: str
) -> None:
    """With the place in the site file and what is expected there, and nothing of what was found."""
    port, came = listener
    file = _with_inventory(tmp_path, _local(port)).with_name(name)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    done = _pyinfra(tmp_path, "inventories/acme.py", "deploy.py")
    assert done.returncode == 1
    assert said in done.stderr
    assert re.search(r"inventories/acme\.yml:[0-9]+: tls\.[a-z]+", done.stderr)
    assert "xpected one PEM" in done.stderr
    assert WORD not in done.stdout + done.stderr
    assert came == []


def test_a_right_site_is_connected_to(tmp_path: Path, listener: tuple[int, list[object]]) -> None:
    """The control of the test above: with the mistake gone, the same run does reach the SSH port."""
    port, came = listener
    _with_inventory(tmp_path, _local(port))
    _pyinfra(tmp_path, "inventories/acme.py", "deploy.py")
    assert came


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_a_shipped_site_says_what_to_edit(tmp_path: Path, name: str) -> None:
    """From the repository as it is, with any deploy file, pyinfra stops at the addresses of the documentation."""
    (tmp_path / "deploy.py").write_text("raise SystemExit('the deploy file was run')\n")
    done = _pyinfra(REPOSITORY, f"inventories/{name}.py", str(tmp_path / "deploy.py"))
    assert done.returncode == 1
    assert f"Edit these in {name}.yml first" in done.stderr
    assert f"inventories/{name}.yml:" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "was run" not in done.stdout + done.stderr


def test_a_missing_lab_says_how_to_make_one(tmp_path: Path) -> None:
    """inventories/lab.py without lab.yml is not a traceback either."""
    file = write_site(tmp_path, valid())
    shutil.copy(REPOSITORY / "inventories" / "lab.py", file.with_name("lab.py"))
    done = _pyinfra(tmp_path, "inventories/lab.py", "debug-inventory")
    assert done.returncode == 1
    assert "callfleet lab up" in done.stderr
    assert "Traceback" not in done.stderr


def test_pyinfra_can_print_the_inventory(tmp_path: Path) -> None:
    """Host data and group_data are plain values: debug-inventory works, and shows no secret's value."""
    _with_inventory(tmp_path, valid())
    done = _pyinfra(tmp_path, "inventories/acme.py", "debug-inventory")
    assert done.returncode == 0, done.stderr
    assert WORD not in done.stdout + done.stderr
    for word in ("10.1.0.11", "fleet_hosts", "fleet-eu1", "site_file"):
        assert word in done.stdout + done.stderr


def test_every_inventory_is_the_same_two_lines() -> None:
    """Nothing is decided in them."""
    for file in (REPOSITORY / "inventories").glob("*.py"):
        lines = [line for line in file.read_text().splitlines() if line]
        assert lines == ["from callfleet.inventory import load", "globals().update(load(__file__))"]


def test_groups_are_names_of_hosts(tmp_path: Path) -> None:
    """One group a role and one a fleet; the data is in `all`."""
    made = groups(load_site(write_site(tmp_path, valid())))
    assert [name for name, _ in made["all"]] == ["a", "b", "front", "app"]
    assert {name: hosts for name, hosts in made.items() if name != "all"} == {
        "fleet_hosts": ["a", "b"],
        "ingress_hosts": ["front"],
        "app_hosts": ["app"],
        "fleet-eu1": ["a", "b"],
    }


def test_host_keys_are_always_checked_and_sudo_never_asks(tmp_path: Path) -> None:
    """Strict host keys for all; sudo only for users other than root; a key only where one is declared."""
    site = valid()
    site["ssh"] = {"user": "deploy", "key": "id"}
    site["fleets"]["eu1"]["hosts"]["a"]["ssh"] = {"user": "root"}
    loaded = load_site(write_site(tmp_path, site))
    a, b = (host_data(loaded, loaded.host(name)) for name in ("a", "b"))
    assert (a["ssh_strict_host_key_checking"], b["ssh_strict_host_key_checking"]) == ("yes", "yes")
    assert "_sudo" not in a
    assert (b["_sudo"], b["_use_sudo_password"]) == (True, False)
    assert b["ssh_key"] == str(tmp_path / "inventories" / "id")
    plain = load_site(write_site(tmp_path, valid()))
    assert "ssh_key" not in host_data(plain, plain.host("a"))


def test_unknown_host_keys_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the file of pinned keys nothing is connected to, and the message names the file."""
    file = write_site(tmp_path, valid())
    with pytest.raises(SiteError, match=r"acme\.known_hosts"):
        refuse_unedited(load_site(file))
    with pytest.raises(SystemExit) as ended:
        load(str(file.with_suffix(".py")))
    assert ended.value.code == 1
    assert "callfleet host pin --site acme" in capsys.readouterr().err
