"""The script that reads a hand-made host: run for real, with programs that answer as such a host would."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from callfleet.actual import Unknown
from callfleet.adopt.found import EnvironmentFile, Files, Found
from facts import legacy
from facts.frame import ProbeError

NONCE = "0123456789abcdef" * 2

SYSTEMCTL = """#!/bin/sh
case "$*" in
  list-units*) echo "cxbcore@1.service loaded active running Core"; echo "ssh.service loaded active running SSH" ;;
  list-unit-files*) echo "cxbcore@.service disabled enabled"; echo "cxbcore@2.service enabled enabled" ;;
  *--property=Id,Environment,EnvironmentFiles*)
    echo "Id=cxbcore@1.service"
    echo 'Environment=MAX_CONCURRENT_CALLS=1 "GREETING=two words" SESSION_SECRET=very-secret-inline'
    echo "EnvironmentFiles=ENV (ignore_errors=no)"
    echo "EnvironmentFiles=/nowhere/.env (ignore_errors=yes)" ;;
  *--property=Id,FragmentPath*)
    printf 'Id=cxbcore@1.service\\nFragmentPath=/etc/systemd/system/cxbcore@.service\\n\\n'
    printf 'Id=cxbcore@2.service\\nFragmentPath=/etc/systemd/system/cxbcore@.service\\n\\n'
    printf 'Id=ssh.service\\nFragmentPath=/usr/lib/systemd/system/ssh.service\\n' ;;
  show*)
    printf 'Id=cxbcore@1.service\\nActiveState=active\\nUnitFileState=enabled\\nUser=cxb\\nActiveEnterTimestamp=@100\\n'
    printf 'EnvironmentFiles=ENV (ignore_errors=no)\\nEnvironmentFiles=/nowhere/.env (ignore_errors=yes)\\n'
    printf 'ExecStart={ path=/bin/u ; argv[]=/bin/u --uds /tmp/cxbcore_1.sock ; ignore_errors=no }\\n\\n'
    printf 'Id=cxbcore@2.service\\nActiveState=inactive\\nUnitFileState=enabled\\n' ;;
esac
"""
SS = """#!/bin/sh
case "$*" in
  *-Hlx*) echo "u_str LISTEN 0 128 /tmp/cxbcore_1.sock 1 * 0" ;;
  *-Hlunp*) echo 'UNCONN 0 0 0.0.0.0:7882 0.0.0.0:* users:(("livekit",pid=7,fd=3))' ;;
  *) echo 'LISTEN 0 5 0.0.0.0:443 0.0.0.0:* users:(("nginx",pid=6,fd=3))' ;;
esac
"""
ENV = """# comment
CXBCORE_WORKERS=2
export LOG_LEVEL="info"
CORE_SECRET=very-secret-word
STT_API_KEY='very-secret-key'
MONGODB_URL=mongodb://user:very-secret-password@db.example.com
SECRET_HEADER=X-CXBCore-Secret
TOKEN_FILE=/run/token
EMPTY_TOKEN=
PRIVATE="very-secret
second line of it"
lower=ok
not an assignment very-secret-rest
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that come first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / ".env").write_text(ENV)
    (tmp_path / "nginx").mkdir()
    (tmp_path / "nginx" / "nginx.conf").write_text(f"http {{ include {tmp_path}/more.conf; ssl_certificate c.pem; }}\n")
    (tmp_path / "nginx" / "key.pem").write_text("very-secret-key")
    (tmp_path / "more.conf").write_text("server { listen 443 ssl; }\n")
    ps = f'#!/bin/sh\necho "nginx: master process /usr/sbin/nginx -c {tmp_path}/nginx/nginx.conf"\n'
    for name, text in (("systemctl", SYSTEMCTL.replace("ENV (", f"{tmp_path}/.env (")), ("ss", SS), ("ps", ps)):
        file = folder / name
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def run(script: str, programs: Path) -> str:
    """What a host would answer."""
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-s"], input=script, capture_output=True, text=True, env={"PATH": path}, timeout=60, check=True
    )
    return done.stdout


@pytest.fixture
def found(programs: Path) -> Found:
    """The host."""
    return legacy.parse(run(legacy.script(NONCE), programs), "a", "192.0.2.1")


def test_units_and_sockets_are_read(found: Found) -> None:
    """Instances that run or start at boot, and none of the distribution's."""
    assert isinstance(found.units, dict)
    assert sorted(found.units) == ["cxbcore@1.service", "cxbcore@2.service"]
    one, two = found.units["cxbcore@1.service"], found.units["cxbcore@2.service"]
    assert (one.template, one.number, one.active, one.enabled, one.since) == ("cxbcore", 1, True, True, 100)
    assert (two.active, two.enabled) == (False, True)
    assert len(one.environment_files) == 2
    assert one.command == "/bin/u --uds /tmp/cxbcore_1.sock"
    assert found.listening == frozenset({"/tmp/cxbcore_1.sock"})
    assert not isinstance(found.datagrams, Unknown)
    assert [(each.port, each.processes) for each in found.datagrams] == [(7882, (("livekit", 7),))]


def test_an_environment_is_read_without_its_secrets(found: Found, programs: Path) -> None:
    """Values of secrets do not leave the host; marks tell equal ones from others, and hold for one import alone."""
    assert isinstance(found.environments, dict)
    path = str(programs.parent / ".env")
    held = found.environments[path]
    assert isinstance(held, EnvironmentFile)
    plain = {name: value.text for name, value in held.values.items() if not value.secret}
    assert plain == {
        "CXBCORE_WORKERS": "2", "SECRET_HEADER": "X-CXBCore-Secret", "TOKEN_FILE": "/run/token",
        "EMPTY_TOKEN": "", "lower": "ok",
    }  # fmt: skip
    assert {name for name, value in held.values.items() if value.secret} == {
        "CORE_SECRET", "STT_API_KEY", "MONGODB_URL", "PRIVATE"
    }  # fmt: skip
    assert held.unclear == 3
    assert held.changed is not None
    assert found.environments["/nowhere/.env"] is None
    answer = run(legacy.script(NONCE), programs)
    assert legacy.parse(answer, "b", "192.0.2.2").environments[path] == held  # type: ignore[index]
    other = legacy.parse(run(legacy.script("f" * 32), programs), "b", "192.0.2.2").environments[path]  # type: ignore[index]
    assert other.values["CORE_SECRET"].mark != held.values["CORE_SECRET"].mark  # type: ignore[union-attr]
    assert "very-secret" not in repr(found)


def test_variables_of_a_unit_itself_are_read_like_a_file(found: Found) -> None:
    """And those of its files come after them."""
    assert isinstance(found.inline, dict)
    held = found.inline["cxbcore@1.service"]
    assert {name: value.text for name, value in held.values.items()} == {
        "MAX_CONCURRENT_CALLS": "1", "GREETING": "two words", "SESSION_SECRET": None
    }  # fmt: skip
    assert isinstance(found.units, dict)
    both = found.environment(found.units["cxbcore@1.service"])
    assert {"MAX_CONCURRENT_CALLS", "CXBCORE_WORKERS"} <= set(both)


def test_a_proxys_files_are_read_and_no_key(found: Found, programs: Path) -> None:
    """From where the running process begins, with what it includes elsewhere."""
    assert isinstance(found.nginx, Files)
    folder = programs.parent
    assert found.nginx.main == (f"{folder}/nginx/nginx.conf",)
    assert set(found.nginx.texts) == {f"{folder}/nginx/nginx.conf", f"{folder}/more.conf"}


def test_only_asked_for_secrets_are_fetched(programs: Path) -> None:
    """Whole files, by a second question."""
    path = str(programs.parent / ".env")
    found = legacy.parse_contents(run(legacy.contents_script([path, "/nowhere"]), programs))
    assert found == {path: ENV.encode(), "/nowhere": None}


def test_a_part_that_fails_is_unknown(programs: Path) -> None:
    """And the rest is read."""
    (programs / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    found = legacy.parse(run(legacy.script(NONCE), programs), "a", "192.0.2.1")
    assert isinstance(found.units, Unknown)
    assert isinstance(found.environments, Unknown)
    assert isinstance(found.nginx, Files)
    assert "units" in dict(found.unknowns())


def test_the_fleet_list_is_asked_with_a_token_that_no_argument_holds(programs: Path) -> None:
    """By a file on the host, or one that travels on standard input."""
    curl = programs / "curl"
    log = programs.parent / "arguments"
    curl.write_text(f'#!/bin/sh\necho "$*" >>{log}\ncat >{log}.input\necho \'{{"core_fleet": ["https://a.test"]}}\'\n')
    curl.chmod(0o755)
    token = programs.parent / "token"
    token.write_text("very-secret-token\n")
    url = "http://127.0.0.1:8080/api"
    for script in (
        legacy.fleet_list_script(url, token="very-secret-token"),
        legacy.fleet_list_script(url, token_file=str(token)),
    ):
        assert legacy.parse_fleet_list(run(script, programs)) == ("https://a.test",)
        assert "very-secret" not in log.read_text()
        assert 'Authorization: Bearer very-secret-token"' in Path(f"{log}.input").read_text()
    refused = legacy.parse_fleet_list(run(legacy.fleet_list_script(url, token_file="/nowhere"), programs))
    assert isinstance(refused, Unknown)


@pytest.mark.parametrize("text", ["", "motd\n", "@callfleet probe 1\n@callfleet end\n"])
def test_what_is_no_answer_is_an_error(text: str) -> None:
    """Of a kind that callers expect."""
    with pytest.raises(ProbeError):
        legacy.parse(text, "a", "192.0.2.1")


def test_an_answer_that_is_cut_off_is_unknown_from_there(programs: Path) -> None:
    """Nothing is taken for absent."""
    lines = run(legacy.script(NONCE), programs).split("\n")
    at = next(number for number, line in enumerate(lines) if line == "@callfleet units")
    found = legacy.parse("\n".join(lines[: at + 2]), "a", "192.0.2.1")
    for part in (found.units, found.environments, found.nginx, found.haproxy, found.certificates):
        assert isinstance(part, Unknown)
    assert not isinstance(found.listeners, Unknown)
