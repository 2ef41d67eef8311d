"""The lock that one run holds on a host: owner, expiry, fencing number. Pure: scripts out, answers in.

It lies in /run, so a reboot ends it, as it ends every step of the run that held it. `GUARD` is a kernel lock that a
step holds while it writes: a takeover waits for a step that is still going, whatever became of its controller.
"""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass

FILE = "/run/callfleet.lock"
GUARD = "/run/callfleet.guard"
FENCE = "/etc/callfleet/fence"
TTL_SECONDS = 45
"""A holder that has not renewed its lock for so long is taken for dead."""
RENEW_SECONDS = 10
GUARD_SECONDS = 60
STEPS = "/run/callfleet.steps"
LOOKS, LOOK_SECONDS = 200, 20
"""A look ends after so many pauses, or so long by the host's clock: on a busy host the pauses take minutes."""
ENDED, GONE = "callfleet-step-ended ", "callfleet-step-gone"


@dataclass(frozen=True)
class Owner:
    """A run. `controller` identifies the machine and its boot, `pid` its process there, `token` this run alone."""

    who: str
    controller: str
    pid: int
    plan: str
    token: str


@dataclass(frozen=True)
class Lock:
    """A lock as the host tells it; times are the host's, in unix seconds."""

    owner: Owner
    fence: int
    since: int
    expires: int
    now: int

    def __str__(self) -> str:
        return f"{self.owner.who} (pid {self.owner.pid}, plan {self.owner.plan}, for {self.now - self.since} s)"


# The file is one JSON line that only these scripts write; a field is cut out of it without a JSON parser.
_COMMON = f"""\
set -u
umask 022
export LC_ALL=C
exec 9>>{GUARD} || exit 1
get() {{ sed -n 's/.*"'"$1"'": "*\\([^",}}]*\\).*/\\1/p' {FILE} 2>/dev/null | head -n 1; }}
number() {{ case $1 in ''|*[!0-9]*) echo 0 ;; *) echo "$1" ;; esac; }}
write() {{ printf '%s' "$1" > {FILE}.new && mv -f {FILE}.new {FILE}; }}
renew() {{
  ours || return 0
  since=$(number "$(get since)") fence=$(number "$(get fence)")
  write "$(printf "$record" "$fence" "$since" $(($(date +%s) + {TTL_SECONDS})))"
}}
"""


def _record(owner: Owner) -> str:
    """A printf format of the file: fence, since and expires are filled in on the host."""
    parts = {"who": owner.who, "controller": owner.controller, "plan": owner.plan, "token": owner.token}
    said = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in parts.items()).replace("%", "%%")
    return f'{{{said}, "pid": {owner.pid}, "fence": %s, "since": %s, "expires": %s}}\\n'


def _ours(owner: Owner) -> str:
    """What the shell must know of this run: the record that it writes, and how it tells whether the lock is its own."""
    return f'record={shlex.quote(_record(owner))}\nours() {{ [ "$(get token)" = {shlex.quote(owner.token)} ]; }}'


def take(owner: Owner, dead: str = "") -> str:
    """Script that takes the lock if nobody has it, its holder's time is over, or its token is `dead`.

    It prints the lock as JSON: our own, with the former one if there was one; or else the one that is in the way, or
    that a step still goes on.
    """
    return f"""{_COMMON}{_ours(owner)}
flock -n 9 || {{ echo '{{"busy": true}}'; exit 0; }}
now=$(date +%s) token=$(get token) expires=$(number "$(get expires)")
former=null
[ ! -s {FILE} ] || former=$(cat {FILE})
[ -n "$token" ] || former=null
if [ -n "$token" ] && [ "$expires" -gt "$now" ] && [ "$token" != {shlex.quote(owner.token)} ] \\
  && [ "$token" != {shlex.quote(dead)} ]; then
  printf '{{"held": %s, "now": %s}}\\n' "$former" "$now"
  exit 0
fi
# Never lower than one that was given out before, also after a reboot.
fence=$now
for known in "$(get fence)" "$(cat {FENCE} 2>/dev/null)"; do
  known=$(number "$known"); [ "$known" -lt "$fence" ] || fence=$((known + 1))
done
write "$(printf "$record" "$fence" "$now" $((now + {TTL_SECONDS})))" || exit 1
rm -rf {STEPS}
printf '{{"taken": %s, "former": %s, "now": %s}}\\n' "$(cat {FILE})" "$former" "$now"
"""


def renew(owner: Owner) -> str:
    """Script that puts the expiry off. A step that is going on holds the guard, and renews by itself at its end."""
    return f"""{_COMMON}{_ours(owner)}
flock -n 9 || exit 0
ours || exit 1
renew
"""


def release(owner: Owner) -> str:
    """Script that gives the lock back; it does nothing where the lock is no longer ours."""
    return f"""{_COMMON}{_ours(owner)}
flock -w {GUARD_SECONDS} 9 || exit 1
! ours || rm -rf {FILE} {STEPS}
"""


def guarded(owner: Owner, fence: int, body: str) -> str:
    """`body`, run only while the lock is ours, and with nobody else writing on the host meanwhile."""
    return f"""{_COMMON}{_ours(owner)}
flock -w {GUARD_SECONDS} 9 || {{ echo 'another run is writing on this host' >&2; exit 1; }}
if ! ours; then
  echo "the lock of this run is gone; now it belongs to: $(get who) (plan $(get plan))" >&2
  exit 1
fi
trap renew EXIT
export CALLFLEET_WHO={shlex.quote(owner.who)} CALLFLEET_PLAN={shlex.quote(owner.plan)} CALLFLEET_FENCE={fence}
{body}"""


@dataclass(frozen=True)
class Step:
    """A script that a host runs to its end by itself, as a transient unit. `name` is unique on the host."""

    name: str

    @property
    def _log(self) -> str:
        return f"{STEPS}/{self.name}.log"

    def start(self, body: str) -> str:
        """Script that starts `body` and waits a while for its end.

        The shell reads the function to its last line before it runs any of it, so a cut script does nothing.
        """
        file = f"{STEPS}/{self.name}.sh"
        program = f"(\n{body}\n)\ncode=$?\nrm -f {file}\nprintf '\\n{ENDED}%s\\n' \"$code\"\n"
        encoded = base64.b64encode(program.encode()).decode()
        wrapped = "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
        return f"""start() {{
umask 077
mkdir -p {STEPS} && base64 -d > {file} <<'CALLFLEET_EOF' || exit 1
{wrapped}
CALLFLEET_EOF
: > {self._log} && systemd-run --quiet --collect --unit=callfleet-{self.name} --setenv=HOME=/root \\
  -p StandardOutput=append:{self._log} -p StandardError=append:{self._log} \\
  sh {file} || {{ rm -f {file}; exit 1; }}
}}
start
{self.look(0)}"""

    def look(self, known: int) -> str:
        """Script that waits a while for the end and prints the whole lines after the first `known`."""
        return f"""\
i=0 until=$(($(date +%s) + {LOOK_SECONDS}))
while [ $i -lt {LOOKS} ] && [ "$(date +%s)" -lt $until ] && systemctl -q is-active callfleet-{self.name}.service; do
  sleep 0.1; i=$((i + 1))
done
gone=; systemctl -q is-active callfleet-{self.name}.service || gone={GONE}
n=$(wc -l < {self._log}) && head -n "$n" {self._log} | tail -n +{known + 1}; printf '%s\\n' "$gone"
"""

    def read(self, answer: str) -> tuple[list[str], int | None]:
        """The fresh lines, and the exit code once it has ended: 255 when it ended without one, killed or rebooted."""
        *lines, gone = answer.split("\n")  # as `wc -l` counts them: nothing else ends a line
        for number, line in enumerate(lines):
            if line.startswith(ENDED):
                before = lines[:number]
                return before[:-1] if before and not before[-1] else before, int(line.removeprefix(ENDED) or 255)
        if gone == GONE:
            return [*lines, "the step ended without a result: it was killed, or the host restarted"], 255
        return lines, None


def read(text: str) -> tuple[Lock | None, Lock | None, bool]:
    """What `take` printed: our lock or None; the other one, in the way or taken over; whether a step goes on.

    Raises ValueError when it is garbage.
    """
    try:
        said = json.loads(text.strip().splitlines()[-1])
        if said.get("busy"):
            return None, None, True
        mine = _lock(said["taken"], said["now"]) if "taken" in said else None
        other = said["held"] if mine is None else said["former"]
        return mine, None if other is None else _lock(other, said["now"]), False
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the lock's answer could not be read: {text.strip()[:200]!r}") from error


def _lock(value: dict[str, object], now: object) -> Lock:
    words = {key: str(value[key]) for key in ("who", "controller", "plan", "token")}
    numbers = {key: int(str(value[key])) for key in ("fence", "since", "expires")}
    return Lock(Owner(**words, pid=int(str(value["pid"]))), **numbers, now=int(str(now)))
