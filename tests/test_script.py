"""The script that changes a host, run by real shells in a folder of its own."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callfleet.expected import Absent, Command, Directory, File, Images, Item, Package, Stack, Unit, unit_check
from callfleet.plan import Change, Word
from callfleet.script import script

OWNER, GROUP = str(os.geteuid()), str(os.getegid())
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def change(item: Item, word: Word = Word.CREATE) -> Change:
    """A change as a plan makes it."""
    return Change("kind", "subject", word, "reason", item)


def file(path: Path | str, content: bytes = b"new\n", mode: str = "0644", check: str = "") -> File:
    """A file that whoever runs the tests may own."""
    return File(str(path), content, mode, OWNER, GROUP, check=check)


def run(*items: Item, shell: str = "sh", path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the script as a host does: on standard input of a shell, with a careless umask."""
    text = script([change(item) for item in items])
    command = [shell, "sh", "-s"] if shell == "busybox" else [shell, "-s"]
    environment = os.environ | ({"PATH": path} if path else {})
    done = subprocess.run(
        command, input=text.encode(), capture_output=True, check=False, timeout=180, umask=0, env=environment
    )
    # Decoded here: as text, a carriage return in a name would come back as a line end.
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Each shell that a host's `sh` may be."""
    return str(request.param)


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder for commands that stand in for a host's; each writes its own name and arguments into `said`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("systemctl", "apt-get", "apt-mark"):
        command = folder / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/said\n')
        command.chmod(0o755)
    return folder


def said(tmp_path: Path) -> list[str]:
    """What the stand-in commands were asked."""
    written = tmp_path / "said"
    return written.read_text().splitlines() if written.exists() else []


def left_over(folder: Path) -> list[str]:
    """Temporary files of ours that stayed behind."""
    return [path.name for path in folder.rglob("*callfleet-new*")]


def test_writes_files_with_content_mode_and_owner(tmp_path: Path, shell: str) -> None:
    """Whatever the umask: modes are exact, content is bytes."""
    content = bytes(range(256)) * 40
    done = run(
        Directory(f"{tmp_path}/d", "0700", OWNER, GROUP),
        file(tmp_path / "d" / "a", content, "0600"),
        file(tmp_path / "d" / "empty", b"", "0444"),
        shell=shell,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "d/a").read_bytes() == content
    assert (tmp_path / "d/empty").read_bytes() == b""
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("d", "d/a", "d/empty")]
    assert modes == [0o700, 0o600, 0o444]
    assert left_over(tmp_path) == []


def test_a_secret_is_never_readable_by_others_on_its_way(tmp_path: Path) -> None:
    """The candidate is private from its first byte: the check sees its mode before the final one would allow more."""
    watch = "stat -c %a {path} > " + f"{tmp_path}/seen"
    fifo = tmp_path / "target"
    assert run(file(fifo, b"secret", "0640", check=watch)).returncode == 0
    assert (tmp_path / "seen").read_text() == "640\n"
    text = script([change(file(fifo, b"secret"))])
    assert text.index("umask 077") < text.index("base64 -d")


@settings(max_examples=25, deadline=None)
@given(
    content=st.binary(max_size=300) | st.text("'\"\\\n$`CALFET_EOF\r\t !#;&|", max_size=200).map(str.encode),
    name=st.text(
        st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=40
    ).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
)
def test_any_content_and_any_name_arrive_as_they_are(content: bytes, name: str) -> None:
    """Quotes, newlines, dollar signs and the here-document's own end marker are data, in content and in names."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / name
        done = run(file(target, content))
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == content
        assert [path.name for path in Path(folder).iterdir()] == [name]


@settings(max_examples=15, deadline=None)
@given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=30))
def test_a_failing_step_is_named_whatever_its_path(name: str) -> None:
    """A path that cannot be written is in the message, and nothing of it was run as a command."""
    with tempfile.TemporaryDirectory() as folder:
        done = run(file(f"{folder}/missing/{name}"))
        assert done.returncode != 0
        assert f"failed: file {folder}/missing/{name}" in done.stderr
        assert not list(Path(folder).iterdir())


def test_a_file_that_its_check_rejects_never_replaces_the_old_one(tmp_path: Path, shell: str) -> None:
    """The old file stays in place, nothing is left beside it, and the message says so."""
    target = tmp_path / "haproxy.cfg"
    target.write_text("old\n")
    before = target.stat()
    done = run(file(target, check="echo 'line 7: nonsense'; test ! -s {path}"), shell=shell)
    assert done.returncode == 1
    assert "line 7: nonsense" in done.stderr
    assert f"failed: check of {target} (the old file stays in place)" in done.stderr
    assert (target.read_text(), target.stat().st_ino, target.stat().st_mtime_ns) == (
        "old\n",
        before.st_ino,
        before.st_mtime_ns,
    )
    assert left_over(tmp_path) == []


def test_a_check_sees_the_whole_candidate_and_no_input(tmp_path: Path) -> None:
    """The checker gets the new content under its own name; it cannot eat the rest of the script."""
    first, second = tmp_path / "first", tmp_path / "second"
    done = run(file(first, check="cat; cmp {path} " + f"{tmp_path}/same"), file(second))
    assert done.returncode != 0
    (tmp_path / "same").write_text("new\n")
    done = run(file(first, check="cat; cmp {path} " + f"{tmp_path}/same"), file(second))
    assert done.returncode == 0, done.stderr
    assert second.exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["x.service", "x@.service"])
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("[Service]\nExecStart=/bin/tru %i\n", "/bin/tru is not executable"),
        ("[Service]\nExecStart=/bin/true %i\nRestart=alwyas\n", "alwyas"),
        ("[Service]\nExecStrat=/bin/true %i\n", "Unknown key"),
        ("nonsense\n", "bad unit file setting"),
    ],
)
def test_a_broken_unit_never_replaces_the_old_one(tmp_path: Path, shell: str, name: str, broken: str, why: str) -> None:
    """systemd itself reads the candidate under the unit's name, a template as an instance; nothing of it is left."""
    target, folder = tmp_path / name, tmp_path / "staged"
    folder.mkdir()
    check = f"TMPDIR={folder}; export TMPDIR\n" + unit_check(f"/etc/systemd/system/{name}")
    good = b"[Service]\nExecStart=/bin/true %i\nRestart=always\n"
    assert run(file(target, good, check=check), shell=shell).returncode == 0
    done = run(file(target, broken.encode(), check=check), shell=shell)
    assert done.returncode != 0
    assert why in done.stderr
    assert f"failed: check of {target} (the old file stays in place)" in done.stderr
    assert target.read_bytes() == good
    assert left_over(tmp_path) + list(map(str, folder.iterdir())) == []


def test_a_file_is_replaced_by_a_rename(tmp_path: Path) -> None:
    """A reader of the old file keeps it whole, and a link is replaced, not followed."""
    target, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    elsewhere.write_text("not ours\n")
    target.symlink_to(elsewhere)
    assert run(file(target)).returncode == 0
    assert (target.is_symlink(), target.read_text(), elsewhere.read_text()) == (False, "new\n", "not ours\n")
    with target.open() as reader:
        assert run(file(target, b"newer\n")).returncode == 0
        assert reader.read() == "new\n"


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    """A candidate of an earlier run, even one that points elsewhere, is removed and not written through."""
    target, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    elsewhere.write_text("not ours\n")
    (tmp_path / "f.callfleet-new").symlink_to(elsewhere)
    assert run(file(target)).returncode == 0
    assert (target.read_text(), elsewhere.read_text(), left_over(tmp_path)) == ("new\n", "not ours\n", [])


def test_stops_at_the_first_step_that_fails(tmp_path: Path, shell: str) -> None:
    """What comes before is complete, what comes after is untouched, the code and the words are the step's."""
    done = run(
        file(tmp_path / "before"),
        Command("the setting", "file:/x", "present", "echo why >&2; exit 7"),
        file(tmp_path / "after"),
        shell=shell,
    )
    assert done.returncode == 7
    assert done.stderr.splitlines() == ["why", "failed: create the setting"]
    assert (tmp_path / "before").exists()
    assert not (tmp_path / "after").exists()


def test_a_step_that_reads_its_input_does_not_eat_the_script(tmp_path: Path) -> None:
    """The script itself is on standard input."""
    assert run(Command("s", "file:/x", "", "cat >/dev/null"), file(tmp_path / "after")).returncode == 0
    assert (tmp_path / "after").exists()


def test_a_step_cannot_change_what_comes_after_it(tmp_path: Path) -> None:
    """Each runs in a shell of its own."""
    done = run(Command("s", "file:/x", "", "umask 000; cd /; step=lost; exit 0"), file(tmp_path / "no" / "after"))
    assert f"failed: file {tmp_path}/no/after" in done.stderr


def test_directories_are_made_and_corrected(tmp_path: Path) -> None:
    """The last part gets its mode, and one that exists is corrected without touching what is in it."""
    wanted = Directory(f"{tmp_path}/d", "0711", OWNER, GROUP)
    (tmp_path / "d").mkdir(mode=0o777)
    (tmp_path / "d/inside").write_text("kept")
    assert run(wanted).returncode == 0
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o711
    assert (tmp_path / "d/inside").read_text() == "kept"


def test_absent_removes_a_file_and_bears_that_it_is_gone(tmp_path: Path) -> None:
    """The second run has nothing to remove and is fine."""
    (tmp_path / "old file").write_text("x")
    for _ in range(2):
        assert run(Absent(f"{tmp_path}/old file")).returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lists", ["", "a list of the last hour"])
def test_packages_travel_in_one_transaction(tmp_path: Path, bin_folder: Path, lists: str) -> None:
    """One update if it is due, one install with every name and pin, holds after it: half of Docker is bad."""
    (bin_folder / "find").write_text(f"#!/bin/sh\necho '{lists}'\n" if lists else "#!/bin/sh\n")
    (bin_folder / "find").chmod(0o755)
    text = script(
        [
            change(Package("docker.io", "26.1"), Word.INSTALL),
            change(Package("runc", hold=True), Word.HOLD),
            change(Package("iptables", hold=True), Word.INSTALL),
        ]
    )
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-s"], input=text, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    *updates, install, hold = said(tmp_path)
    assert [line.endswith("-qq update") for line in updates] == ([] if lists else [True])
    assert install.endswith("install docker.io=26.1 iptables")
    assert all("DPkg::Lock::Timeout" in line for line in (*updates, install))
    assert hold == "apt-mark -qq hold runc iptables"


def test_units_are_read_before_they_are_used(tmp_path: Path, bin_folder: Path) -> None:
    """A unit file is followed by one daemon-reload, before the first unit or command and never twice."""
    path = f"{bin_folder}:{os.environ['PATH']}"
    text = script(
        [
            change(replace(file("/etc/systemd/system/x.service"))),
            change(Unit("x.service"), Word.ENABLE),
            change(Unit("x.service"), Word.START),
            change(Unit("stack@y.service"), Word.ENABLE),
        ]
    )
    # Only the part after the file: it would be written to the machine that runs the tests.
    part = text[text.index("at daemon-reload") if "at daemon-reload" in text else text.index("at 'daemon-reload'") :]
    prelude = text[: text.index("at 'file") if "at 'file" in text else text.index("at file")]
    done = subprocess.run(
        ["sh", "-s"], input=prelude + part, env={"PATH": path}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said(tmp_path) == [
        "systemctl daemon-reload",
        "systemctl --quiet enable x.service",
        "systemctl --quiet start x.service",
        "systemctl --quiet enable stack@y.service",
    ]


@pytest.mark.parametrize("item", [Stack("s", {}, {}), Images(("i",))])
def test_what_has_its_own_operation_is_refused(item: Item) -> None:
    """Containers and images are never changed by a plain script."""
    with pytest.raises(TypeError, match="its own operation"):
        script([change(item)])


def test_no_content_is_on_a_command_line(tmp_path: Path) -> None:
    """While a check runs, neither content nor its encoding is among the arguments or the environment of any process."""
    target = tmp_path / "f"
    seen = tmp_path / "seen"
    check = (
        f"for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; tr '\\0' ' ' < $p/environ; done >{seen} 2>/dev/null; :"
    )
    word = f"correct-{uuid.uuid4()}-battery".encode()  # nobody else on this machine has this one
    assert run(file(target, word, check=check)).returncode == 0
    text = seen.read_bytes()
    assert b"sh" in text
    assert word not in text
    assert base64.b64encode(word).rstrip(b"=")[:-1] not in text


@pytest.fixture(autouse=True)
def _no_stray_candidates() -> Iterator[None]:
    yield
    assert not list(Path.cwd().glob("*.callfleet-new"))
