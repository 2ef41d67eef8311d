"""Plan and status as pages: whole, inert whatever a host says, nothing fetched, every slot with its word."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from callfleet import pages
from callfleet.actual import SlotWord
from callfleet.report import duty

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>&{{ 7 * 7 }}"


class Read(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "use", "path", "rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def planned(name: str = "a", text: str = "content differs", slots: int = 2) -> dict[str, Any]:
    """A plan of one fleet host, with `text` wherever a host or a site can put one."""
    change = {
        "concern": text, "kind": "file", "subject": text, "word": "update", "reason": text, "calls": text,
        "waits": True, "diff": [f"--- {text}", f"+{text}", f"-{text}"], "because": [text],
    }  # fmt: skip
    rows = [{"stack": "s", "slot": n + 1, "state": text, "calls": None, "age": 75, "will": text} for n in range(slots)]
    host = {"name": name, **duty(text, ["fleet"], text), "error": text, "changes": [change], "slots": rows}
    front = {"name": "f", **duty(text, ["ingress", "app"]), "error": "", "changes": [], "slots": []}
    return {"site": text, "release": text, "plan": text, "exit": 3, "changes": 1, "hosts": [host, front]}


def seen(text: str = "", words: tuple[str, ...] = tuple(SlotWord)) -> dict[str, Any]:
    """A status of one fleet host with a slot in each state."""
    rows = [
        {"slot": n + 1, "state": word, "calls": 1, "age": 75, "drained": None, "why": text}
        for n, word in enumerate(words)
    ]
    host = {
        "name": "a", **duty(text, ["fleet"], "eu1"), "reached": True, "release": text, "callfleet": text, "slots": rows,
        "changes": 1, "waiting": 1, "blocked": [text], "memory": None, "disk": {"size": 2**30, "free": 2**29},
        "proxies": [{"name": text, "running": True, "version": text, "since": None, "connections": 1, "reloads": 2,
                     "old": [{"pid": 7, "connections": None}]}],
        "certificates": [{"path": text, "name": text, "until": text, "days": -1, "problem": text}],
        "services": [{"stack": text, "service": text, "containers": 1, "image": text, "tag": text, "digest": text,
                      "released": False}],
        "notes": [text],
    }  # fmt: skip
    return {"site": text, "release": text, "slots": {"idle": 1}, "calls": 1, "hosts": [host], "notes": [text]}


@pytest.mark.parametrize("page", [pages.plan_page(planned(), "now"), pages.status_page(seen("x"), "now")])
def test_a_page_is_whole_and_fetches_nothing(page: str) -> None:
    """Well nested; no script; references lead into the page itself; a policy that would stop anything else."""
    read = Read(page)
    assert read.open == []
    assert read.all("script") == read.all("link") == read.all("img") == read.all("iframe") == []
    for _, attributes in read.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "xlink:href")]
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in page.replace("url(#tip)", "")
    assert "@import" not in page
    assert "default-src 'none'" in str(read.all("meta"))


@pytest.mark.parametrize(
    "page",
    [pages.plan_page(planned(HOSTILE, HOSTILE), HOSTILE), pages.status_page(seen(HOSTILE, (HOSTILE,)), HOSTILE)],
)
def test_what_a_host_says_is_inert(page: str) -> None:
    """It is read as text, as it stands, in every place; it makes no element and no attribute."""
    read = Read(page)
    assert {tag for tag, _ in read.elements} & {"script", "img"} == set()
    assert not [key for _, attributes in read.elements for key in attributes if key.startswith("on")]
    assert HOSTILE in read.text
    assert "49" not in read.text


def test_every_state_has_a_word_and_a_sign_of_its_own() -> None:
    """Colour alone never tells: each state is named, and drawn with its own symbol."""
    page = pages.status_page(seen(), "now")
    read = Read(page)
    used = {attributes["href"] for attributes in read.all("use")}
    signs = {f"#{attributes['id']}" for attributes in read.all("symbol")}
    assert used == signs
    assert len(signs) == len(SlotWord)
    for word in SlotWord:
        assert len(re.findall(rf"</svg>{word}</span>", page)) >= 2
    assert re.search(r"<title>a slot 2: on a call", page)


def test_what_a_plan_changes_is_framed_and_listed() -> None:
    """A slot that serves on is not; the others are, with what will happen to them."""
    made = planned()
    made["hosts"][0]["slots"][0]["will"] = "serve on"
    made["hosts"][0]["slots"][1]["will"] = "recreate when its call has ended"
    read = Read(pages.plan_page(made, "now"))
    assert [a for a in read.all("rect") if a.get("class") == "moves"] != []
    assert len([a for a in read.all("rect") if a.get("class") == "moves"]) == 1
    assert "recreate when its call has ended" in read.text
    assert "1:15" in read.text
    assert len(read.all("details")) >= 2


@pytest.mark.parametrize("hosts", [0, 1, 5, 40])
def test_nothing_lies_outside_of_the_drawing(hosts: int) -> None:
    """However many hosts and slots there are, and however long their names."""
    rows = [planned(f"{n}-{'x' * 38}", "one word")["hosts"][0] | {"fleet": f"f{n % 3}"} for n in range(hosts)]
    for number, row in enumerate(rows):
        row["slots"] = row["slots"] * (number * 3)
    front = planned()["hosts"][1]
    drawn = pages.draw([*rows, front, front])
    assert len([box for box in drawn.boxes if box.role == "host"]) == hosts
    for box in drawn.boxes:
        assert 0 <= box.x <= box.x + box.width <= drawn.width
        assert 0 <= box.y <= box.y + box.height <= drawn.height
        for slot in box.squares:
            assert box.x < slot.x < box.x + box.width - 15
            assert box.y < slot.y < box.y + box.height - 15


def test_hundreds_of_hosts_are_one_page_that_a_browser_takes() -> None:
    """300 hosts of 32 slots: every slot is there once, in a page of a few megabytes."""
    rows = [planned(f"host-{n}", "one word", 32)["hosts"][0] | {"fleet": f"f{n % 3}"} for n in range(300)]
    page = pages.plan_page({**planned(), "hosts": [*rows, planned()["hosts"][1]]}, "now")
    assert page.count("<use ") >= 300 * 32
    assert len(page) < 8_000_000
    found = pages.status_page(
        {**seen("x"), "hosts": [seen("x")["hosts"][0] | {"name": f"h{n}"} for n in range(300)]}, ""
    )
    assert all(f"h{n}" in found for n in (0, 299))


def test_a_site_without_an_ingress_is_called_directly() -> None:
    """The way in leads to its fleets."""
    drawn = pages.draw([planned()["hosts"][0]])
    assert [wire.role for wire in drawn.wires] == ["entry"]
