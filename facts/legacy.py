"""What a host that was built by hand says of itself, in one round trip. Reads, and reads no secret.

The script travels on standard input and is run as a whole; its frame is the probe's. A part that fails is `Unknown`.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from callfleet.actual import Listener, ProbeRequest, Unknown
from callfleet.adopt.found import EnvironmentFile, Files, Found, Unit, Value
from facts.frame import HEADER, LAST, Answer, Part, encode_request, records, settings
from facts.host import read_listeners, read_memory, told_value
from facts.ours import read_core_fleet
from facts.probe import PROGRAM

LEGACY = Path(__file__).with_name("legacy.sh")
TOKEN_SECONDS = 10
LARGEST_TEXT = 1024**2


def script(nonce: str) -> str:
    """The script that asks all. `nonce`: hexadecimal digits, new for each import and the same for all its hosts."""
    if not re.fullmatch(r"[0-9a-f]{16,64}", nonce):
        raise ValueError("a nonce is 16 to 64 hexadecimal digits")
    parts = (
        ("host", "read_host"), ("listeners", "read_listeners"), ("datagrams", "read_datagrams"),
        ("addresses", "read_addresses"), ("units", "read_legacy_units"), ("environments", "read_environments"),
        ("inline", "read_inline"),
        ("sockets", "read_socket_files"), ("listening", "read_unix_listeners"), ("nginx", "read_nginx"),
        ("haproxy", "read_haproxy"), ("served", "read_served"), ("ours", "read_ours"),
    )  # fmt: skip
    return _whole([f"NONCE={nonce}", "find_units", *(f"section {name} {function}" for name, function in parts)])


def fleet_list_script(url: str, *, token: str = "", token_file: str = "") -> str:
    """The script that asks the API on its own host for core_fleet, by a token or a file there that holds one.

    With `token` the text holds a secret: it is for standard input alone.
    """
    given = f"printf %s {shlex.quote(token)}" if token else f"head -c 4096 -- {shlex.quote(token_file)}"
    return _whole(
        [
            f"read_api() {{ has curl || {{ cannot 'curl is not installed'; return; }}; token=$({given}) && "
            "[ -n \"$token\" ] || { cannot 'the token could not be read'; return; }; "
            'printf \'header = "Authorization: Bearer %s"\\n\' "$token" | '
            f"curl -q -sS --fail --max-time {TOKEN_SECONDS} --max-filesize 1000000 -K - {shlex.quote(url)} >&3; }}",
            "section core-fleet read_api",
        ]
    )


def contents_script(paths: Iterable[str]) -> str:
    """The script that reads whole files, secrets among them: only where an operator asked for that."""
    return _whole([shlex.join(["section", "contents", "read_contents", *paths])])


def _whole(calls: Iterable[str]) -> str:
    lines = [*PROGRAM.read_text("utf-8").splitlines(), *LEGACY.read_text("utf-8").splitlines()]
    body = [line for line in lines if line and not line.lstrip().startswith("# ")]
    body += [f'echo "{HEADER}request"', f"echo {encode_request(ProbeRequest())}"]
    # Calls go first on a host that carries them.
    body.insert(0, "renice -n 5 -p $$ >/dev/null 2>&1 </dev/null")
    # In braces, the shell reads all of it before it runs any of it: the script takes its own input away.
    return "\n".join(["{", *body, *calls, f'echo "{LAST}"', "exit 0", "}", ""])


def parse_fleet_list(text: str) -> tuple[str, ...] | Unknown:
    """The answer of `fleet_list_script`."""
    return Answer(text.split("\n")).read("core-fleet", read_core_fleet)


def parse_contents(text: str) -> dict[str, bytes | Unknown | None]:
    """The answer of `contents_script`, by path."""
    found = Answer(text.split("\n")).read("contents", _certificates)
    return {} if isinstance(found, Unknown) else found


def parse(text: str, name: str, address: str) -> Found:
    """The typed answer of one host. Raises facts.frame.ProbeError only when the output is no answer at all."""
    answer = Answer(text.split("\n"))
    told = answer.read("host", settings)
    return Found(
        name=name,
        address=address,
        hostname=told_value(told, "hostname", str),
        memory=read_memory(told),
        cpus=told_value(told, "cpus", int),
        addresses=answer.read("addresses", _addresses),
        listeners=answer.read("listeners", read_listeners),
        datagrams=answer.read("datagrams", _datagrams),
        units=answer.read("units", _units),
        environments=answer.read("environments", _environments),
        inline=answer.read("inline", _inline),
        sockets=answer.read("sockets", lambda part: frozenset(map(_settled, part.lines))),
        listening=answer.read("listening", _listening),
        nginx=answer.read_or_absent("nginx", _files),
        haproxy=answer.read_or_absent("haproxy", _files),
        certificates=answer.read("served", _certificates),
        ours=answer.read("ours", lambda part: {"0": True, "1": False}[part.text.strip()]),
    )


def _addresses(part: Part) -> frozenset[str]:
    return frozenset(re.findall(r"\binet6? ([0-9a-f.:]+)", part.text))


def _datagrams(part: Part) -> tuple[Listener, ...]:
    """ss writes UNCONN for them where it writes LISTEN for the others."""
    lines = "\n".join("LISTEN" + line[line.index(" ") :] for line in part.lines if " " in line)
    return read_listeners(Part(lines.encode(), part.status, part.reason))


def _units(part: Part) -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for block in re.split(r"\n\s*\n", part.text):
        properties: dict[str, str] = {}
        for line in block.split("\n"):
            key, equals, value = line.partition("=")
            if equals:
                # EnvironmentFiles stands once for each file.
                properties[key] = f"{properties[key]} {value}" if key in properties else value
        if (name := properties.get("Id")) and properties.get("LoadState") not in ("masked", "not-found"):
            found[name] = Unit(name, properties)
    return found


def _environments(part: Part) -> dict[str, EnvironmentFile | Unknown | None]:
    return {path: _environment(there, path, stat, text) for there, path, stat, text in records(part.data, 4)}


def _inline(part: Part) -> dict[str, EnvironmentFile]:
    found = {}
    for unit, text in records(part.data, 2):
        held = _environment("0", unit, "", text)
        if isinstance(held, EnvironmentFile):
            found[unit] = held
    return found


def _environment(there: str, path: str, stat: str, text: str) -> EnvironmentFile | Unknown | None:
    if there == "1":
        return None
    if there != "0":
        return Unknown("could not be read")
    values: dict[str, Value] = {}
    unclear = 0
    for number, line in enumerate(base64.b64decode(text).decode("utf-8", "replace").splitlines(), 1):
        key, equals, rest = line[1:].partition("=")
        if line[:1] == "=" and equals:
            plain = unquoted(rest)
            values[key] = Value(key, plain, plain, f"{path}: {key}")
        elif line[:1] == "*" and equals:
            values[key] = Value(key, None, rest or f"unknown {number}", f"{path}: {key}")
        else:
            unclear += 1
    changed, _, mode = stat.partition(" ")
    return EnvironmentFile(path, values, int(changed) if changed.isdigit() else None, mode, unclear)


def unquoted(text: str) -> str:
    """A value of an environment file as systemd takes it: quotes around it and blanks at its ends are no part of it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return text


def _settled(path: str) -> str:
    return re.sub(r"^/var/run/", "/run/", path)


def _listening(part: Part) -> frozenset[str]:
    return frozenset(
        _settled(fields[4]) for line in part.lines if len(fields := line.split()) > 4 and fields[4].startswith("/")
    )


def _files(part: Part) -> Files:
    main: list[str] = []
    texts: dict[str, str] = {}
    unread: list[str] = []
    for there, path, text in records(part.data, 3):
        if there == "main":
            main.append(path)
        elif there == "0":
            content = base64.b64decode(text)
            # 1 MiB and one byte are sent: what is longer is not whole.
            if len(content) > LARGEST_TEXT:
                unread.append(path)
            elif b"\0" not in content:
                texts[path] = content.decode("utf-8", "replace")
        elif there == "2":
            unread.append(path)
    return Files(tuple(main), texts, tuple(unread))


def _certificates(part: Part) -> dict[str, bytes | Unknown | None]:
    found: dict[str, bytes | Unknown | None] = {}
    for there, path, text in records(part.data, 3):
        found[path] = base64.b64decode(text) if there == "0" else None if there == "1" else Unknown("could not be read")
    return found
