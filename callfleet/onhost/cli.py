"""The command line: `slotctl COMMAND STACK`. Exit codes: 0 done, 3 pending, 1 failed, 64 usage."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from . import lifecycle
from .converge import converge
from .errors import SlotError, UsageError
from .journal import Busy, check_fence, locked
from .keeper import Keeper, publish_ready
from .run import Outcome, Run
from .slots import declare, observe, prepare, undeclare
from .stack import Stack, load
from .states import Word
from .status import lines, status

USAGE = 64


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        stack = load(options.stack)
        if options.command == "status":
            return show(stack, options.json)
        if options.command == "keep":
            return keep(stack)
        for n in getattr(options, "slots", []):
            if n not in stack.numbers:
                raise UsageError(f"{stack.name} has no slot {n}: it has 1 to {stack.slots}")
    except UsageError as error:
        return _refuse(str(error), options.json)
    run = Run(stack, as_json=options.json, fence=options.fence)
    run.catch_signals()
    try:
        commands = {"up": up, "down": down, "converge": bring, "drain": drain, "ready": ready}
        commands[options.command](run, options)
    except (SlotError, OSError) as error:
        return run.finish(1, str(error))
    return run.finish(run.exit_code())


def show(stack: Stack, as_json: bool) -> int:
    value = status(stack)
    print(json.dumps(value) if as_json else "\n".join(lines(value)), flush=True)
    return 1 if value["error"] else 0


def keep(stack: Stack) -> int:
    keeper = Keeper(stack)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stopping.set())
    keeper.run()
    return 0


def up(run: Run, options: argparse.Namespace) -> None:
    with locked(run.stack, wait_seconds=options.wait):
        check_fence(run.stack, run.fence)
        lifecycle.up(run)


def down(run: Run, options: argparse.Namespace) -> None:
    with locked(run.stack, wait_seconds=options.wait):
        check_fence(run.stack, run.fence)
        lifecycle.down(run)


def bring(run: Run, options: argparse.Namespace) -> None:
    with locked(run.stack, wait_seconds=options.wait):
        check_fence(run.stack, run.fence)
        converge(run, options.deadline)


def drain(run: Run, options: argparse.Namespace) -> None:
    """Declare slots drained. Does not wait for a converge's lock: an operator's word counts at once."""
    check_fence(run.stack, run.fence)
    numbers = options.slots or list(run.stack.numbers)
    for n in numbers:
        declare(run.stack, n, options.reason)
        run.event(run.stack.service_of(n), "drain declared", options.reason)
    if not options.slots:
        # Slots beyond the wanted number may still be on a call.
        for n in sorted(set(observe(run.stack, run.docker)) - set(numbers)):
            declare(run.stack, n, options.reason)
            numbers.append(n)
    until = time.monotonic() + options.wait
    while True:
        seen = observe(run.stack, run.docker, numbers)
        left = [n for n in numbers if seen[n].word not in (Word.DRAINED, Word.DEAD)]
        if not left or time.monotonic() >= until:
            break
        run.pause(0.5)
    for n in numbers:
        run.settle(run.stack.service_of(n), Outcome.PENDING if n in left else Outcome.CHANGED, seen[n].word.value)


def ready(run: Run, options: argparse.Namespace) -> None:
    """End declared drains and publish what may be; the rest is left to the keeper or the run that holds the lock."""
    check_fence(run.stack, run.fence)
    numbers = options.slots or sorted(observe(run.stack, run.docker))
    ended = {n for n in numbers if undeclare(run.stack, n)}
    reasons = {}
    try:
        with locked(run.stack, wait_seconds=options.wait):
            prepare(run.stack)
            reasons = publish_ready(run.stack, run.docker, set(numbers))
    except Busy as error:
        reasons = dict.fromkeys(ended, str(error))
    for n in numbers:
        outcome = Outcome.CHANGED if n in ended else Outcome.UNCHANGED
        run.settle(run.stack.service_of(n), *((Outcome.PENDING, reasons[n]) if n in reasons else (outcome, "ready")))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"slotctl: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slotctl", description="Call slots of one stack on this host.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def add(name: str, text: str, wait: float = 0.0) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("stack", metavar="STACK")
        command.add_argument("--json", action="store_true", help="JSON lines; the last one is the result")
        command.add_argument("--fence", type=int, help="the controller's fence number; a stale one is refused")
        command.add_argument("--wait", type=_seconds, default=wait, metavar="SECONDS", help=f"default {wait:g}")
        return command

    add("status", "the state of every slot and service")
    add("up", "start what is down, replace nothing, publish what is ready; --wait: for the lock", 60.0)
    add("down", "withdraw all, wait for calls to end, stop; --wait: for the lock", 60.0)
    command = add("converge", "bring everything to stack.json without ending a call; --wait: for the lock", 5.0)
    command.add_argument("--deadline", type=_seconds, default=0.0, metavar="SECONDS", help="for calls; default 0")
    command = add("drain", "declare slots drained; --wait: for their calls")
    command.add_argument("slots", nargs="*", type=int, metavar="SLOT")
    command.add_argument("--reason", default="", help="kept with the declaration")
    command = add("ready", "end declared drains; --wait: for the lock")
    command.add_argument("slots", nargs="*", type=int, metavar="SLOT")
    add("keep", "the keeper's loop")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _refuse(text: str, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"result": {"exit": USAGE, "word": "usage", "error": text, "services": {}}}), flush=True)
    else:
        print(f"slotctl: {text}", file=sys.stderr)
    return USAGE
