"""`callfleet host add`, `remove`, `replace` and `resize`: hosts come, go and change, and the inventory follows."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import click

from callfleet import document, hostkeys, leaving, preflight, report
from callfleet.actual import Unknown
from callfleet.commands import doctor, slots
from callfleet.commands import plan as plans
from callfleet.commands.certificates import make
from callfleet.commands.common import (
    DONE,
    FAILED,
    PENDING,
    complete,
    confirm_site,
    echo_json,
    fleet_hosts,
    fleets,
    hosts_fleets_roles,
    json_option,
    note,
    on,
    open_site,
    site_option,
    site_path,
)
from callfleet.desired.ingress import ADMIN_SOCKET
from callfleet.errors import CallfleetError, SiteError, shown_path
from callfleet.hostkeys import Key
from callfleet.inventory import refuse_examples, refuse_unedited, refuse_unusable
from callfleet.pyinfra_session import Session, limited
from callfleet.renewal import State, internal_certificates
from callfleet.site import Host, Site, edit, load_site
from callfleet.site.newcomer import Newcomer, admit
from callfleet.site.schema import Address, DnsName, Name

WORKERS = click.IntRange(1, 512)
LOOK_SECONDS = 2.0
OUTBOX_SECONDS = 120.0
"""In which workers that carry no call deliver what waits, at least; a longer deadline gives them longer."""

NAME = click.argument("name", shell_complete=complete(fleet_hosts))
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
fingerprint_option = click.option(
    "--fingerprint", default="", metavar="SHA256:...", help="The host key's, as its console shows it; for scripts."
)
deadline_option = click.option(
    "--deadline", type=click.IntRange(0, 86400), metavar="SECONDS", help="How long to wait for calls to end."
)
lost_option = click.option("--lost", is_flag=True, help="It is gone for good: never reach it, take it out everywhere.")
recordings_option = click.option(
    "--recordings-moved", is_flag=True, help="The recordings left on it are elsewhere already, or not wanted."
)


@click.group()
def host() -> None:
    """Hosts and their slots: add, remove, replace and resize them, take them out of service and back.

    \b
    callfleet host add eu1-c 203.0.113.13 --fleet eu1 --workers 16
    callfleet host drain eu1-a              no new call; returns once the last one has ended
    callfleet host ready eu1-a              calls again
    callfleet host remove eu1-a             drained, taken out of all three places, stopped
    callfleet host pin eu1-a                its SSH key is unknown here, or was changed on purpose
    """


host.add_command(slots.drain)
host.add_command(slots.ready)


# Adding


class HostFileEntry(document.Strict):
    """One host of `host add --file`."""

    address: Address
    fleet: Name
    workers: Annotated[int, document.whole(1, 512)] | None = None
    memory_mb: Annotated[int, document.whole(256, 16777216, "MiB")] | None = None
    public_name: DnsName | None = None
    fingerprint: document.Text | None = None
    internal_certificate: document.Text | None = None
    certificate: document.Text | None = None


class HostFile(document.Strict):
    """The file: hosts by name."""

    hosts: dict[Name, HostFileEntry]


@host.command()
@click.argument("name", required=False)
@click.argument("address", required=False)
@click.option("--fleet", default="", help="The fleet that it joins.", shell_complete=complete(fleets))
@click.option("--workers", type=WORKERS, help="Call slots; default: the site's core.workers_default.")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Several hosts, as YAML.")
@site_option
@fingerprint_option
@click.option("--public-name", default="", help="Default: NAME.<domain>.")
@click.option("--memory-mb", type=click.IntRange(256), help="Kept in the entry, and checked against by validate.")
@click.option("--internal-certificate", default="", metavar="REFERENCE", help="For mutual TLS, e.g. file:PATH.")
@click.option("--certificate", default="", metavar="REFERENCE", help="For its public name, if none covers it.")
@yes_option
@json_option
def add(
    name: str | None,
    address: str | None,
    fleet: str,
    workers: int | None,
    file: Path | None,
    site: str,
    fingerprint: str,
    public_name: str,
    memory_mb: int | None,
    internal_certificate: str,
    certificate: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Add the fleet host NAME at ADDRESS: pin its key, look whether it will do, write its entry, show the plan.

    Nothing is written before it has passed every check; nothing is done on it before `callfleet apply`. Certificates
    and static names are declared as its sisters have theirs, and the site's own authority, if it has one, issues the
    internal certificate. Several hosts come from --file, all of them or none:

    \b
      hosts:
        eu1-c: {address: 203.0.113.13, fleet: eu1, workers: 16, fingerprint: "SHA256:..."}

    \b
    Exit codes: 0 added, 1 refused or failed and nothing was written, 64 usage.

    \b
    Examples:
      callfleet host add eu1-c 203.0.113.13 --fleet eu1 --workers 16
      callfleet host add eu1-c 203.0.113.13 --fleet eu1 --workers 16 --fingerprint SHA256:... --yes
      callfleet host add --file hosts.yml --yes
    """
    if (file is None) == (name is None):
        raise click.UsageError("give NAME and ADDRESS, or --file")
    if file is not None:
        coming = from_file(file)
    elif name is None or address is None or not fleet:
        raise click.UsageError("give NAME, ADDRESS and --fleet")
    else:
        coming = [
            Newcomer(
                name, address, fleet, workers, public_name, memory_mb, internal_certificate, certificate, fingerprint
            )
        ]
    loaded, path = open_site(site), site_path(site)
    before = path.read_text("utf-8")
    after, declared = before, loaded
    for new in coming:
        after = admit(after, declared, new)
        declared = load_site(path, after)
    pins = Pins(declared)
    for new in coming:
        pins.confirm(declared.host(new.name), new.fingerprint)
    names = [new.name for new in coming]
    with ExitStack() as undo:
        for one, where in issued(declared, names):
            undo.callback(where.unlink, missing_ok=True)
            note(f"issued the internal certificate of {one}: {shown_path(where)}")
        with pins.tried(declared) as trial, Session(trial, sorted(plan_scope(trial, names))) as session:
            checks = examine(session, names)
            if not yes:
                confirm_site(loaded, f"{', '.join(names)} will be written into {path.name}.")
            pins.write_with(path, before, after)
            undo.pop_all()
            note(f"{', '.join(names)}: written into {path.name}")
            made = plans.look(session)
    then = f"callfleet apply {site}"
    if as_json:
        keys = {new.name: pins.keys[new.name].fingerprint for new in coming}
        echo_json(
            {"schema": 1, "kind": "host add", "site": loaded.name, "exit": DONE, "hosts": keys,
             "checks": doctor.as_data(checks), "plan": made, "next": then}
        )  # fmt: skip
        return
    plans.print_plan(made, diffs=False)
    click.echo(f"Added: {', '.join(names)}. Nothing was changed on any host yet. Next: {then}")


def issued(site: Site, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Certificates for mutual TLS that are missing for these hosts, made by the site's own authority if it has one."""
    if site.tls.internal is not None and site.tls.internal.authority is not None:
        yield from make(site, internal_certificates(site, names, {State.MISSING}))


def from_file(file: Path) -> list[Newcomer]:
    """The hosts of a file. SiteError with every mistake in it."""
    found = document.read(file)
    hosts = document.validate(found, HostFile)
    if hosts is None:
        raise SiteError(found.problems, "The file of hosts has mistakes; nothing was connected to or changed")
    return [
        Newcomer(
            name,
            one.address,
            one.fleet,
            one.workers,
            one.public_name or "",
            one.memory_mb,
            one.internal_certificate or "",
            one.certificate or "",
            one.fingerprint or "",
        )
        for name, one in hosts.hosts.items()
    ]


def plan_scope(site: Site, names: Sequence[str]) -> set[str]:
    """These hosts, and those that a change of theirs is registered with."""
    around = {host.name for host in site.hosts if host.roles & {"ingress", "app"}}
    return {*names, *around}


def examine(session: Session, names: Sequence[str]) -> list[preflight.Check]:
    """Preflight. CallfleetError with what failed; what only warns is said."""
    note(f"preflight of {', '.join(names)}")
    checks = doctor.examine(session, names)
    failed = [check for check in checks if check.state is preflight.State.FAILED]
    for check in checks:
        if check.state in (preflight.State.WARNING, preflight.State.UNKNOWN):
            note(f"{check.state}: {told(check)}")
    if failed:
        lines = "\n".join(f"  {told(check)}" for check in failed)
        raise CallfleetError(
            f"preflight failed; nothing was written, neither a key nor an entry:\n{lines}\nRight it, then run it again."
        )
    return checks


def told(check: preflight.Check) -> str:
    """One check on one line."""
    text = f"{check.host}, {check.what}: found {check.found}"
    text += f"; expected {check.expected}" if check.expected else ""
    return f"{text}. {check.next}" if check.next else text


@dataclass
class Pins:
    """Host keys that are about to be pinned, by the known_hosts file that they belong in."""

    site: Site
    before: dict[Path, str] = field(default_factory=dict)
    after: dict[Path, str] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)

    def confirm(self, one: Host, fingerprint: str) -> None:
        """Read a host's key, show it, and have it confirmed: by `fingerprint`, or by the operator's typing."""
        path = one.ssh.known_hosts
        if path not in self.before:
            self.before[path] = self.after[path] = path.read_text("utf-8") if path.exists() else ""
        called = hostkeys.name(one.ssh.hostname, one.ssh.port)
        known = hostkeys.pinned(self.before[path], called)
        found = hostkeys.read(one.ssh, known)
        note(f"{one.name} ({called}) shows the host key {found}")
        if fingerprint:
            if fingerprint != found.fingerprint:
                raise CallfleetError(
                    f"{one.name} shows the host key {found.fingerprint}, not the given {fingerprint}; nothing was "
                    "done. Compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host's own console"
                )
        elif found not in known:
            self._ask(one, known, found)
        self.keys[one.name] = found
        self.after[path] = hostkeys.pin(self.after[path], called, found)

    @staticmethod
    def _ask(one: Host, known: list[Key], found: Key) -> None:
        why = "Its key is unknown here, and is never taken unseen. "
        if known:
            why = f"ITS KEY CHANGED: {', '.join(map(str, known))} was pinned. "
        if not sys.stdin.isatty():
            raise CallfleetError(
                f"{one.name}: {why}It shows {found}. Compare it with the host's own console, then give it: "
                f"--fingerprint {found.fingerprint}"
            )
        click.echo(why, err=True)
        question = "Compare it on the host's own console. Type yes if it is the same"
        if click.prompt(question, default="no", err=True) != "yes":
            raise CallfleetError(f"{one.name}: its key was not confirmed; nothing was written")

    @contextmanager
    def tried(self, site: Site) -> Iterator[Site]:
        """The site with these keys, before they are written anywhere."""
        with tempfile.TemporaryDirectory(prefix="callfleet-") as folder:
            copies: dict[Path, Path] = {}
            for number, (path, text) in enumerate(self.after.items()):
                copies[path] = Path(folder) / f"known_hosts.{number}"
                copies[path].write_text(text, "utf-8")
            yield replace(
                site,
                hosts=tuple(
                    replace(one, ssh=replace(one.ssh, known_hosts=copies.get(one.ssh.known_hosts, one.ssh.known_hosts)))
                    for one in site.hosts
                ),
            )

    def write(self) -> None:
        """Pin them."""
        for path, text in self.after.items():
            edit.write_text(path, self.before[path], text)

    def write_with(self, path: Path, before: str, after: str) -> None:
        """Pin them, and put `after` in the place of the site file; both or neither."""
        self.write()
        try:
            edit.replace_file(path, before, after)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Put back what was pinned before, where it was written."""
        for path, text in self.after.items():
            if path.exists() and path.read_text("utf-8") == text != self.before[path]:
                edit.write_text(path, text, self.before[path])


@host.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete(hosts_fleets_roles))
@site_option
@fingerprint_option
def pin(names: tuple[str, ...], site: str, fingerprint: str) -> None:
    """Pin SSH host keys of hosts that the site file has already, each after it was compared: all, or those of NAME.

    For a site without known_hosts, and for a host whose key was changed on purpose. A key that is pinned already is not
    asked about. What NAME may be: a host, a fleet or a role.

    \b
    Exit codes: 0 all are pinned, 1 some are not, 64 usage.

    \b
    Examples:
      callfleet host pin --site staging
      callfleet host pin eu1-a
      callfleet host pin eu1-a --fingerprint SHA256:...
    """
    loaded = open_site(site)
    refuse_examples(loaded)
    chosen = [one for one in loaded.hosts if not names or one.name in limited(loaded, names)]
    if fingerprint and len(chosen) != 1:
        raise click.UsageError("--fingerprint is the key of one host: give its NAME")
    pins, failed = Pins(loaded), False
    for one in chosen:
        try:
            pins.confirm(one, fingerprint)
        except CallfleetError as error:
            note(f"not pinned: {error}")
            failed = True
    pins.write()
    click.echo(f"Pinned: {', '.join(pins.keys) or 'none'}.")
    sys.exit(FAILED if failed else DONE)


# Removing


@host.command()
@NAME
@site_option
@click.option("--wipe", is_flag=True, help="Take off it what callfleet laid down; packages stay.")
@lost_option
@deadline_option
@recordings_option
@yes_option
@json_option
def remove(
    name: str,
    site: str,
    wipe: bool,
    lost: bool,
    deadline: int | None,
    recordings_moved: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take the fleet host NAME out: no new call, wait for its calls, deliver its results, deregister, stop, forget it.

    It leaves the ingress, the API's list and the Dialler before it is stopped, and the inventory last. Interrupted
    anywhere, the same command goes on. Recordings that lie on it are its own matter: there is no store declared that
    they could be moved to, so it is refused while some are there, unless --recordings-moved says that they are safe.

    \b
    Exit codes: 0 removed, 3 calls or results are left and it takes no new call, 1 refused or failed, 64 usage.

    \b
    Examples:
      callfleet host remove eu1-a
      callfleet host remove eu1-a --wipe --yes
      callfleet host remove eu1-a --lost
    """
    if lost and wipe:
        raise click.UsageError("--lost never reaches the host, so it cannot --wipe it")
    loaded = open_site(site)
    seconds = loaded.calls.drain_deadline_seconds if deadline is None else deadline
    leave = Leave(loaded, site, fleet_host(loaded, name), seconds, recordings_moved, as_json)
    leave.check(wipe=wipe)
    if not yes:
        confirm_site(loaded, f"{name} leaves {loaded.name}{' unreached' if lost else ''}.")
    with leave.resumed_by(f"callfleet host remove {name}{' --wipe' if wipe else ''}{' --lost' if lost else ''}"):
        code = leave.carry_out(lost=lost, wipe=wipe)
        if code == DONE:
            now, rest = leave.rest()
            edit.replace_file(loaded.path, now, rest)
            # The key last: without it, a run that was interrupted here could not reach the host again.
            forget(leave.host)
            leave.say(f"{name} is out of the inventory")
    finish("host remove", leave, code)


def fleet_host(site: Site, name: str) -> Host:
    """A host that carries calls and nothing else. CallfleetError for any other."""
    found = next((one for one in site.hosts if one.name == name), None)
    if found is None:
        near = document.nearest(name, [one.name for one in site.hosts])
        raise CallfleetError(f"{site.name} has no host {name}. {near}")
    if found.roles != {"fleet"}:
        roles = " and ".join(sorted(found.roles - {"fleet"}))
        raise CallfleetError(
            f"{name} is {roles} of {site.name}. Only hosts that carry calls and nothing else come and go by command. "
            f"First give that to another host in {shown_path(site.path)}, then: callfleet apply {site.name}"
        )
    return found


@dataclass
class Leave:
    """A host on its way out of a site; `named` is what the operator called the site."""

    site: Site
    named: str
    host: Host
    seconds: float
    recordings_moved: bool
    as_json: bool
    steps: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    command: str = ""

    def rest(self) -> tuple[str, str]:
        """The site file as it is now, and without the host: others may have edited it while calls were waited for."""
        now = self.site.path.read_text("utf-8")
        found = load_site(self.site.path, now)
        if self.host.name not in [one.name for one in found.hosts]:
            return now, now
        return now, edit.remove_host(now, found, self.host.name)

    def check(self, *, wipe: bool) -> None:
        """CallfleetError for what would stop it half-way, before anything is touched: the file, certificates."""
        _, text = self.rest()
        try:
            rest = load_site(self.site.path, text)
        except SiteError as error:
            only = len(self.site.fleet_hosts) == 1
            what = "it is the only host that carries calls: add another one first, or give up the site" if only else ""
            raise SiteError(
                error.errors,
                f"Without {self.host.name} the site would not be valid{what and f', {what}'}. Nothing was changed",
            ) from None
        refuse_unedited(self.site)
        refuse_unusable(rest, self.around(rest))
        if wipe:
            refuse_unusable(self.site, {self.host.name})

    @staticmethod
    def around(site: Site) -> list[str]:
        """Hosts that it is registered with."""
        return [one.name for one in site.hosts if one.roles & {"ingress", "app"}]

    @contextmanager
    def resumed_by(self, command: str) -> Iterator[None]:
        """Whatever ends the block early, the operator is told what was done and how to go on."""
        self.command = command + (" --recordings-moved" if self.recordings_moved else "") + on(self.named)
        try:
            yield
        except KeyboardInterrupt:
            note(f"\nInterrupted. {self.left_off()}")
            raise
        except CallfleetError as error:
            raise CallfleetError(f"{error}\n{self.left_off()}") from error

    def left_off(self) -> str:
        """What a removal that ended early leaves behind."""
        if not self.steps:
            return f"{self.host.name} serves on, nothing was done. Again: {self.command}"
        back = f"callfleet host ready {self.host.name}{on(self.named)}"
        return (
            f"Done so far: {'; '.join(self.steps)}. Next: {self.command} goes on from there. "
            f"While it is in the inventory, {back} and callfleet apply {self.named} put it back"
        )

    def say(self, text: str) -> None:
        """A step that is done."""
        self.steps.append(text)
        note(text)

    def carry_out(self, *, lost: bool, wipe: bool) -> int:
        """Everything but the inventory; an exit code. CallfleetError says what stops it."""
        if lost:
            return self.write_off()
        until = time.monotonic() + self.seconds
        with self.reached() as session:
            there = self.drained(session)
            if there is None:
                return PENDING
        if (code := self.deregister(until)) != DONE:
            return code
        with self.reached() as session:
            if there:
                session.run(self.host.name, leaving.stop(self.site))
                self.say(f"{self.host.name}: stopped")
            if wipe:
                session.run(self.host.name, leaving.wipe(session.expected(self.host.name), self.site))
                self.say(f"{self.host.name}: wiped; its packages and /etc/docker/daemon.json are left")
        return DONE

    def write_off(self) -> int:
        """A dead host: out of all three places, and what may be lost with it."""
        self.lost = leaving.lost(self.host, self.site, self.sessions())
        code = self.deregister(time.monotonic() + self.seconds)
        for line in self.lost:
            note(f"may be lost: {line}")
        return code

    def sessions(self) -> int | None:
        """Calls that the ingress still holds to the host; None where no ingress tells."""
        if not self.site.ingress_hosts:
            return None
        with Session(self.site, ("ingress",), credentials=False) as session:
            proxies = [actual.proxy(ADMIN_SOCKET) for actual, _, _ in session.probe().values()]
        known = [one for one in proxies if one is not None and not isinstance(one, Unknown)]
        servers = [server for one in known for server in one.servers if server.name == self.host.name]
        return sum(server.sessions for server in servers) if known else None

    @contextmanager
    def reached(self) -> Iterator[Session]:
        """The host, connected."""
        with Session(self.site, (self.host.name,), credentials=False) as session:
            if why := session.unreached.get(self.host.name):
                raise CallfleetError(
                    f"{self.host.name} is not reached: {why}. Nothing more was done. If it is gone for good: "
                    f"{self.command.replace(' --wipe', '')} --lost"
                )
            yield session

    def drained(self, session: Session) -> bool | None:
        """Whether it has workers to stop, once no call and no result is left; None: some are."""
        name = self.host.name
        found = self.held(session)
        if not found.stack:
            self.say(f"{name}: no workers were laid down there")
            return False
        self.refuse_recordings(found)
        # Said before it is so: whatever interrupts it, the operator must not read that nothing was done.
        self.say(f"{name}: told to take no new call")
        slots.declare(session, name, "drain", (), "--reason leaves")
        left = [
            one
            for one in slots.wait(session, [name], (), self.seconds, as_json=self.as_json)
            if one.state not in slots.OUT_OF_SERVICE
        ]
        if left:
            self.say(f"{name}: {len(left)} slots still carry a call: {'; '.join(map(str, left[:4]))}")
            return None
        until = time.monotonic() + min(max(self.seconds, 1), OUTBOX_SECONDS)
        while (found := self.held(session)).results and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        if found.results:
            self.say(f"{name}: {found.results} call results are not delivered; does the API answer?")
            return None
        self.refuse_recordings(found)
        self.say(f"{name}: no call left, every result delivered")
        return True

    def held(self, session: Session) -> leaving.Held:
        """What is on it. CallfleetError for an answer that is none: it is never taken for an empty host."""
        answer = session.ask(self.host.name, leaving.look(self.site))
        try:
            return leaving.held(answer)
        except ValueError:
            raise CallfleetError(f"{self.host.name} does not tell what it still holds: {answer[:200]!r}") from None

    def refuse_recordings(self, found: leaving.Held) -> None:
        """CallfleetError while recordings lie on it that nobody has said to be safe."""
        if found.recordings and not self.recordings_moved:
            size = f"{found.recordings} recordings ({found.recording_bytes / 1024**2:.1f} MiB)"
            raise CallfleetError(
                f"{self.host.name} still has {size} in /var/lib/{self.site.brand.stack}/recordings. The site "
                "declares no store that they could be moved to: copy them, then run this with --recordings-moved"
            )

    def deregister(self, until: float) -> int:
        """Out of the ingress, the API's list and the Dialler; an exit code. Tried again while something waits."""
        first = True
        while True:
            rest = load_site(self.site.path, self.rest()[1])
            around = self.around(rest)
            if not around:
                return DONE
            # A `command:` secret is asked for once, however long something waits.
            with Session(rest, around, only=leaving.DEREGISTRATION, credentials=first) as session:
                session.look()
                ended = session.apply()
            bad = [one for one in ended if one.outcome in ("failed", "not reached")]
            if bad:
                lines = "\n".join(f"  {one.host}: {'; '.join(one.errors) or one.outcome}" for one in bad)
                self.say(f"{self.host.name} is not out everywhere:\n{lines}")
                return FAILED
            waiting = [line for one in ended for line in one.pending]
            if not waiting:
                self.say(f"{self.host.name}: out of the ingress, the API's list and the Dialler")
                return DONE
            if time.monotonic() >= until:
                self.say(f"{self.host.name} is not out everywhere: {'; '.join(waiting)}")
                return PENDING
            time.sleep(LOOK_SECONDS)
            first = False


def forget(one: Host, but: Host | None = None) -> None:
    """Take a host's pinned key out of its known_hosts, under all its names `but` those of another."""
    path = one.ssh.known_hosts
    if path.exists():
        before = path.read_text("utf-8")
        names = _called(one) - (_called(but) if but else set())
        edit.write_text(path, before, hostkeys.unpin(before, [hostkeys.name(name, one.ssh.port) for name in names]))


def _called(one: Host) -> set[str]:
    names = {one.name, *one.addresses, one.ssh.hostname, one.public_name}
    return {name for name in names if name}


def finish(kind: str, leave: Leave, code: int) -> None:
    """The end of a removal."""
    then = "" if code == DONE else leave.command
    if leave.as_json:
        echo_json(
            {"schema": 1, "kind": kind, "site": leave.site.name, "host": leave.host.name, "exit": code,
             "steps": leave.steps, "may_be_lost": leave.lost, "next": then}
        )  # fmt: skip
    elif code == DONE:
        click.echo(f"Removed {leave.host.name}.")
    else:
        click.echo(f"Not removed yet. Next: {then}, again")
    sys.exit(code)


# Replacing and resizing


@host.command(name="replace")
@NAME
@click.argument("new_address")
@click.option("--address6", default="", help="Its IPv6 address, if it has one.")
@site_option
@fingerprint_option
@lost_option
@deadline_option
@recordings_option
@yes_option
@json_option
def replace_host(
    name: str,
    new_address: str,
    address6: str,
    site: str,
    fingerprint: str,
    lost: bool,
    deadline: int | None,
    recordings_moved: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Put another machine, at NEW_ADDRESS, in the place of the fleet host NAME.

    The new one's key and fitness are looked at first. Then the old one is taken out as `host remove` does (--lost: not
    reached), the address is changed, and the plan is shown; `callfleet apply` brings the new one up under the name.

    \b
    Exit codes: 0 replaced, 3 the old one still has calls or results, 1 refused or failed, 64 usage.

    \b
    Examples:
      callfleet host replace eu1-a 203.0.113.31
      callfleet host replace eu1-a 203.0.113.31 --lost --fingerprint SHA256:... --yes
    """
    loaded, path = open_site(site), site_path(site)
    before = path.read_text("utf-8")
    old = fleet_host(loaded, name)
    if old.ssh.hostname != old.address:
        raise CallfleetError(
            f"{name} is reached by ssh.hostname {old.ssh.hostname}, not by its address; remove it and add the new one"
        )
    if old.address6 and not address6:
        raise CallfleetError(f"{name} has the address6 {old.address6}: give the new machine's, --address6")
    after = edit.set_address(before, loaded, name, new_address, address6)
    declared = load_site(path, after)
    seconds = loaded.calls.drain_deadline_seconds if deadline is None else deadline
    leave = Leave(loaded, site, old, seconds, recordings_moved, as_json)
    leave.check(wipe=False)
    pins = Pins(declared)
    pins.confirm(declared.host(name), fingerprint)
    with pins.tried(declared) as trial, Session(trial, sorted({name} | doctor.witnesses(trial))) as session:
        examine(session, [name])
    if not yes:
        confirm_site(loaded, f"{name} at {old.address} is taken out, {new_address} takes its place.")
    again = f"callfleet host replace {name} {new_address}{f' --address6 {address6}' if address6 else ''}"
    with leave.resumed_by(f"{again}{' --lost' if lost else ''}"):
        code = leave.carry_out(lost=lost, wipe=False)
        if code != DONE:
            finish("host replace", leave, code)
        now = path.read_text("utf-8")
        after = edit.set_address(now, load_site(path, now), name, new_address, address6)
        pins.write_with(path, now, after)
        forget(old, but=declared.host(name))
    declared = load_site(path, after)
    # By a copy of the pins: known_hosts was read already by this process, with the old machine's key in it.
    with pins.tried(declared) as trial, Session(trial, sorted(plan_scope(trial, [name]))) as session:
        made = plans.look(session)
    more = {"steps": leave.steps, "may_be_lost": leave.lost}
    shown(made, declared, "host replace", f"callfleet apply {site}", as_json=as_json, more=more)


@host.command()
@NAME
@click.option("--workers", type=WORKERS, required=True, help="Call slots from now on.")
@site_option
@yes_option
@json_option
def resize(name: str, workers: int, site: str, yes: bool, as_json: bool) -> None:
    """Give the fleet host NAME another number of call slots: memory is checked, the entry changed, the plan shown.

    `callfleet apply` does it: new slots come up and pass a canary call, those beyond the number leave as their calls
    end, and each worker learns the new number once it is idle.

    \b
    Exit codes: 0 written, 1 refused or failed and nothing was written, 64 usage.

    \b
    Examples:
      callfleet host resize eu1-a --workers 6
    """
    loaded, path = open_site(site), site_path(site)
    before = path.read_text("utf-8")
    found = next((one for one in loaded.fleet_hosts if one.name == name), None)
    if found is None:
        near = document.nearest(name, [one.name for one in loaded.fleet_hosts])
        raise CallfleetError(f"{loaded.name} has no fleet host {name}. {near}")
    if found.workers == workers:
        raise CallfleetError(f"{name} has {workers} workers already. Next: callfleet plan {site}")
    after = edit.set_workers(before, loaded, name, workers)
    declared = load_site(path, after)
    with Session(declared, sorted(plan_scope(declared, [name]))) as session:
        if why := session.unreached.get(name):
            raise CallfleetError(f"{name} is not reached: {why}. Its memory is unknown; nothing was written")
        check = preflight.memory(declared, declared.host(name), session.probe()[name][0], workers)
        if check is not None and check.state in (preflight.State.FAILED, preflight.State.UNKNOWN):
            raise CallfleetError(f"nothing was written: {told(check)}")
        if not yes:
            confirm_site(loaded, f"{name}: {found.workers} -> {workers} workers, in {path.name}.")
        edit.replace_file(path, before, after)
        made = plans.look(session)
    shown(made, declared, "host resize", f"callfleet apply {site}", as_json=as_json)


def shown(
    made: dict[str, Any], site: Site, kind: str, then: str, *, as_json: bool, more: Mapping[str, Any] | None = None
) -> None:
    """The plan after a change of the inventory, and the next command."""
    if as_json:
        echo_json(
            {"schema": 1, "kind": kind, "site": site.name, "exit": DONE, **(more or {}), "plan": made, "next": then}
        )
        return
    plans.print_plan(made, diffs=False)
    if made["exit"] == report.FAILED:
        click.echo("Some hosts could not be looked at; what is shown may not be all.")
    click.echo(f"Written; nothing was changed on any host yet. Next: {then}")
