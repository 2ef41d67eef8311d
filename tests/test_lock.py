"""The lock's scripts, run by a real shell in a folder of their own: who gets it, who loses it, what is garbage."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from callfleet import lock
from callfleet.lock import Owner, Step

ALICE = Owner("alice@one", "one/boot", 100, "plan-a", "token-a")
BOB = Owner("bob@two", "two/boot", 200, "plan-b", "token-b")

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a script with every path of the lock moved below `tmp_path`."""
    (tmp_path / "etc").mkdir()

    def run(script: str) -> tuple[int, str, str]:
        moved = script.replace("/run/callfleet", f"{tmp_path}/callfleet").replace("/etc/callfleet", f"{tmp_path}/etc")
        done = subprocess.run(["sh", "-s"], input=moved, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def taken(run: Run, owner: Owner, dead: str = "") -> tuple[lock.Lock | None, lock.Lock | None, bool]:
    """What taking the lock comes to."""
    code, out, err = run(lock.take(owner, dead))
    assert code == 0, err
    return lock.read(out)


def file(tmp_path: Path) -> dict[str, object]:
    """The lock as it lies on the host."""
    value: dict[str, object] = json.loads((tmp_path / "callfleet.lock").read_text())
    return value


def put(tmp_path: Path, **changed: object) -> None:
    """Change the lock by hand."""
    (tmp_path / "callfleet.lock").write_text(json.dumps(file(tmp_path) | changed) + "\n")


def test_one_run_has_it_and_the_other_is_told_whose_it_is(run: Run) -> None:
    """The second is refused with the first one's word; after its release it gets the lock."""
    mine, former, _ = taken(run, ALICE)
    assert mine is not None
    assert mine.owner == ALICE
    assert former is None
    refused, other, _ = taken(run, BOB)
    assert refused is None
    assert other is not None
    assert other.owner == ALICE
    assert "alice@one" in str(other)
    assert run(lock.release(ALICE))[0] == 0
    again, former, _ = taken(run, BOB)
    assert again is not None
    assert again.owner == BOB
    assert former is None


def test_each_taking_has_a_higher_fence_than_any_before(run: Run, tmp_path: Path) -> None:
    """Also higher than what the slot program has been told, whatever the clock says."""
    first = taken(run, ALICE)[0]
    (tmp_path / "etc/fence").write_text("9999999999\n")
    second = taken(run, BOB, dead=ALICE.token)[0]
    assert first is not None
    assert second is not None
    assert second.fence == 10_000_000_000 > first.fence
    (tmp_path / "etc/fence").write_text("garbage\n")
    third = taken(run, ALICE, dead=BOB.token)[0]
    assert third is not None
    assert third.fence == second.fence + 1


def test_an_expired_or_dead_lock_is_taken_over_and_its_owner_named(run: Run, tmp_path: Path) -> None:
    """By the host's own clock; or at once where the holder is known to be gone."""
    taken(run, ALICE)
    put(tmp_path, expires=int(time.time()) - 1)
    mine, former, _ = taken(run, BOB)
    assert mine is not None
    assert former is not None
    assert (mine.owner, former.owner) == (BOB, ALICE)
    mine, former, _ = taken(run, ALICE, dead=BOB.token)
    assert mine is not None
    assert former is not None
    assert former.owner == BOB


def test_a_guarded_script_runs_only_under_its_own_lock(run: Run, tmp_path: Path) -> None:
    """It gets the run's word; without the lock it does nothing and says who has it."""
    taken(run, ALICE)
    body = 'echo "$CALLFLEET_WHO $CALLFLEET_PLAN $CALLFLEET_FENCE"; exit 3'
    assert run(lock.guarded(ALICE, 7, body))[:2] == (3, "alice@one plan-a 7\n")
    assert run(lock.guarded(BOB, 8, body)) == (
        1,
        "",
        "the lock of this run is gone; now it belongs to: alice@one (plan plan-a)\n",
    )
    (tmp_path / "callfleet.lock").unlink()
    assert run(lock.guarded(ALICE, 7, body))[:2] == (1, "")


def test_a_step_renews_the_lock_at_its_end_and_the_heartbeat_between(run: Run, tmp_path: Path) -> None:
    """Neither renews a lock that belongs to somebody else."""
    taken(run, ALICE)
    for script in (lock.guarded(ALICE, 7, "true"), lock.renew(ALICE)):
        put(tmp_path, expires=5)
        assert run(script)[0] == 0
        assert int(str(file(tmp_path)["expires"])) > time.time() + lock.TTL_SECONDS - 5
    overtaken = f"""sed -i 's/"token-a"/"token-b"/' {lock.FILE}"""
    assert run(lock.guarded(ALICE, 7, overtaken))[0] == 0
    assert file(tmp_path)["token"] == BOB.token, "a step that is overtaken while it goes on does not take the lock back"
    taken(run, ALICE, dead=BOB.token)
    before = file(tmp_path)
    assert run(lock.renew(BOB))[0] == 1
    assert run(lock.release(BOB))[0] == 0
    assert file(tmp_path) == before


def test_a_step_that_goes_on_keeps_everybody_else_out(run: Run, tmp_path: Path) -> None:
    """However long ago its lock expired: the kernel frees the guard when the step has ended."""
    taken(run, ALICE)
    put(tmp_path, expires=1)
    moved = lock.guarded(ALICE, 7, "echo on; read -r end").replace("/run/callfleet", f"{tmp_path}/callfleet")
    with subprocess.Popen(["sh", "-c", moved], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "on\n"
        assert taken(run, BOB) == (None, None, True)
        step.communicate("\n")
    assert taken(run, BOB)[2] is False


@pytest.mark.parametrize("garbage", ["", "{", '{"token": ""}', "\x00\x01", '{"who": "x"}'])
def test_a_lock_file_that_says_no_token_is_nobodys(garbage: str, run: Run, tmp_path: Path) -> None:
    """A file that was cut or edited by hand locks nobody out."""
    (tmp_path / "callfleet.lock").write_text(garbage)
    mine, former, _ = taken(run, ALICE)
    assert mine is not None
    assert former is None


@pytest.mark.parametrize("answer", ["", "no", "{}", '{"taken": 5}', '{"held": {}, "now": 1}', "[]", "5"])
def test_a_strange_answer_is_never_a_lock(answer: str) -> None:
    """It is an error that shows what came."""
    with pytest.raises(ValueError, match="could not be read"):
        lock.read(answer)


def test_strange_names_arrive_whole(run: Run) -> None:
    """Percent signs and spaces are no format."""
    strange = replace(ALICE, who="100%s anna @ box")
    mine = taken(run, strange)[0]
    assert mine is not None
    assert mine.owner == strange


def test_a_script_that_was_cut_starts_nothing(run: Run, tmp_path: Path) -> None:
    """Wherever the link died: the shell must have read the last line before it runs the first."""
    whole = Step("t-1").start("touch started")
    end = whole.index("\nstart\n") + 1
    for cut in range(0, end, 7):
        run(whole[:cut].replace("systemd-run", f"touch {tmp_path}/ran; true"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "callfleet.steps").exists()
    run(whole.replace("systemd-run", f"touch {tmp_path}/ran; true").replace("systemctl", "false"))
    assert (tmp_path / "ran").exists()


def test_a_look_ends_on_a_busy_host_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where asking alone takes long, it does not ask two hundred times: the connection would be given up before."""
    monkeypatch.setattr(lock, "LOOK_SECONDS", 1)
    slow = f"sh -c 'echo >> {tmp_path}/asked; sleep 0.3' asked"
    (tmp_path / "callfleet.steps").mkdir()
    (tmp_path / "callfleet.steps" / "t-1.log").write_text("a\n")
    code, said, _ = run(Step("t-1").look(0).replace("systemctl", slow))
    assert (code, said) == (0, "a\n\n")
    assert 1 < len((tmp_path / "asked").read_text().splitlines()) < 20


@pytest.mark.parametrize(
    ("answer", "lines", "code"),
    [
        ("a\nb\n", ["a", "b"], None),
        ("10%\r20%\nb\n", ["10%\r20%", "b"], None),
        (f"a\n\n{lock.ENDED}0\n{lock.GONE}", ["a"], 0),
        (f"\n{lock.ENDED}7\n", [], 7),
        (f"a\n{lock.GONE}", ["a", "the step ended without a result: it was killed, or the host restarted"], 255),
        ("", [], None),
    ],
)
def test_how_a_step_ended(answer: str, lines: list[str], code: int | None) -> None:
    """A step without a result has failed."""
    assert Step("t-1").read(answer) == (lines, code)
