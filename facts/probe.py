"""The probe: reads everything one host can tell in one round trip, and answers it typed.

``script`` assembles the command text, ``parse`` reads its output, ``Probe`` is both as a pyinfra fact. What a part's
frame looks like is written at the top of ``probe.sh``. A part that fails is ``Unknown`` with its reason; it never takes
the rest down.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase

from callfleet.actual import Actual, ProbeRequest
from facts.docker import read_container, read_engine, read_engine_part, read_image
from facts.files import read_certificates, read_contents, read_files, read_listings
from facts.frame import HEADER, LAST, Answer, ProbeError, encode_request, settings
from facts.haproxy import read_ask, read_processes, read_proxy
from facts.host import (
    read_clock,
    read_disks,
    read_listeners,
    read_memory,
    read_os,
    read_packages,
    read_units,
    told_value,
)
from facts.ours import read_core_fleet, read_drained, read_mark, read_mark_file, read_object, read_slots

PROGRAM = Path(__file__).with_name("probe.sh")
MARK = "/etc/callfleet"
LARGEST_COMMAND = 100_000  # bytes; the kernel takes 128 KiB as one argument, and quoting adds to it

# Always asked: what may already provide a container engine, ours or another one in its way.
ENGINE_PACKAGES = (
    "docker.io",
    "docker-cli",
    "docker-compose",
    "docker-ce",
    "docker-ce-cli",
    "docker-compose-plugin",
    "moby-engine",
    "podman",
    "podman-docker",
    "containerd",
    "containerd.io",
)

PROXY_COMMANDS = ("show info", "show stat", "show servers state", "show env CALLFLEET_CONFIG")

# "@!": each worker process. What its frontends carry; what its servers do and since when.
MASTER_COMMANDS = ("show proc", "@! show stat -1 1 -1")
SESSIONS = "@! show sess"


def script(request: ProbeRequest) -> str:
    """The text of one ``sh -c`` argument that asks all of ``request``. Raises ValueError when it is too long."""
    lines = [line for line in PROGRAM.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("# ")]
    text = "\n".join([*filter(None, lines), *_calls(request), f'echo "{LAST}"', "exit 0"])
    size = len(shlex.quote(text).encode())
    if size > LARGEST_COMMAND:
        raise ValueError(f"the probe would be {size} bytes long, more than {LARGEST_COMMAND}: ask for fewer paths")
    return text


def _calls(request: ProbeRequest) -> Iterator[str]:
    yield f'echo "{HEADER}request"'
    yield f"echo {encode_request(request)}"
    for name in ("os", "host", "clock", "disks", "listeners"):
        yield f"section {name} read_{name}"
    yield _call("nft", "read_nft", request.nft_table)
    if paths := _unique(request.files + request.listed):
        yield _call("presence", "read_presence", *paths)
    if request.files:
        yield _call("files", "read_files", *_unique(request.files))
        yield _call("hashes", "read_hashes", *_unique(request.files))
    if request.contents:
        yield _call("contents", "read_contents", *_unique(request.contents))
    if request.certificates:
        yield _call("certificates", "read_certificates", *_unique(request.certificates))
    if request.listed:
        yield _call("listings", "read_listings", *_unique(request.listed))
    yield _call("packages", "read_packages", *_unique(request.packages + ENGINE_PACKAGES))
    if request.units:
        yield _call("units", "read_units", *_unique(request.units))
    yield "section engine read_engine; engine=$status"
    yield '[ "$engine" != 0 ] || section containers read_containers'
    yield '[ "$engine" != 0 ] || section images read_images'
    for stack in _unique(request.stacks):
        yield _call(f"slots:{stack}", "read_slots", stack)
    asked = [*PROXY_COMMANDS, *(f"show ssl {what}" for what in request.haproxy_certificates)]
    questions = [(path, command) for path in _unique(request.haproxy_admin) for command in asked]
    questions += [(path, command) for path in _unique(request.haproxy_master) for command in MASTER_COMMANDS]
    questions += [(path, SESSIONS) for path in _unique(request.haproxy_sessions)]
    if questions:
        yield _call("socket-presence", "read_presence", *_unique(tuple(path for path, _ in questions)))
        yield _call("sockets", "read_sockets", *(word for question in questions for word in question))
    yield _call("mark", "read_mark", *_unique(request.stacks))
    if request.api:
        yield _call("core-fleet", "read_core_fleet", request.api.curl_config, request.api.url)


def _call(name: str, function: str, *arguments: str) -> str:
    return shlex.join(["section", name, function, *arguments])


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def parse(stdout: list[str]) -> Actual:
    """The typed answer. Raises ProbeError only when the output is not an answer of the probe at all."""
    answer = Answer(stdout)
    request = answer.request
    engine = answer.read_or_absent("engine", read_engine)
    told = answer.read("host", settings)
    mark = answer.read("mark", read_mark)
    return Actual(
        request=request,
        os=answer.read("os", read_os),
        arch=told_value(told, "uname", lambda value: value.split()[-1]),
        kernel=told_value(told, "uname", lambda value: value.split()[0]),
        hostname=told_value(told, "hostname", str),
        boot_id=told_value(told, "boot_id", str),
        uid=told_value(told, "uid", int),
        ssh_port=told_value(told, "ssh_port", int),
        cpus=told_value(told, "cpus", int),
        memory=read_memory(told),
        disks=answer.read("disks", read_disks, ok=(0, 1)),
        clock=answer.read("clock", read_clock),
        files=read_files(answer),
        contents=read_contents(answer),
        certificates=read_certificates(answer),
        listings=read_listings(answer),
        packages=answer.read("packages", lambda part: read_packages(part, _unique(request.packages + ENGINE_PACKAGES))),
        units=answer.read("units", lambda part: read_units(part, _unique(request.units))) if request.units else {},
        engine=engine,
        containers=read_engine_part(engine, answer, "containers", read_container),
        images=read_engine_part(engine, answer, "images", read_image),
        slots={stack: answer.read_or_absent(f"slots:{stack}", read_slots) for stack in request.stacks},
        proxies={path: read_ask(answer, path, read_proxy) for path in request.haproxy_admin},
        proxy_processes={path: read_ask(answer, path, read_processes) for path in request.haproxy_master},
        listeners=answer.read("listeners", read_listeners),
        nft=answer.read_or_absent("nft", lambda part: hashlib.sha256(part.data).hexdigest()),
        nft_rules=answer.read_or_absent("nft", lambda part: part.text),
        site=read_mark_file(mark, f"{MARK}/site.json", read_object),
        fence=read_mark_file(mark, f"{MARK}/fence", int),
        canaries={
            stack: read_mark_file(mark, f"{MARK}/stacks/{stack}/canary.json", read_object) for stack in request.stacks
        },
        drained={stack: read_drained(mark, f"{MARK}/stacks/{stack}/drained") for stack in request.stacks},
        core_fleet=answer.read_or_absent("core-fleet", read_core_fleet) if request.api else None,
    )


class Probe(FactBase[Actual]):
    """One host, read in one round trip: ``host.get_fact(Probe, request=ProbeRequest(...))``.

    A host that did not answer is a typed all-unknown ``Actual``, not an empty one, so that nothing is taken for absent.
    """

    def command(self, request: ProbeRequest) -> str:
        return script(request)

    @staticmethod
    def default() -> Actual:
        return Actual.unread("the probe did not answer")

    def process(self, output: list[str]) -> Actual:
        try:
            return parse(output)
        except ProbeError as error:
            raise FactProcessError(str(error)) from error
