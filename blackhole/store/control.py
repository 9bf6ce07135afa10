"""Orders: what the server is told while it runs, in a map that all processes share.

An order is all that is to be in force beside the configuration: a scenario in the place of the
one that was loaded, and rules for what comes next. Whoever gives one writes it whole and rings a
bell; each worker reads it, in the order of its own affairs, and says so in its row of the stats.

There are two slots. An order is written into the one that is not in force, and its number, which
says where it stands, comes last. So who dies while writing leaves the order before it in force.
The checksum is for a reader who was overtaken by two orders.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any, Final, NamedTuple

from blackhole.rules import scenario
from blackhole.rules.attempt_store import ScopedStore
from blackhole.rules.model import Condition, Rule
from blackhole.rules.scenario import Scenario

SIZE: Final = 1 << 18
"""Octets of an order as JSON: a scenario of 64 KiB and all that can come next, escaped."""

PLACES: Final = 16
"""Rules that can be waiting to speak."""

MOST: Final = 1 << 32
"""What a budget is below."""

HEAD: Final = Struct("QQ")
"""Of a slot: the checksum and the length of what follows."""

BUDGETS: Final = 8
"""Octet at which the budgets begin; before it stands the number of the order in force."""

SLOTS: Final = BUDGETS + PLACES * 8

NEXT: Final = "POST /next"
"""The name of all rules that come next."""

FIRST: Final = 1
"""The number before any order was given. 0 is what a process has said that follows none."""


class OneShotRule(NamedTuple):
    """A rule that speaks so many times, ahead of all others, and is gone."""

    number: int
    """Of the order it came with; tells its budget from others that had the same place."""
    place: int
    """Where its budget is."""
    times: int
    rule: Mapping[str, Any]
    """As in a scenario file."""


@dataclass(frozen=True, slots=True)
class RuntimeOrder:
    """What is to be in force."""

    name: str = ""
    """Of the scenario; empty for the one that was loaded."""
    text: str = ""
    at: float = 0.0
    """Seconds since 1970 when the scenario was ordered."""
    began: float = 0.0
    """The same on the monotonic clock: when the clock of its windows began."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    """What its rules have clients shown, as PEM."""
    coming: tuple[OneShotRule, ...] = ()


class ControlChannel:
    """The map. It is made before the fork."""

    def __init__(self) -> None:
        self._file: Final = os.memfd_create("blackhole orders", os.MFD_CLOEXEC)
        os.ftruncate(self._file, SLOTS + 2 * (HEAD.size + SIZE))
        self._map: Final = mmap.mmap(self._file, 0)
        self._cells: Final = memoryview(self._map)[:SLOTS].cast("Q")
        self._cells[0] = FIRST
        self.bell, self._rope = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """Readable at each order, for whoever asks the kernel for edges. It is read by who rings it."""
        self._known = FIRST, RuntimeOrder()

    @property
    def number(self) -> int:
        """Of the order in force."""
        return self._cells[0]

    def read(self) -> tuple[int, RuntimeOrder]:
        """The order in force, and its number; the one that was read last, where that cannot be read now."""
        number = self.number
        if number != self._known[0]:
            start = self._slot(number)
            checksum, length = HEAD.unpack_from(self._map, start)
            text = self._map[start + HEAD.size : start + HEAD.size + length]
            if zlib.crc32(text) == checksum:
                told = json.loads(text)
                coming = tuple(OneShotRule(*one) for one in told.pop("coming"))
                self._known = number, RuntimeOrder(**told, coming=coming)
        return self._known

    def give(self, change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        """Put an order in force, which `change` makes of the one before and its own number; that number.

        Raises ValueError when it is too large.
        """
        with self._alone():
            _, before = self.read()
            number = self.number + 1
            order = change(before, number)
            text = json.dumps(
                {name: getattr(order, name) for name in RuntimeOrder.__slots__}, ensure_ascii=False
            ).encode()
            if len(text) > SIZE:
                raise ValueError(f"more than {SIZE} octets")
            start = self._slot(number)
            HEAD.pack_into(self._map, start, zlib.crc32(text), len(text))
            self._map[start + HEAD.size : start + HEAD.size + len(text)] = text
            self._cells[0] = number
        with suppress(BlockingIOError):
            os.read(self.bell, 1 << 16)
        os.write(self._rope, b"!")
        return number

    def _slot(self, number: int) -> int:
        return SLOTS + number % 2 * (HEAD.size + SIZE)

    @contextmanager
    def _alone(self, octet: int = 0) -> Iterator[None]:
        """Under a lock that the kernel takes away from who is killed."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, octet)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, octet)

    # Budgets.

    def left(self, one: OneShotRule) -> int:
        """How many times it may still speak."""
        number, left = divmod(self._cells[1 + one.place], MOST)
        return left if number == one.number else 0

    def fill(self, one: OneShotRule, count: int) -> None:
        """Let it speak so many times."""
        self._cells[1 + one.place] = one.number * MOST + count

    def take(self, one: OneShotRule) -> bool:
        """Let it speak once; false where it has spoken often enough. Exact over all processes."""
        if not self.left(one):
            return False
        with self._alone(BUDGETS + one.place * 8):
            if not self.left(one):
                return False
            self._cells[1 + one.place] -= 1
            return True


def effective_scenario(
    order: RuntimeOrder,
    loaded: Scenario,
    orders: ControlChannel,
    make_context: Callable[[bytes], ssl.SSLContext],
) -> Scenario:
    """Return the scenario in force where `loaded` was read at the start and `order` was given since.

    `make_context` makes a TLS context of a certificate and its key in PEM. Raises OperatorError.
    """
    found = loaded
    if order.name:
        found = replace(
            loaded,
            rules=tuple(scenario.parse_rules(order.text, order.name)),
            began=order.began,
            memory=ScopedStore(loaded.memory, b"%d\0" % round(order.at * 1e6)),
        )
    coming = (one_shot_rule(one, orders) for one in order.coming if orders.left(one))
    shown = {name: make_context(pem.encode()) for name, pem in order.certificates.items()}
    return replace(found, rules=(*coming, *found.rules), certificates={**shown, **loaded.certificates})


def one_shot_rule(one: OneShotRule, orders: ControlChannel) -> Rule:
    """The rule of a Next. What is asked last is whether there is something left of its budget."""
    rule = scenario.parse_rule(one.rule, f"next {one.number}")
    last = Condition("count", str(one.times), lambda case: orders.take(one), consumes=True)
    return replace(rule, conditions=(*rule.conditions, last), name=NEXT)
