"""The control channel: runtime orders, in a map that all processes share.

A runtime order says what is in force beside the configuration: a scenario in place of the loaded one, and
one-shot rules. A writer publishes the whole order and wakes the workers up; each worker reads it on its event
loop, and writes the number of the order that it applied into its row of the counters.

The map has two slots. An order is written into the slot that is not in force; its number, which selects the
slot, is written last. A writer that dies half-way therefore leaves the previous order in force. The checksum
is for a reader whose slot is overwritten by the second order since it began to read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Any, Final, NamedTuple, Self

from blackhole.rules.attempt_store import AttemptStore, ScopedStore
from blackhole.rules.limiters import UseLimit
from blackhole.rules.model import Condition, Rule
from blackhole.rules.scenario import Scenario
from blackhole.rules.scenario_file import make_rules, parse_rule
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.one_shot_rules import (
    BUDGET_BITS,
    MAX_ONE_SHOT_RULES,
    Budgets,
    OneShotRule,
    UseBudgets,
    acquire_lock,
)
from blackhole.store.shared_lock import SharedLock
from blackhole.store.shared_memory import CELL_OCTETS, attach, create

CONTROL_MAP: Final = "blackhole.store.control"
"""Name of the anonymous file."""

MAX_ORDER_OCTETS: Final = 1 << 19
"""Size of an order as JSON: a scenario of 64 KiB as text and as tables, and all one-shot rules, escaped."""

MAX_TIME: Final = 1e12
"""Seconds: more than any clock shows."""

MAX_NUMBER: Final = (1 << BUDGET_BITS) - 1
"""The largest number of an order."""

SLOT_HEADER: Final = Struct("QQ")
"""Checksum and length of the order in a slot."""

BUDGETS_START: Final = 8
"""Octet where the budgets begin; the octets before it hold the number of the order in force."""

SLOTS_START: Final = BUDGETS_START + MAX_ONE_SHOT_RULES * 8

ONE_SHOT_NAME: Final = "POST /next"
"""The name of every one-shot rule."""

PUBLISH_LOCK: Final = MAX_ONE_SHOT_RULES
"""Octet of the lock of writers. The octets before it are those of the budgets."""

MAX_NAMESPACES: Final = 100
"""Namespaces that there can be at a time."""

INITIAL_NUMBER: Final = 0
"""Number of the order in force before any was published."""


class NamespaceEntry(NamedTuple):
    """A namespace, and where its orders are."""

    name: str
    place: int
    """Its number among all that there can be at a time."""
    since: int
    """Number of the order that made it, which tells it from an earlier one in the same place."""
    version: int
    """Number of the order that changed it last."""
    slot: int
    """Which of its two slots has what is in force."""
    at: float = 0.0
    """When it was made, in seconds since 1970."""
    shared: str = ""
    """Its id in a fleet; empty where this machine alone has it."""


@dataclass(frozen=True, slots=True)
class RuntimeOrder:
    """What is in force beside the configuration."""

    name: str = ""
    """Name of the scenario; empty for the loaded one."""
    text: str = ""
    """Text of the scenario."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """Its tables: workers never read the text, which may take them long."""
    at: float = 0.0
    """When the scenario was ordered, in seconds since 1970."""
    began: float = 0.0
    """When the scenario was ordered, in monotonic time, where the clock of its windows starts. It is negative
    if that was before the machine was booted."""
    windows_began: float = 0.0
    """Where the clock of the windows of the configuration starts, in monotonic time, in a fleet; 0: with the
    server."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    """Certificates of the TLS menu that its rules show to clients, by name, as PEM, with their keys."""
    one_shot_rules: tuple[OneShotRule, ...] = ()
    dropped: int = -1
    """Number of the last order that was dropped because a worker has died of it."""
    namespaces: tuple[NamespaceEntry, ...] = ()
    """The namespaces that there are. What is ordered for them is kept elsewhere."""
    changed: str = ""
    """Name of the namespace that this order has changed; empty if it has changed anything else."""


def parse_order(text: bytes) -> RuntimeOrder | None:
    """Return an order as `publish` has written it; None for anything else.

    The master reads orders too, and any worker could write into the map.
    """
    try:
        fields = json.loads(text)
        rules = tuple(OneShotRule(*one) for one in fields.pop("one_shot_rules"))
        namespaces = tuple(NamespaceEntry(*one) for one in fields.pop("namespaces"))
        order = RuntimeOrder(**fields, one_shot_rules=rules, namespaces=namespaces)
        valid = _is_valid(order)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return order if valid else None


def order_text(order: RuntimeOrder) -> bytes:
    """Return an order as `parse_order` reads it. Raises ValueError if it is too large."""
    fields = {name: getattr(order, name) for name in RuntimeOrder.__slots__}
    text = json.dumps(fields, ensure_ascii=False).encode()
    if len(text) > MAX_ORDER_OCTETS:
        raise ValueError(f"more than {MAX_ORDER_OCTETS} octets")
    return text


def _is_valid(order: RuntimeOrder) -> bool:
    """Return whether the values of an order are of the types and in the ranges that readers rely on."""
    starts = order.began, order.windows_began
    texts = order.name, order.text, *order.certificates, *order.certificates.values()
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(order.at, float | int)
        and 0 <= order.at < MAX_TIME
        and all(isinstance(at, float | int) and abs(at) < MAX_TIME for at in starts)
        and all(
            all(map(isinstance, one, (int, int, int, dict, str))) and one.place in range(MAX_ONE_SHOT_RULES)
            for one in order.one_shot_rules
        )
        and all(
            all(map(isinstance, one, (str, int, int, int, int, float, str)))
            and one.place in range(MAX_NAMESPACES)
            and one.slot in (0, 1)
            and all(0 <= number <= MAX_NUMBER for number in (one.since, one.version))
            and 0 <= one.at < MAX_TIME
            for one in order.namespaces
        )
        and isinstance(order.changed, str)
    )


class ControlChannel:
    """The channel, made before the fork.

    >>> channel = ControlChannel()
    >>> channel.publish(lambda before, number: replace(before, name="outage.toml", text=""))
    1
    >>> channel.read()[1].name
    'outage.toml'
    """

    def __init__(self) -> None:
        self._lock: Final = SharedLock("blackhole orders")
        cells = create(CONTROL_MAP, (SLOTS_START + 2 * (SLOT_HEADER.size + MAX_ORDER_OCTETS)) // CELL_OCTETS)
        self._map = cells.cast("B")
        self._cells = cells[: SLOTS_START // CELL_OCTETS]
        self._cells[0] = INITIAL_NUMBER
        self._budgets = UseBudgets(self._cells[1:], self._lock, 0)
        self.wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """Becomes readable with each order, for edge-triggered waiting.

        Writers empty it, readers never do.
        """
        self._last_read = INITIAL_NUMBER, RuntimeOrder()

    @classmethod
    def order_of(cls, pid: int) -> tuple[RuntimeOrder, int]:
        """Return the order in force of a running master, and how many one-shot replies are still to come.

        Raises OperatorError if the process has ended, or is not ours to read.
        """
        channel = cls.of(pid)
        if channel is None:  # another version
            return RuntimeOrder(), 0
        _, order = channel.read()
        return order, sum(map(channel.remaining, order.one_shot_rules))

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the channel of a running master, to be read; None if it has none.

        Raises OperatorError if the process has ended, or is not ours to read.
        """
        channel = cls.__new__(cls)
        channel._last_read = INITIAL_NUMBER, RuntimeOrder()
        cells = attach(pid, CONTROL_MAP)
        if cells is None:
            return None
        channel._map, channel._cells = cells.cast("B"), cells[: SLOTS_START // CELL_OCTETS]
        channel._budgets = UseBudgets(channel._cells[1:], SharedLock("unused"), 0)
        return channel

    @property
    def number(self) -> int:
        """The number of the order in force, never more than MAX_NUMBER, whatever a process wrote there."""
        return self._cells[0] & MAX_NUMBER

    def read(self) -> tuple[int, RuntimeOrder]:
        """Return the order in force and its number; the one read before while that is being overwritten, or
        where it is no order."""
        number = self.number
        if number != self._last_read[0]:
            start = self._slot(number)
            checksum, length = SLOT_HEADER.unpack_from(self._map, start)
            text = self._map[start + SLOT_HEADER.size : start + SLOT_HEADER.size + length].tobytes()
            order = parse_order(text) if zlib.crc32(text) == checksum else None
            if order is not None:
                self._last_read = number, order
        return self._last_read

    def publish(self, change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        """Put a new order in force, and return its number.

        `change` makes it of the order in force and of its own number. Raises ValueError if it is too large,
        and OperatorError (EX_TEMPFAIL) while another writer does not finish.
        """
        acquire_lock(self._lock, PUBLISH_LOCK)
        try:
            _, before = self.read()
            number = self.number % MAX_NUMBER + 1
            self._write(number, change(replace(before, changed=""), number))
        finally:
            self._lock.release(PUBLISH_LOCK)
        with suppress(BlockingIOError):
            os.read(self.wakeup_read, 1 << 16)
        with suppress(BlockingIOError):  # full again, which wakes readers up as well
            os.write(self._wakeup_write, b"!")
        return number

    def _write(self, number: int, order: RuntimeOrder) -> None:
        """Write an order into its slot, and then its number. Raises ValueError if it is too large."""
        text = order_text(order)
        start = self._slot(number)
        SLOT_HEADER.pack_into(self._map, start, zlib.crc32(text), len(text))
        self._map[start + SLOT_HEADER.size : start + SLOT_HEADER.size + len(text)] = text
        self._cells[0] = number

    def _slot(self, number: int) -> int:
        """Return the octet where the slot of an order begins."""
        return SLOTS_START + number % 2 * (SLOT_HEADER.size + MAX_ORDER_OCTETS)

    # Budgets of one-shot rules: see `UseBudgets`.

    def remaining(self, one: OneShotRule) -> int:
        """Return the number of uses that remain; 0 if the budget belongs to another rule by now."""
        return self._budgets.remaining(one)

    def set_budget(self, one: OneShotRule, uses: int) -> None:
        """Set the number of uses that remain. Raises OperatorError as `publish` does."""
        self._budgets.set_budget(one, uses)

    def consume(self, one: OneShotRule) -> bool:
        """Consume one use; return False if none remains, or while the lock is not to be had."""
        return self._budgets.consume(one)


def effective_scenario(
    order: RuntimeOrder,
    loaded: ActiveScenario,
    budgets: Budgets,
) -> ActiveScenario:
    """Return the scenario in force where `loaded` was read at the start and `order` was published since.

    Raises OperatorError.
    """
    found = with_window_clock(loaded, order)
    if order.name:
        found = replace(
            loaded,
            scenario=Scenario(make_rules(order.tables, order.name)),
            own_rules={},
            clock_origin=order.began,
            attempt_store=ScopedStore(loaded.attempt_store, b"%d\0" % round(order.at * 1e6)),
        )
    store = loaded.attempt_store
    first = (one_shot_rule(one, budgets, store) for one in order.one_shot_rules if budgets.remaining(one))
    certificates = {name: pem.encode() for name, pem in order.certificates.items()}
    return replace(found.preceded_by(first), certificates=certificates)


def with_window_clock(loaded: ActiveScenario, order: RuntimeOrder) -> ActiveScenario:
    """Return the scenario of the configuration with the clock that its windows have in a fleet."""
    return replace(loaded, clock_origin=order.windows_began) if order.windows_began else loaded


def one_shot_rule(one: OneShotRule, budgets: Budgets, store: AttemptStore) -> Rule:
    """Return the rule of a one-shot rule: its last condition consumes a use of the budget.

    In a fleet, uses are counted in `store`, which no order replaces.
    """
    rule = parse_rule(one.rule, f"next {one.number}")
    last = Condition("count", str(one.times), lambda case: budgets.consume(one))
    limiter = UseLimit(one.times, one.shared, store) if one.shared else rule.limiter
    return replace(rule, conditions=(*rule.conditions, last), name=ONE_SHOT_NAME, limiter=limiter)
