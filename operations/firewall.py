"""Firewall: our own nftables table, which takes itself back unless a fresh connection succeeds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host

from callfleet.desired.firewall import RULES
from callfleet.expected import Command, File
from callfleet.plan import Change, ConcernPlan
from callfleet.pyinfra_adapter import carry_out
from callfleet.pyinfra_remote import StepError, connect_afresh, run_script
from callfleet.script import done, script

CANDIDATE = f"{RULES}.candidate"
LOADED = "/etc/callfleet/firewall.loaded"
PREVIOUS = "/run/callfleet/firewall.previous"
REVERT_UNIT = "callfleet-firewall-revert"
REVERT_SECONDS = 30

KEEP = f"""
systemctl stop {REVERT_UNIT}.timer || exit 1
[ ! -e {CANDIDATE} ] || mv -f {CANDIDATE} {RULES} || exit 1
rules=$(sha256sum < {RULES}) && loaded=$(nft -s list table inet callfleet | sha256sum) || exit 1
printf '%s %s\\n' "${{rules%% *}}" "${{loaded%% *}}" > {LOADED}.new && mv {LOADED}.new {LOADED}
"""


def loading(rules: str, seconds: int = REVERT_SECONDS) -> str:
    """Script that loads the file `rules`; the host puts back what was there after `seconds`, unless it is told to keep.

    New rules become the file that is loaded at boot only when they are kept.
    """
    return f"""
set -u
umask 077
mkdir -p /run/callfleet
systemctl stop {REVERT_UNIT}.timer 2>/dev/null
{{ echo 'table inet callfleet'; echo 'delete table inet callfleet'
   nft list table inet callfleet 2>/dev/null; }} > {PREVIOUS}
systemd-run --quiet --collect --unit={REVERT_UNIT} --on-active={seconds} --timer-property=AccuracySec=1s \\
  nft -f {PREVIOUS} || exit 1
nft -f {rules} || {{ systemctl stop {REVERT_UNIT}.timer; exit 1; }}
"""


@operation()
def protect() -> Generator[FunctionCommand, None, None]:
    """Loads the declared ports' table; the SSH port in use always stays open."""
    yield from carry_out("firewall", _protect)


def _protect(host: Host, todo: ConcernPlan) -> None:
    loaded = [change for change in todo.changes if _is_loaded(change)]
    rest = [change for change in todo.changes if change not in loaded]
    if loaded:
        _load(host, loaded)
    if rest:
        run_script(host, script(rest))


def _is_loaded(change: Change) -> bool:
    """Whether it is about the rules themselves, and not about the unit that loads them at boot."""
    return isinstance(change.item, Command) or (isinstance(change.item, File) and change.item.path == RULES)


def _load(host: Host, loaded: list[Change]) -> None:
    files = [replace(c, item=replace(c.item, path=CANDIDATE)) for c in loaded if isinstance(c.item, File)]
    run_script(host, script(files, journal=False) if files else f"rm -f {CANDIDATE}")
    rules = CANDIDATE if files else RULES
    run_script(host, loading(rules), seconds=60)
    if reason := connect_afresh(host):
        raise StepError(
            f"a fresh SSH connection failed once the new rules were loaded ({reason}); the host puts the old ones back "
            f"by itself within {REVERT_SECONDS} s, and starts with them. Check `firewall:` in the site file, run again"
        )
    run_script(host, KEEP + done(loaded), seconds=60)
