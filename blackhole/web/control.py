"""Control of a running server: the scenario in force and the one-shot rules, published to the workers.

An order is checked completely before it is published, so that no worker finds a mistake in it.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, Self

from blackhole.metrics.counters import Counters, clipped
from blackhole.metrics.layout import MAX_RULE_NAMES
from blackhole.rules import scenario
from blackhole.rules.scenario import Scenario, ScenarioSource
from blackhole.settings import OperatorError, ScenarioVariable, Settings
from blackhole.store.control import ONE_SHOT_NAME, ControlChannel, RuntimeOrder
from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES, OneShotRule
from blackhole.tls_menu import TLSParameters
from blackhole.values import did_you_mean
from blackhole.web.order_check import CheckedOrder, check_one_shot_rule, check_source, check_text, checked
from blackhole.web.tls_orders import TLSOrders

LOADED: Final = "loaded"
"""The name of the scenario of all files and profiles of --scenario together."""

REMOVE_ONE_SHOT_NAME: Final = "DELETE /next"
"""The name of the order that removes all one-shot rules."""

MAX_CHECKS: Final = 16
"""Orders that can wait to be checked."""

DIGEST_LENGTH: Final = 16
"""Digits of what tells one scenario from another."""

APPLY_INTERVAL: Final = 0.005
"""Seconds after which the workers are checked again."""


class OrderChannel(Protocol):
    """The channel of the server, or of one of its namespaces: see `ControlChannel`."""

    def read(self) -> tuple[int, RuntimeOrder]:
        """Return the order in force, and a number that changes with it."""

    def publish(self, change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        """Put a new order in force, and return its number."""

    def remaining(self, one: OneShotRule) -> int:
        """Return the number of uses that remain of a one-shot rule."""

    def set_budget(self, one: OneShotRule, uses: int) -> None:
        """Set the number of uses that remain."""


class ScenarioControl:
    """Publishes orders, and tells what is in force.

    `loaded` is the scenario of the configuration.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: Scenario,
        profiles: Iterable[ScenarioSource],
        channel: ControlChannel,
        counters: Counters,
        tls: TLSOrders,
    ) -> None:
        self._loaded, self._counters, self._tls = loaded, counters, tls
        self._channel: OrderChannel = channel
        self._sources: Final = {source.name: source for source in (*profiles, *loaded.sources)}
        files = ", ".join(os.path.basename(source.name) for source in loaded.sources)
        self.choices: Final = [
            {"name": LOADED, "about": files, "rules": len(loaded.rules)},
            *(
                {
                    "name": source.name,
                    "about": scenario.about(source),
                    "rules": len(source.tables["rule"]),
                }
                for source in self._sources.values()
            ),
        ]
        """The scenarios that `switch` knows."""
        self._rule_names: tuple[int, int, list[str], str] = -1, 0, [], ""
        """Number of an order (-1: of none), and of its scenario the number of rules, their names, and what
        is the same on another machine with that scenario only."""
        self._turn: Final = asyncio.Lock()
        self._checks: Final[list[str]] = []
        """Orders that are being checked or wait for it."""

    def of_channel(self, channel: OrderChannel) -> Self:
        """Return the control of another channel. Its orders wait for their turn with those of this one."""
        found = copy.copy(self)
        found._channel, found._rule_names = channel, (-1, 0, [], "")
        return found

    async def keep(self) -> int:
        """Publish what is in force again, which makes a namespace that there is not yet."""
        return self._publish(LOADED, lambda before, number: before)

    # Orders. Each method returns the number of the order that it published, and raises OperatorError.

    async def load(self, name: str, octets: bytes, variables: Sequence[ScenarioVariable] = ()) -> int:
        """Replace the scenario in force by the text of another, with values of its variables."""
        return await self._replace(name, partial(check_text, name, octets, variables))

    async def check(self, name: str, octets: bytes, variables: Sequence[ScenarioVariable] = ()) -> int:
        """Check the text of a scenario, and return the number of its rules. Raises OperatorError."""
        order = await self._check(name, partial(check_text, name, octets, variables))
        return len(order.tables["rule"])

    async def switch(self, name: str, variables: Sequence[ScenarioVariable] = ()) -> int:
        """Replace the scenario in force by one of the choices, with values of its variables."""
        if name == LOADED:
            if variables:
                raise OperatorError(f"set: not with {LOADED}, whose variables have the values of --set")
            return await self.restore()
        source = self._source(name)
        return await self._replace(source.name, partial(check_source, source, variables))

    def _source(self, name: str) -> ScenarioSource:
        """Return one of the choices. A file has its path or its base name. Raises OperatorError."""
        for source in self._sources.values():
            if name in (source.name, os.path.basename(source.name)):
                return source
        names = (LOADED, *self._sources)
        raise OperatorError(
            f"{name!r}: unknown scenario; there are {', '.join(names)}{did_you_mean(name, names)}"
        )

    async def _replace(self, name: str, check: Callable[[], CheckedOrder]) -> int:
        """Replace the scenario in force by one that a check returns."""
        order = await self._check(name, check)

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            return replace(
                self._with_certificates(before, order.tls),
                name=name,
                text=order.text,
                tables=order.tables,
                at=time.time(),
                began=time.monotonic(),
            )

        return self._publish(name, change)

    async def restore(self) -> int:
        """Return to the scenario of the configuration."""

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            return replace(before, name="", text="", tables={}, at=time.time(), began=0.0)

        return self._publish(LOADED, change)

    async def _check(self, name: str, check: Callable[[], CheckedOrder]) -> CheckedOrder:
        """Check one order after the other, so that workers are never kept busy with reading orders."""
        if len(self._checks) >= MAX_CHECKS:
            raise OperatorError(f"{name}: {MAX_CHECKS} orders are waiting already; try later", os.EX_TEMPFAIL)
        self._checks.append(name)
        try:
            async with self._turn:
                return await checked(name, check)
        finally:
            self._checks.remove(name)

    def _publish(self, name: str, change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        """Publish an order. Raises OperatorError if it is too large."""
        try:
            return self._channel.publish(change)
        except ValueError as error:
            raise OperatorError(f"{name}: {error}") from None

    async def add_one_shot_rule(self, count: int, block: Mapping[str, Any]) -> int:
        """Let a rule match the next `count` times, after the one-shot rules that are waiting."""
        order = await self._check(ONE_SHOT_NAME, partial(check_one_shot_rule, ONE_SHOT_NAME, block))

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            waiting = self._waiting(before)
            free = set(range(MAX_ONE_SHOT_RULES)) - {one.place for one in waiting}
            if not free:
                raise too_many_one_shot_rules()
            one = OneShotRule(number, min(free), count, block)
            self._channel.set_budget(one, count)
            wanted = self._with_certificates(before, order.tls)
            return replace(wanted, one_shot_rules=(*waiting, one))

        return self._publish(ONE_SHOT_NAME, change)

    async def remove_one_shot_rules(self) -> int:
        """Remove all one-shot rules that are waiting."""

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            for one in before.one_shot_rules:
                self._channel.set_budget(one, 0)
            return replace(before, one_shot_rules=())

        return self._publish(REMOVE_ONE_SHOT_NAME, change)

    def _with_certificates(self, order: RuntimeOrder, wanted: frozenset[TLSParameters]) -> RuntimeOrder:
        """Return the order with the certificates that its new rules need. Raises OperatorError."""
        if not wanted:
            return order
        made = self._tls.certificates(wanted, order.certificates)
        return replace(order, certificates={**order.certificates, **made})

    def _waiting(self, order: RuntimeOrder) -> tuple[OneShotRule, ...]:
        return tuple(filter(self._channel.remaining, order.one_shot_rules))

    # What is in force

    async def applied(self, number: int, seconds: float, is_pointless: Callable[[], bool]) -> str:
        """Wait until all workers apply an order; return what did not apply it in time, or nothing.

        `is_pointless` says that nobody waits any more.
        """
        until = time.monotonic() + seconds
        while not self.is_applied(number):
            if time.monotonic() >= until or is_pointless():
                return "a worker"
            await asyncio.sleep(APPLY_INTERVAL)
        return ""

    def is_applied(self, number: int) -> bool:
        """Return whether all workers apply this order or a later one. A worker that starts later will."""
        least = self._counters.applied_order()
        return least is None or least >= number

    def is_dropped(self, number: int) -> bool:
        """Return whether this order was dropped because a worker has died of it."""
        return self._channel.read()[1].dropped == number

    def source(self) -> str:
        """Return the text of the scenario in force."""
        _, order = self._channel.read()
        sources = self._loaded.sources
        if order.name or len(sources) == 1:
            return order.text if order.name else sources[0].text
        return "\n".join(f"# {source.name}\n{source.text}" for source in sources)

    def one_shot_rules(self) -> list[dict[str, Any]]:
        """Return the one-shot rules that are waiting, with how often they were ordered and are left."""
        _, order = self._channel.read()
        return [
            {"count": one.times, "left": self._channel.remaining(one), **one.rule}
            for one in self._waiting(order)
        ]

    def state(self) -> dict[str, Any]:
        """Return the scenario in force and the one-shot rules, in the words of the JSON."""
        number, order = self._channel.read()
        if self._rule_names[0] != number:
            if order.name:
                blocks = enumerate(order.tables["rule"], 1)
                names = [block.get("name", str(position)) for position, block in blocks]
            else:
                names = [rule.name for rule in self._loaded.rules]
            unique = [*dict.fromkeys(map(clipped, names))]
            text = self.source() if names else ""
            digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH] if text else ""
            self._rule_names = number, len(names), unique[:MAX_RULE_NAMES], digest
        return {
            "name": order.name or LOADED,
            "ordered": bool(order.name),
            "rules": self._rule_names[1],
            "names": self._rule_names[2],
            "digest": self._rule_names[3],
            "set": dict(order.tables.get("set", {})) if order.name else self._loaded.variables,
            "since": order.at if order.name else max(order.at, self._loaded.loaded_at),
            "next": self.one_shot_rules(),
        }


def too_many_one_shot_rules() -> OperatorError:
    """Return the error for a one-shot rule for which there is no room."""
    return OperatorError(
        f"{ONE_SHOT_NAME}: {MAX_ONE_SHOT_RULES} rules are waiting already;"
        f" {REMOVE_ONE_SHOT_NAME} removes them"
    )
