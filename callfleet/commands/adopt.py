"""`callfleet import`: read a platform that was built by hand, and write the site file that describes it."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from callfleet.actual import Unknown
from callfleet.adopt import fleet, haproxy, ingress, inventory, platform, report
from callfleet.adopt.contradictions import Finding, Weight, find
from callfleet.adopt.fleet import Machine, Names, named
from callfleet.adopt.found import Files, Found
from callfleet.adopt.ingress import Ingress
from callfleet.adopt.inventory import Inventory, Source, Wishes
from callfleet.adopt.platform import Platform
from callfleet.commands.common import DONE, SITE, echo_json, json_option, note, show, site_path, table
from callfleet.commands.hosts import Pins
from callfleet.errors import CallfleetError, SiteError, shown_path
from callfleet.pyinfra_remote import StepError
from callfleet.pyinfra_session import Session
from callfleet.secrets import SecretError, parse, resolve, write_private
from callfleet.site import Site, load_site
from callfleet.site.defaults import Defaults, defaults_file, read_defaults
from callfleet.site.edit import write_text
from callfleet.site.load import bare_site
from callfleet.templates import ROOT
from facts import legacy
from facts.frame import ProbeError

STAGES = click.Choice(["lab", "local", "staging", "prod"])
LARGEST_FILE = 4 * 1024**2
READ_SECONDS = 180.0
INCOMPLETE = 3
"""Exit code: written, and the operator has something to look at first; the same as what is pending elsewhere."""


@dataclass(frozen=True)
class Target:
    """A host to read: what it is to be called (empty: by its own name), and where it is reached."""

    name: str
    hostname: str
    address: str

    @property
    def key(self) -> str:
        """What it is called while it is read."""
        return self.name or platform.host_name(self.hostname)


@click.command("import")
@SITE
@click.argument("more", nargs=-1, metavar="[HOST]...")
@click.option("--from", "hosts", multiple=True, metavar="HOST", help="Read this host; ADDRESS or NAME=ADDRESS.")
@click.option(
    "--haproxy", "files", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Read this haproxy.cfg; maps that it names are looked for beside it.",
)  # fmt: skip
@click.option("--stage", type=STAGES, default="prod", show_default=True)
@click.option("--brand", default="", help="A brand of group_data; default: by the names found.")
@click.option("--domain", default="", help="Default: the one that the names found lie in.")
@click.option("--fleet", "fleet_name", default="main", show_default=True, help="Of hosts that no ingress groups.")
@click.option("--ingress", "ingress_host", default="", metavar="NAME=ADDRESS", help="The host of a --haproxy FILE.")
@click.option("--longest-call", type=click.IntRange(10, 86400), default=600, show_default=True, metavar="SECONDS")
@click.option("--release", default="", metavar="FILE", help="The release file, from the site file's folder.")
@click.option("--api-token", default="", metavar="REFERENCE", help="To ask the API for core_fleet, e.g. env:TOKEN.")
@click.option(
    "--secrets-to", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Also fetch secrets and keys, each into a file of mode 0600 there. Without it, none leaves its host.",
)  # fmt: skip
@click.option("--user", default="", help="SSH user.  [default: root]")
@click.option("--port", type=click.IntRange(1, 65535), help="SSH port.  [default: 22]")
@click.option("--key", default="", metavar="FILE", help="SSH key.")
@click.option("--ssh-config", default="", metavar="FILE", help="OpenSSH configuration, for jump hosts.")
@click.option("--known-hosts", default="", metavar="FILE", help="Pinned host keys; default: SITE.known_hosts.")
@click.option("--fingerprint", "fingerprints", multiple=True, metavar="[HOST=]SHA256:...", help="For scripts.")
@click.option("--force", is_flag=True, help="Replace a site file that is there; it stays beside it as .old.")
@json_option
def import_(
    site: str,
    more: tuple[str, ...],
    hosts: tuple[str, ...],
    files: tuple[Path, ...],
    stage: str,
    brand: str,
    domain: str,
    fleet_name: str,
    ingress_host: str,
    longest_call: int,
    release: str,
    api_token: str,
    secrets_to: Path | None,
    user: str,
    port: int | None,
    key: str,
    ssh_config: str,
    known_hosts: str,
    fingerprints: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Read a platform that was built by hand, and write the site file SITE that describes it.

    Reads running hosts over SSH (--from), changing nothing on them: worker units, environment files, sockets, limits,
    nginx, HAProxy, certificates, core_fleet and FLEET_URLS. Or a haproxy.cfg (--haproxy), of any host. Tells what it
    understood, what it did not, and what contradicts; `callfleet plan` then shows what would change.

    \b
    Exit codes: 0 written, valid and all understood; 3 written, and something contradicts, was not understood or could
    not be read, or validation names something; 1 failed, nothing written; 64 usage.

    \b
    Examples:
      callfleet import prod --from 203.0.113.11 203.0.113.12 203.0.113.5
      callfleet import prod --from eu1-a=203.0.113.11 --from calls=203.0.113.2 --secrets-to inventories/secrets/prod
      callfleet import prod --haproxy /etc/haproxy/haproxy.cfg --ingress calls=203.0.113.2 --json
    """
    if more and not hosts:
        raise click.UsageError("hosts follow --from")
    if not hosts and not files:
        raise click.UsageError("give --from HOST... or --haproxy FILE")
    path = site_path(site)
    if platform.host_name(path.stem) != path.stem:
        raise click.UsageError(f"{path.stem}: expected a site name of lower-case letters, digits and inner hyphens")
    if path.exists() and not force:
        raise CallfleetError(
            f"{shown_path(path)} is there already; nothing was read. Next: callfleet plan {site}, or import under "
            "another name and compare, or --force, which keeps the old one as .old"
        )
    if not path.parent.is_dir():
        raise CallfleetError(f"there is no folder {shown_path(path.parent)}; expected the one that site files lie in")
    defaults = known_defaults(path, brand)
    ssh = {"user": user, "port": port, "key": from_here(key), "config": from_here(ssh_config),
           "known_hosts": from_here(known_hosts)}  # fmt: skip
    ssh = {name: value for name, value in ssh.items() if value}
    targets = [target(each) for each in (*hosts, *more)]
    if len(targets) > 1 and any("=" not in each for each in fingerprints):
        raise click.UsageError("with several hosts, say whose: --fingerprint HOST=SHA256:...")
    at = host_and_address(ingress_host) if ingress_host else None
    token = token_of(api_token, path)
    names = Names(
        frozenset(each.services.api for each in defaults.brands.values()),
        frozenset(each.services.dialler for each in defaults.brands.values()),
        frozenset(each.socket_prefix for each in defaults.brands.values()),
    )
    prefix = reference_prefix(secrets_to, path) if secrets_to else ""
    with Reading(path, ssh, targets, fingerprints) as reading:
        machines = [fleet.understand(each, names) for each in reading.look()]
        machines = [with_fleet_list(reading, machine, defaults, token) for machine in machines]
        ingresses = [*read_ingresses(machines), *map(read_file, files)]
        known = addresses(ingresses, machines)
        whole = platform.assemble(machines, ingresses, known, fleet_name)
        if not whole.fleet_hosts and whole.app is None:
            raise CallfleetError(
                "neither workers, nor an ingress that carries calls, nor an API was found; nothing was written. "
                f"Expected template units behind Unix sockets, or backends checked at {ingress.HEALTH}"
            )
        findings = find(whole, longest_call=longest_call, now=datetime.now(UTC))
        left = report.not_understood(whole)
        wishes = Wishes(
            site=path.stem, stage=stage, brand=brand, domain=domain, ssh=ssh, secrets=prefix, release=release,
            longest_call=longest_call, ingress=at, names_known=frozenset(n for n, found in known.items() if found),
            hostnames=reading.hostnames,
        )  # fmt: skip
        made = inventory.describe(whole, wishes, defaults)
        fetched = reading.fetch(made.sources) if secrets_to else {}
        for source in made.sources:
            if source.reference not in fetched:
                made.do(f"secrets: {source.reference}", wanted(source, asked=secrets_to is not None))
        if any(machine.api for machine in machines) and whole.core_fleet is None:
            made.do("core_fleet", "the API was not asked for it: --api-token REFERENCE")
        written = write_all(path, made, inventory.text(made, map(str, left)), fetched, release, reading)
    problems = check(path)
    bad = [each for each in findings if each.weight is Weight.CONTRADICTION]
    clean = not (bad or left or problems or platform.unknowns(machines))
    code = DONE if clean else INCOMPLETE
    then = f"callfleet plan {site}" if not problems else f"callfleet validate {site}"
    if as_json:
        echo_json(
            report.document(path.stem, whole, findings, left, made.todo, made.notes, problems, written, code, then)
        )
    else:
        tell(whole, findings, left, made, problems, written, then)
    sys.exit(code)


# What was asked for


def known_defaults(path: Path, brand: str) -> Defaults:
    """group_data, in which the brand must be."""
    defaults, document = read_defaults(defaults_file(path))
    if defaults is None:
        raise SiteError(document.problems)
    if brand and brand not in defaults.brands:
        raise CallfleetError(f"there is no brand {brand}; group_data has {', '.join(defaults.brands)}")
    return defaults


def target(text: str) -> Target:
    """NAME=ADDRESS, or an address or DNS name alone. CallfleetError for a name that leads nowhere."""
    name, equals, where = text.partition("=")
    if not equals:
        name, where = "", text
    if equals and platform.host_name(name) != name:
        raise click.UsageError(f"{text}: expected NAME=ADDRESS with a name of lower-case letters, digits and hyphens")
    if platform.is_address(where):
        return Target(name, where, where)
    found = resolved(where)
    if not found:
        raise CallfleetError(f"{where} leads to no address; expected HOST or NAME=HOST that can be reached by SSH")
    return Target(name or platform.host_name(where), where, found[0])


def host_and_address(text: str) -> tuple[str, str]:
    """NAME=ADDRESS of --ingress."""
    name, _, where = text.partition("=")
    if platform.host_name(name) != name or not platform.is_address(where):
        raise click.UsageError(f"--ingress {text}: expected NAME=ADDRESS such as calls=203.0.113.2")
    return name, where


def from_here(text: str) -> str:
    """A path as a site file elsewhere means it too."""
    return text if not text or text.startswith(("/", "~")) else str(Path(text).absolute())


def reference_prefix(folder: Path, path: Path) -> str:
    """The folder of secrets as the site file names it."""
    whole = folder.expanduser().absolute()
    try:
        return str(whole.relative_to(path.parent.absolute()))
    except ValueError:
        return str(whole)


def token_of(reference: str, path: Path) -> str:
    """The API's token; empty when none is named."""
    if not reference:
        return ""
    try:
        return resolve(parse(reference), path.parent).reveal()
    except (ValueError, SecretError) as error:
        raise CallfleetError(f"--api-token: {error}") from None


# Reading


class Reading:
    """The hosts that are read, connected while it lasts; their keys are pinned by `pin`, once all went well."""

    def __init__(
        self, path: Path, ssh: Mapping[str, Any], targets: Sequence[Target], fingerprints: Sequence[str]
    ) -> None:
        self.targets = {each.key: each for each in targets}
        self.session: Session | None = None
        self.pins: Pins | None = None
        self.called: dict[str, str] = {}
        if not targets:
            return
        if len(self.targets) < len(targets):
            raise click.UsageError("a host is named twice: give each a name of its own, NAME=ADDRESS")
        hosts = {
            name: {"address": each.address, "ssh": {"hostname": each.hostname}}
            for name, each in self.targets.items()
        }  # fmt: skip
        self.site = bare_site(path, ssh, hosts)
        self.pins = Pins(self.site)
        given = dict(each.rpartition("=")[::2] for each in fingerprints)
        for name, each in self.targets.items():
            shown = given.get(name) or given.get(each.hostname) or (given.get("", "") if len(targets) == 1 else "")
            self.pins.confirm(self.site.host(name), shown)

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *problem: object) -> None:
        if self.session is not None:
            self.session.__exit__(*problem)
        if self._tried is not None:
            self._tried.__exit__(None, None, None)

    _tried: Any = None

    def look(self) -> list[Found]:
        """What all hosts say, each called by its own name where none was given. CallfleetError while one is silent."""
        if self.pins is None:
            return []
        note(f"reading {', '.join(each.hostname for each in self.targets.values())}")
        self._tried = self.pins.tried(self.site)
        trial: Site = self._tried.__enter__()
        self.session = Session(trial, credentials=False).__enter__()
        if self.session.unreached:
            lines = "\n".join(f"  {name}: {why}" for name, why in self.session.unreached.items())
            raise CallfleetError(f"not every host could be reached; nothing was written:\n{lines}")
        nonce = secrets.token_hex(16)
        found, taken = [], {name for name, each in self.targets.items() if each.name}
        try:
            script = legacy.script(nonce)
            for key, text in self.session.outcomes(script, READ_SECONDS).items():
                if isinstance(text, StepError):
                    raise StepError(f"{self.targets[key].hostname}: {text}")
                each = legacy.parse(text, key, self.targets[key].address)
                if not self.targets[key].name and isinstance(each.hostname, str):
                    each = replace(each, name=platform.unique(platform.host_name(each.hostname), taken))
                taken.add(each.name)
                self.called[each.name] = key
                if each.ours is True:
                    raise CallfleetError(
                        f"{each.name} is callfleet's already (/etc/callfleet/site.json); nothing was written. Its site "
                        "file describes it"
                    )
                found.append(each)
        except (StepError, ProbeError) as error:
            raise CallfleetError(f"a host could not be read; nothing was written: {error}") from None
        return found

    @property
    def hostnames(self) -> dict[str, str]:
        """By the names that hosts have in the end, where each is reached."""
        return {name: self.targets[key].hostname for name, key in self.called.items()}

    def ask(self, name: str, script: str) -> str:
        """One more question to one host. CallfleetError when it does not answer."""
        assert self.session is not None  # noqa: S101 - hosts have names once they were read
        try:
            return self.session.ask(self.called[name], script)
        except StepError as error:
            raise CallfleetError(f"{name} could not be read; nothing was written: {error}") from None

    def fetch(self, sources: Iterable[Source]) -> dict[str, bytes]:
        """The secrets themselves, by reference; those that could not be read are missing."""
        held = list(sources)
        contents: dict[tuple[str, str], bytes | Unknown | None] = {}
        for host in sorted({each.host for each in held}):
            paths = sorted({path for each in held if each.host == host for path in each.paths if path[:1] == "/"})
            note(f"fetching {len(paths)} files with secrets from {host}")
            answer = legacy.parse_contents(self.ask(host, legacy.contents_script(paths)))
            contents |= {(host, path): content for path, content in answer.items()}
        found: dict[str, bytes] = {}
        for each in held:
            texts = [contents.get((each.host, path)) for path in each.paths]
            whole = [text for text in texts if isinstance(text, bytes) and text]
            if len(whole) < len(each.paths):
                continue
            value = variable(whole[0], each.variable) if each.variable else b"\n".join(map(bytes.rstrip, whole)) + b"\n"
            if value:
                found[each.reference] = value
        return found

    def pin(self) -> None:
        """Pin the keys that were confirmed."""
        if self.pins is not None:
            self.pins.write()


def variable(content: bytes, name: str) -> bytes:
    """The value of a variable in an environment file; the last one counts."""
    value = ""
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        key, equals, rest = line.partition("=")
        if equals and key.strip() == name:
            value = legacy.unquoted(rest)
    return f"{value}\n".encode("utf-8", "surrogateescape") if value else b""


def with_fleet_list(reading: Reading, machine: Machine, defaults: Defaults, token: str) -> Machine:
    """The machine with the API's fleet list, if it runs the API and a token is to be had."""
    if machine.api is None or not machine.api.active:
        return machine
    environment = machine.found.environment(machine.api)
    words = machine.api.command.split()
    port = words[words.index("--port") + 1] if "--port" in words[:-1] else ""
    value = environment.get("PORT")
    port = port or (value.text if value and value.text else "") or str(defaults.ports.api)
    path = named(environment, "ADMIN_TOKEN_FILE")
    if not port.isdigit() or not (token or (path and path.text)):
        return machine
    url = f"http://127.0.0.1:{port}/api/v1/settings/fleet"
    script = legacy.fleet_list_script(url, token=token, token_file="" if token or not path else path.text or "")
    try:
        answer = legacy.parse_fleet_list(reading.ask(machine.name, script))
    except ProbeError as error:
        answer = Unknown(str(error))
    return replace(machine, found=replace(machine.found, core_fleet=answer))


def read_ingresses(machines: Iterable[Machine]) -> list[Ingress]:
    """The HAProxy of each host that has one."""
    found = []
    for machine in machines:
        held = machine.found.haproxy
        if isinstance(held, Files):
            unit = machine.found.units.get("haproxy.service") if isinstance(machine.found.units, Mapping) else None
            environment = machine.found.environment(unit) if unit else {}
            plain = {name: value.text for name, value in environment.items() if value.text is not None}
            config = haproxy.parse([(path, held.texts[path]) for path in held.main if path in held.texts], plain)
            found.append(ingress.understand(machine.name, config, held.texts))
    return found


def read_file(path: Path) -> Ingress:
    """A haproxy.cfg, with the text files beside it. CallfleetError when it is none."""
    try:
        content = path.read_bytes()
        beside = [each for each in sorted(path.parent.iterdir()) if each.is_file() and each != path][:200]
        texts = {str(each): each.read_text("utf-8", "replace") for each in beside if _small(each)}
    except OSError as error:
        raise CallfleetError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE or b"\0" in content:
        raise CallfleetError(f"{path}: expected an HAProxy configuration, of at most {LARGEST_FILE} bytes")
    config = haproxy.parse([(str(path), content.decode("utf-8", "replace"))])
    if not config.of("frontend", "backend", "listen"):
        raise CallfleetError(f"{path}: no frontend, backend or listen section in it; expected an HAProxy configuration")
    return ingress.understand(str(path), config, texts)


def _small(path: Path) -> bool:
    return path.suffix in (".map", ".lst", ".list", ".txt", ".acl", "") and path.stat().st_size < 256 * 1024


def addresses(ingresses: Iterable[Ingress], machines: Sequence[Machine]) -> dict[str, list[str]]:
    """Every name that was found, and the addresses it leads to as seen from here."""
    names = {server.host for each in ingresses for backend in each.backends for server in backend.servers}
    names |= {name for each in ingresses for name in each.names}
    for machine in machines:
        if machine.front is not None:
            names |= {*machine.front.names, *platform.web_names(machine)}
        for url in machine.found.core_fleet or () if isinstance(machine.found.core_fleet, tuple) else ():
            names.add(platform.url_host(url))
        if machine.dialler is not None:
            urls = named(machine.found.environment(machine.dialler), "FLEET_URLS")
            names |= {platform.url_host(url) for url in (urls.text or "").split(",")} if urls else set()
    wanted = sorted(name for name in names if name and "/" not in name and not platform.is_address(name))
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(wanted, pool.map(resolved, wanted), strict=True))


def resolved(name: str) -> list[str]:
    """The addresses of a name, IPv4 first; none when it leads nowhere."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return []
    return sorted(found, key=lambda address: (":" in address, address))


# Writing


def wanted(source: Source, *, asked: bool) -> str:
    """What is to be put where a reference points."""
    what = source.variable or " and ".join(source.paths)
    where = f"{what} of {source.host}:{source.paths[0]}" if source.variable else f"{what} of {source.host}"
    return f"{where} could not be read: put it there, mode 0600" if asked else f"{where}, mode 0600 (--secrets-to DIR)"


def write_all(
    path: Path, made: Inventory, text: str, fetched: Mapping[str, bytes], release: str, reading: Reading
) -> list[str]:
    """Every file, secrets first and the site file last; the paths, as people type them."""
    written = []
    try:
        for reference, content in fetched.items():
            file = path.parent / Path(reference.removeprefix("file:")).expanduser()
            write_private(file, content, keep=True)
            written.append(file)
        reading.pin()
        pins = path.with_suffix(".release.yml")
        if not release and not pins.exists():
            write_text(pins, "", inventory.release_text(made.images))
            written.append(pins)
        program = path.with_suffix(".py")
        if not program.exists():
            write_text(program, "", (ROOT / "inventories" / "prod.py").read_text("utf-8"))
            written.append(program)
        before = path.read_text("utf-8", "surrogateescape") if path.exists() else ""
        if before:
            old = path.with_name(f"{path.name}.old")
            write_text(old, old.read_text("utf-8") if old.exists() else "", before)
        write_text(path, before, text)
        written.append(path)
    except OSError as error:
        raise CallfleetError(f"{error.filename or path}: cannot be written: {error.strerror}") from None
    return [shown_path(each) for each in written]


def check(path: Path) -> list[str]:
    """What validation says of what was written."""
    try:
        load_site(path)
    except SiteError as error:
        return [str(problem) for problem in error.errors]
    return []


# Telling


def tell(
    whole: Platform, findings: list[Finding], left: list[report.Left], made: Inventory, problems: list[str],
    written: list[str], then: str,
) -> None:  # fmt: skip
    """The report, for people."""
    rows = table("host", "fleet", "address", "workers", "public name", "ingress", "core_fleet", "FLEET_URLS")
    for one in whole.fleet_hosts:
        listed = ["?" if url is None else "yes" if url else "no" for url in (one.listed, one.dialled)]
        rows.add_row(
            one.name, one.fleet or "main", one.address or "?", str(one.workers or "?"), one.public_name or "?",
            "yes" if one.inbound else "no", *listed,
        )  # fmt: skip
    show(rows)
    heading("Understood", report.understood(whole))
    heading("Not understood, kept as comments", [str(each) for each in left])
    heading("Unknown", platform.unknowns(whole.machines))
    for weight, title in ((Weight.CONTRADICTION, "Contradictions"), (Weight.WEAKNESS, "Weaknesses")):
        chosen = [each for each in findings if each.weight is weight]
        click.echo(f"\n{title}: {len(chosen) or 'none'}")
        for each in chosen:
            click.echo(f"  {each.kind}{f' ({each.host})' if each.host else ''}: {each.what}")
            for side in each.sides:
                click.echo(f"      {side.where}{f': {side.says}' if side.says else ''}")
            click.echo(f"      -> {each.next}")
    heading("Notes", made.notes)
    heading("To do", [f"{place}: {what}" for place, what in made.todo])
    heading("Validation names", problems)
    click.echo(f"\nWritten: {', '.join(written)}. Nothing was changed on any host. Next: {then}")


def heading(title: str, lines: Sequence[str]) -> None:
    """A part of the report, if there is something in it."""
    if lines:
        click.echo(f"\n{title}:")
        for line in lines:
            click.echo(f"  {line}")
