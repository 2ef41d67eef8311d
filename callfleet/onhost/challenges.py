"""Have a running HAProxy answer the challenges of an ACME authority (HTTP-01), or no longer: in its memory, no reload.

challenges.py --admin-socket PATH --map NAME set TOKEN=ANSWER...
challenges.py --admin-socket PATH --map NAME clear TOKEN...

After `set` each answer is asked for over HTTP on this host. Neither a token nor an answer is a secret.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import SlotError
from .proxy import say

PORT = 80
PATH = "/.well-known/acme-challenge/"
ASK_SECONDS = 5.0


def put(socket: Path, name: str, answers: dict[str, str]) -> None:
    """Answer these tokens. SlotError when the proxy has no such map."""
    for token, answer in answers.items():
        say(socket, f"del map {name} {token}")  # of a run that was killed
        _do(socket, f"add map {name} {token} {answer}")


def clear(socket: Path, name: str, tokens: Sequence[str]) -> None:
    """Answer these tokens no longer. One that is gone already is no error."""
    for token in tokens:
        said = say(socket, f"del map {name} {token}").strip()
        if said and "not found" not in said:
            raise SlotError(f"the proxy refused to take a challenge out: {said}")


def look(answers: dict[str, str], port: int = PORT) -> None:
    """Ask for each answer as the authority will. SlotError for another one."""
    for token, answer in answers.items():
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)
        try:
            line.request("GET", PATH + token)
            found = line.getresponse()
            said = found.read(1000).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise SlotError(f"nobody answers on port {port}: {error}") from error
        finally:
            line.close()
        if (found.status, said) != (200, answer):
            raise SlotError(f"port {port} answers a challenge with status {found.status}: {said[:100]!r}")


def _do(socket: Path, command: str) -> None:
    if said := say(socket, command).strip():
        raise SlotError(f"the proxy refused {' '.join(command.split()[:3])!r}: {said}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--admin-socket", type=Path, required=True)
    parser.add_argument("--map", required=True)
    parser.add_argument("verb", choices=("set", "clear"))
    parser.add_argument("words", nargs="+")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "clear":
            clear(options.admin_socket, options.map, options.words)
        else:
            answers = dict(word.split("=", 1) for word in options.words)
            put(options.admin_socket, options.map, answers)
            look(answers)
    except SlotError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
