"""Swap many slots: free ones at once, busy ones as their calls end, never more than the declared share at a time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from .run import Outcome, Run
from .slots import Slot, mark, observe, withdraw
from .states import Word
from .steps import SWAP_ORDER
from .swap import describe, put_back, swap

LOOK_SECONDS = 0.5


class Rollout:
    """One rollout over the slots of a host, until `until` on the monotonic clock.

    `waiting` are busy slots that were withdrawn so that they become free; they carry their call meanwhile.
    """

    def __init__(self, run: Run, numbers: set[int], until: float) -> None:
        self.run = run
        self.todo = set(numbers)
        self.until = until
        self.waiting: set[int] = set()
        self.tried: set[int] = set()

    def work(self) -> None:
        """Swap what can be; a failed slot ends it, what serves then serves on. The rest is reported pending."""
        try:
            while self.todo and not self.run.failed():
                seen = observe(self.run.stack, self.run.docker, self.todo)
                if free := self.free(seen):
                    self.step_aside(seen, free)
                    self.swap(free)
                elif self.over():
                    break
                else:
                    self.withdraw_busy(seen)
                    self.run.pause(LOOK_SECONDS)
        finally:
            self.give_up()

    def over(self) -> bool:
        return time.monotonic() >= self.until

    def free(self, seen: dict[int, Slot]) -> list[int]:
        """The next slots that carry nothing, best first, as many as may be out at once."""
        allowed = [n for n in seen if not (self.over() and n in self.tried) and seen[n].word in SWAP_ORDER]
        allowed.sort(key=lambda n: (SWAP_ORDER.index(seen[n].word), n))
        return allowed[: self.run.stack.limits.max_out]

    def step_aside(self, seen: dict[int, Slot], free: list[int]) -> None:
        """A withdrawn slot whose call goes on takes a place; free ones come first."""
        for n in self.waiting - set(free):
            put_back(self.run, seen[n])
        self.waiting.clear()

    def swap(self, free: list[int]) -> None:
        self.tried |= set(free)
        with ThreadPoolExecutor(max_workers=len(free)) as pool:
            swapped = dict(zip(free, pool.map(lambda n: swap(self.run, n), free), strict=True))
        self.todo -= {n for n, done in swapped.items() if done}

    def withdraw_busy(self, seen: dict[int, Slot]) -> None:
        """Nothing is free: let busy slots take no further call. Unknown ones are left alone."""
        for n in sorted(seen):
            if seen[n].word is Word.ON_A_CALL and len(self.waiting) < self.run.stack.limits.max_out:
                self.run.guard()
                mark(self.run.stack, n, "withdrawn", seen[n].container)
                withdraw(self.run.stack, n, "swap, its call goes on")
                self.waiting.add(n)

    def give_up(self) -> None:
        if not self.todo:
            return
        seen = observe(self.run.stack, self.run.docker, self.todo)
        for n in self.waiting & self.todo:
            put_back(self.run, seen[n])
        failed = self.run.failed()
        for n in sorted(self.todo):
            why = "not begun: another slot failed" if failed else describe(seen[n])
            self.run.settle(self.run.stack.service_of(n), Outcome.PENDING, f"left as it is, {why}")
