"""Writes the shell script that carries out changes of one concern. Pure.

The script travels on standard input of one remote shell: no content is on a command line, in a temporary file of a
shared folder or in an environment. It stops at the first step that fails, says which, and leaves what came before
complete.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable

from callfleet.expected import Absent, Command, Directory, File, Package, Runtime, Unit
from callfleet.plan import Change, Word

PRELUDE = """\
set -u
umask 077
export LC_ALL=C DEBIAN_FRONTEND=noninteractive DOCKER_CONFIG=/etc/callfleet/docker
at() { step=$1; }
die() { code=$?; printf 'failed: %s\\n' "$step" >&2; exit "${1:-$code}"; }
did() {
  [ -n "${CALLFLEET_WHO:-}" ] || return 0
  line='{"at": "%s", "who": "%s", "plan": "%s", "what": "%s", "kind": "%s", "subject": "%s"}'
  mkdir -p /etc/callfleet && printf "$line\\n" "$(date -u +%FT%TZ)" "$CALLFLEET_WHO" "$CALLFLEET_PLAN" "$@" \
    >> /etc/callfleet/journal.jsonl || die
}
step=begin
"""

APT = "-o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o APT::Keep-Downloaded-Packages=true"


def done(changes: Iterable[Change]) -> str:
    """Script that journals changes which another one carried out."""
    return PRELUDE + "".join(_did(change) for change in changes)


def script(changes: Iterable[Change], *, journal: bool = True) -> str:
    """One POSIX script that carries out `changes` in their order and journals each."""
    todo = list(changes)
    parts = [PRELUDE]
    reload_pending = False
    installed = False
    running: list[Runtime] = []
    for change in todo:
        match change.item:
            case Directory() as item:
                parts.append(_directory(item))
            case File() as item:
                parts.append(_file(item))
                reload_pending |= item.path.startswith("/etc/systemd/system/")
            case Absent() as item:
                parts.append(f"at {_q('remove ' + item.path)}\nrm -f -- {_q(item.path)} || die\n")
            case Package() as item:
                # All packages of a concern in one transaction: half of Docker is worse than none of it.
                if not installed:
                    parts.append(_packages(todo))
                    installed = True
            case Unit() as item:
                if reload_pending:
                    parts.append("at 'daemon-reload'\nsystemctl daemon-reload || die\n")
                    reload_pending = False
                parts.append(_unit(item, change.word))
            case Command() as item:
                if item.script:
                    if reload_pending:
                        parts.append("at 'daemon-reload'\nsystemctl daemon-reload || die\n")
                        reload_pending = False
                    parts.append(f"at {_q(f'{change.word} {item.subject}')}\n(\n{item.script}\n) </dev/null || die\n")
            case Runtime() as item:
                # Once for all of its changes: it compares by itself and leaves what is as it must be.
                if item not in running:
                    parts.append(f"at 'the running proxy'\n{item.script} </dev/null || die\n")
                    running.append(item)
            case _:
                raise TypeError(f"{change} is carried out by its own operation")
        if journal:
            parts.append(_did(change))
    if reload_pending:
        parts.append("at 'daemon-reload'\nsystemctl daemon-reload || die\n")
    return "".join(parts)


def _did(change: Change) -> str:
    return f"did {change.word} {change.kind} {_q(change.subject)}\n"


def _q(text: str) -> str:
    return shlex.quote(text)


def _directory(item: Directory) -> str:
    path = _q(item.path)
    return (
        f"at {_q('directory ' + item.path)}\n"
        f"mkdir -p -m {item.mode} -- {path} && chmod {item.mode} -- {path} "
        f"&& chown {item.owner}:{item.group} -- {path} || die\n"
    )


def _file(item: File) -> str:
    """Written beside its target with its final owner, checked by the real checker, renamed: whole or not at all."""
    new = _q(f"{item.path}.callfleet-new")
    target = _q(item.path)
    lines = [f"at {_q('file ' + item.path)}", f"rm -f -- {new}", f"base64 -d > {new} <<'CALLFLEET_EOF' || die"]
    encoded = base64.b64encode(item.content).decode()
    lines += [encoded[i : i + 76] for i in range(0, len(encoded), 76)]
    lines.append("CALLFLEET_EOF")
    lines.append(f"chown {item.owner}:{item.group} -- {new} && chmod {item.mode} -- {new} || die")
    if item.check:
        check = item.check.replace("{path}", new)
        lines.append(f"at {_q('check of ' + item.path + ' (the old file stays in place)')}")
        lines.append(f"(\n{check}\n) </dev/null >&2 || {{ code=$?; rm -f -- {new}; die $code; }}")
    lines.append(f"mv -f -- {new} {target} || die")
    return "\n".join(lines) + "\n"


def _packages(changes: list[Change]) -> str:
    install = [
        f"{c.item.name}={c.item.version}" if c.item.version else c.item.name
        for c in changes
        if c.word is Word.INSTALL and isinstance(c.item, Package)
    ]
    hold = [c.item.name for c in changes if isinstance(c.item, Package) and c.item.hold]
    lines = []
    if install:
        # Lists of the last hour will do, unless a source was just added.
        sources = any(isinstance(c.item, File) and c.item.path.startswith("/etc/apt/sources") for c in changes)
        fresh = "" if sources else "[ -n \"$(find /var/lib/apt/lists -name '*Packages*' -mmin -60 | head -n 1)\" ] || "
        names = " ".join(_q(name) for name in install)
        lines += [
            "at 'apt-get update'",
            f"{fresh}apt-get {APT} -qq update </dev/null >&2 || die",
            f"at {_q('install ' + ' '.join(install))}",
            f"install() {{ apt-get {APT} -qq -y --no-install-recommends install {names} </dev/null >&2; }}",
            f"install || {{ apt-get {APT} -qq update </dev/null >&2 && install; }} || die",
        ]
    if hold:
        lines += [f"at {_q('hold ' + ' '.join(hold))}", f"apt-mark -qq hold {' '.join(hold)} >/dev/null || die"]
    return "\n".join(lines) + "\n"


def _unit(item: Unit, word: Word) -> str:
    if word is Word.LOAD:
        return "at 'daemon-reload'\nsystemctl daemon-reload || die\n"
    return f"at {_q(f'{word} {item.name}')}\nsystemctl --quiet {word} {_q(item.name)} </dev/null || die\n"
