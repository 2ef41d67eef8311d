"""Plan and status as one self-contained page each: no script, nothing fetched, fit for print and for the dark. Pure.

Made from the documents alone (callfleet.report, callfleet.health), which hold no secret's value. All text is escaped.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from callfleet.actual import SlotWord
from callfleet.templates import render_page

STATES = tuple(str(word) for word in SlotWord)
STAYS = ("serve on", "stay as it is")
"""What a plan says of a slot that it leaves alone."""

# Lengths in the drawing, in its own pixels.
_MARGIN, _LEFT, _BOX, _BOX_HEIGHT, _WIRES = 8, 48, 190, 64, 84
_SLOT, _PITCH, _SLOTS_A_ROW = 15, 21, 16
_HEAD, _TITLE, _GAP, _PAD, _CELL = 47, 30, 14, 14, 210
_CHARACTER = 6.6


@dataclass(frozen=True)
class Square:
    """One call slot in the drawing. `moves`: a plan changes it."""

    x: float
    y: float
    state: str
    title: str
    moves: bool


@dataclass(frozen=True)
class Box:
    """A host, a fleet around its hosts, or a duty of a host; `role` says which. `lines` stand under the name."""

    role: str
    x: float
    y: float
    width: float
    height: float
    name: str
    lines: tuple[str, ...] = ()
    title: str = ""
    bad: bool = False
    squares: tuple[Square, ...] = ()


@dataclass(frozen=True)
class Wire:
    """A way of calls from one box to another; `role` is inbound or outbound."""

    role: str
    path: str


@dataclass(frozen=True)
class Drawing:
    """The site as it is drawn."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    wires: tuple[Wire, ...]
    states: tuple[str, ...]
    """The states that occur, for the legend."""
    words: str
    """The same in a sentence, for who does not see the drawing."""


def plan_page(made: Mapping[str, Any], at: str) -> str:
    """The page of a plan document, to attach to a review; `at` is when it was made, as it is to be read."""
    hosts = [{**host, "concerns": _by_concern(host["changes"]), "moving": _moving(host)} for host in made["hosts"]]
    changes = [change for host in made["hosts"] for change in host["changes"]]
    return render_page(
        "pages/plan.html.j2",
        at=at,
        made=made,
        hosts=hosts,
        drawing=draw(made["hosts"]),
        waiting=sum(change["waits"] for change in changes),
        blocked=sum(change["word"] == "blocked" for change in changes),
        moving=[(host["name"], slot) for host in hosts for slot in host["moving"]],
    )


def status_page(found: Mapping[str, Any], at: str) -> str:
    """The page of a status document."""
    hosts = [{**host, "counts": counted(host["slots"])} for host in found["hosts"]]
    return render_page(
        "pages/status.html.j2", at=at, found=found, hosts=hosts, drawing=draw(found["hosts"]), states=STATES
    )


def counted(slots: Iterable[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """States that occur with how often, in their fixed order; a state from elsewhere stands last."""
    counts = Counter(slot["state"] for slot in slots)
    return [(state, counts[state]) for state in dict.fromkeys([*STATES, *counts]) if counts[state]]


def _by_concern(changes: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Changes in the order in which they are carried out, cut where the concern changes."""
    return [(name, list(group)) for name, group in itertools.groupby(changes, lambda change: str(change["concern"]))]


def _moving(host: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [slot for slot in host["slots"] if slot["will"] not in STAYS]


# The drawing


def draw(hosts: Sequence[Mapping[str, Any]]) -> Drawing:
    """Ingress, API and Dialler on the left, fleets with hosts and slots on the right, calls going between them."""
    sides = [(role, host) for role in ("ingress", "app") for host in hosts if role in host["roles"]]
    left = _LEFT + _BOX + _WIRES if sides else _LEFT
    fleets: list[Box] = []
    members: list[Box] = []
    height = float(_MARGIN)
    for name in dict.fromkeys(host["fleet"] for host in hosts if host["fleet"]):
        fleet, inside = _fleet(name, [host for host in hosts if host["fleet"] == name], left, height)
        fleets.append(fleet)
        members += inside
        height += fleet.height + _GAP
    needed = len(sides) * (_BOX_HEIGHT + _GAP) + _MARGIN
    height = max(height, needed)
    top = _MARGIN + (height - needed) / 2
    duties = [_duty(role, host, top + n * (_BOX_HEIGHT + _GAP)) for n, (role, host) in enumerate(sides)]
    width = max([left, *(box.x + box.width for box in (*fleets, *duties))]) + _MARGIN
    slots = [slot for host in hosts for slot in host["slots"]]
    states = tuple(state for state, _ in counted(slots))
    return Drawing(
        width, height, (*fleets, *members, *duties), tuple(_wires(duties, fleets)), states, _in_words(hosts, slots)
    )


def _duty(role: str, host: Mapping[str, Any], y: float) -> Box:
    called = "Ingress" if role == "ingress" else "API and Dialler"
    trouble, name = _trouble(host), f"{host['name']} {host['address'] or ''}".strip()
    return Box(
        role, _LEFT, y, _BOX, _BOX_HEIGHT, called, (_cut(name, _BOX - 24), _cut(trouble or _changes(host), _BOX - 24)),
        f"{host['name']}: {trouble or _changes(host)}", bool(trouble),
    )  # fmt: skip


def _fleet(name: str, hosts: Sequence[Mapping[str, Any]], x: float, y: float) -> tuple[Box, list[Box]]:
    """A fleet's frame and its hosts in as many columns as keep the drawing readable."""
    columns = 1 if len(hosts) <= 3 else 2 if len(hosts) <= 12 else 3
    widest = max((len(host["slots"]) for host in hosts), default=0)
    cell = max(_CELL, min(widest, _SLOTS_A_ROW) * _PITCH + 2 * _PAD - (_PITCH - _SLOT))
    boxes: list[Box] = []
    below = y + _TITLE
    for row in (hosts[start : start + columns] for start in range(0, len(hosts), columns)):
        tall = max(_HEAD + -(-max(len(host["slots"]), 1) // _SLOTS_A_ROW) * _PITCH + 10 for host in row)
        for column, host in enumerate(row):
            boxes.append(_host(host, x + _PAD + column * (cell + _GAP), below, cell, tall))
        below += tall + _GAP
    width = 2 * _PAD + columns * cell + (columns - 1) * _GAP
    return Box("fleet", x, y, width, below - y, name), boxes


def _host(host: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Box:
    trouble = _trouble(host)
    counts = ", ".join(f"{count} {state}" for state, count in counted(host["slots"]))
    line = trouble or counts or "no slots"
    return Box(
        "host", x, y, width, height, _cut(host["name"], width - 24), (_cut(line, width - 24),),
        f"{host['name']} {host['address'] or ''}: {'; '.join(filter(None, [trouble, counts])) or 'no slots'}",
        bool(trouble), tuple(_squares(host, x + _PAD, y + _HEAD)),
    )  # fmt: skip


def _squares(host: Mapping[str, Any], x: float, y: float) -> Iterator[Square]:
    for place, slot in enumerate(host["slots"]):
        row, column = divmod(place, _SLOTS_A_ROW)
        will = slot.get("will", "")
        moves = bool(will) and will not in STAYS
        said = f"{host['name']} slot {slot['slot']}: {slot['state']}"
        said += f"; {will}" if moves else f"; {slot['why']}" if slot.get("why") else ""
        yield Square(x + column * _PITCH, y + row * _PITCH, slot["state"], said, moves)


def _trouble(host: Mapping[str, Any]) -> str:
    """What is wrong with a host as a whole, from either document; empty when nothing is."""
    if host.get("reached") is False:
        return "not reached"
    return str(host.get("error") or "")


def _changes(host: Mapping[str, Any]) -> str:
    """How far it is from what is declared; a plan lists the changes, a status counts them."""
    found = host["changes"]
    count = len(found) if isinstance(found, list) else found
    return "as declared" if count == 0 else "unknown" if count is None else f"{count} change{'s' * (count > 1)}"


def _wires(duties: Sequence[Box], fleets: Sequence[Box]) -> Iterator[Wire]:
    """Calls come in to the ingress, or to the fleets where there is none; the Dialler's go out by the fleets."""
    entries = [box for box in duties if box.role == "ingress"] or fleets
    for box in entries:
        yield Wire("entry", f"M {_MARGIN} {_middle(box)} H {box.x - 8}")
    for duty in duties:
        role = "inbound" if duty.role == "ingress" else "outbound"
        for fleet in fleets:
            start, end = duty.x + duty.width, fleet.x - 8
            half, y1, y2 = (start + end) / 2, _middle(duty), _middle(fleet) + (-7 if role == "inbound" else 7)
            yield Wire(role, f"M {start} {y1} C {half} {y1} {half} {y2} {end} {y2}")


def _middle(box: Box) -> float:
    return box.y + box.height / 2


def _cut(text: str, width: float) -> str:
    longest = int(width / _CHARACTER)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _in_words(hosts: Sequence[Mapping[str, Any]], slots: Sequence[Mapping[str, Any]]) -> str:
    duties = Counter(role for host in hosts for role in host["roles"])
    parts = [f"{count} {role} host{'s' if count > 1 else ''}" for role, count in sorted(duties.items())]
    said = ", ".join(f"{count} {state}" for state, count in counted(slots))
    return f"{', '.join(parts)}; {len(slots)} slots: {said or 'none seen'}"
