"""Firewall: our own nftables table, which takes itself back unless a fresh connection succeeds."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra.api import FunctionCommand, operation
from pyinfra.api.host import Host

from callfleet.desired.firewall import RULES
from callfleet.expected import Command
from callfleet.plan import ConcernPlan
from callfleet.pyinfra_adapter import carry_out
from callfleet.pyinfra_remote import StepError, connect_afresh, run_script
from callfleet.script import script

LOADED = "/etc/callfleet/firewall.loaded"
PREVIOUS = "/run/callfleet/firewall.previous"
REVERT_UNIT = "callfleet-firewall-revert"
REVERT_SECONDS = 30

# What was there before is kept, and put back by the host itself unless we stop the timer.
LOAD = f"""
set -u
umask 077
mkdir -p /run/callfleet
systemctl stop {REVERT_UNIT}.timer 2>/dev/null
{{ echo 'table inet callfleet'; echo 'delete table inet callfleet'
   nft list table inet callfleet 2>/dev/null; }} > {PREVIOUS}
systemd-run --quiet --collect --unit={REVERT_UNIT} --on-active={REVERT_SECONDS} --timer-property=AccuracySec=1s \
  nft -f {PREVIOUS} || exit 1
nft -f {RULES} || {{ systemctl stop {REVERT_UNIT}.timer; exit 1; }}
"""

KEEP = f"""
set -u
systemctl stop {REVERT_UNIT}.timer || exit 1
rules=$(sha256sum < {RULES}) && loaded=$(nft -s list table inet callfleet | sha256sum) || exit 1
printf '%s %s\\n' "${{rules%% *}}" "${{loaded%% *}}" > {LOADED}.new && mv {LOADED}.new {LOADED}
"""


@operation()
def protect() -> Generator[FunctionCommand, None, None]:
    """Loads the declared ports' table; the SSH port in use always stays open."""
    yield from carry_out("firewall", _protect)


def _protect(host: Host, todo: ConcernPlan) -> None:
    files = [change for change in todo.changes if not isinstance(change.item, Command)]
    if files:
        run_script(host, script(files))
    run_script(host, LOAD, seconds=60)
    if reason := connect_afresh(host):
        raise StepError(
            f"a fresh SSH connection failed once the new rules were loaded ({reason}); the host puts the old ones back "
            f"by itself within {REVERT_SECONDS} s. Check `firewall:` in the site file, then run again"
        )
    run_script(host, KEEP, seconds=60)
