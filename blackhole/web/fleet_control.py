"""Control of a fleet: an order to one machine goes into the store, which all machines follow."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from blackhole.fleet.machine import Machine
from blackhole.fleet.member import FleetMember
from blackhole.fleet.replies import FleetOrder, SharedRule, StoreError
from blackhole.fleet.store import ORDER_CHANNEL
from blackhole.metrics.counters import Counters
from blackhole.rules.scenario import Scenario, ScenarioSource
from blackhole.settings import OperatorError, Settings
from blackhole.store.control import ONE_SHOT_NAME, ControlChannel, RuntimeOrder
from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES, OneShotRule
from blackhole.store.redis_attempts import WARNING_INTERVAL
from blackhole.tls_menu import TLSParameters
from blackhole.web.control import LOADED, REMOVE_ONE_SHOT_NAME, ScenarioControl, too_many_one_shot_rules
from blackhole.web.order_check import CheckedOrder, check_one_shot_rule, check_text
from blackhole.web.tls_orders import TLSOrders

log = logging.getLogger(__name__)

MAX_TRIES: Final = 5
"""Times that an order is made anew because another machine has published one in between."""

MACHINES_INTERVAL: Final = 0.05
"""Seconds after which the machines are looked at again."""

OBEY_TIMEOUT: Final = 4.0
"""Seconds for the workers of this machine to apply an order."""


class FleetControl(ScenarioControl):
    """Publishes orders to a fleet, and obeys those that any of its machines has published.

    Numbers of orders are those of the fleet. `follow` is to run as long as the process serves.
    """

    def __init__(
        self,
        settings: Settings,
        loaded: Scenario,
        profiles: Iterable[ScenarioSource],
        channel: ControlChannel,
        counters: Counters,
        tls: TLSOrders,
        member: FleetMember,
    ) -> None:
        super().__init__(settings, loaded, profiles, channel, counters, tls)
        self._member: Final = member
        member.obeyed = 0
        self._order = FleetOrder()
        """The order that this machine obeys."""
        self._local_number = -1
        """The number of that order on this machine."""
        self._obeying: Final = asyncio.Lock()
        self._warned = float("-inf")

    # Orders. Each method returns the number of the order that it published, and raises OperatorError.

    async def _replace(self, name: str, check: Callable[[], CheckedOrder]) -> int:
        found = await self._check(name, check)
        return await self._publish_to_fleet(
            name, lambda order: order._replace(name=name, text=found.text), True
        )

    async def restore(self) -> int:
        return await self._publish_to_fleet(LOADED, lambda order: order._replace(name="", text=""), True)

    async def add_one_shot_rule(self, count: int, block: Mapping[str, Any]) -> int:
        await self._check(ONE_SHOT_NAME, partial(check_one_shot_rule, ONE_SHOT_NAME, block))
        one = SharedRule(os.urandom(8).hex(), count, block)

        def change(order: FleetOrder) -> FleetOrder:
            waiting = {rule.shared for rule in self._waiting(self._channel.read()[1])}
            rules = tuple(rule for rule in order.rules if rule.id in waiting)
            if len(rules) >= MAX_ONE_SHOT_RULES:
                raise too_many_one_shot_rules()
            return order._replace(rules=(*rules, one))

        return await self._publish_to_fleet(ONE_SHOT_NAME, change, False)

    async def keep(self) -> int:
        return await self._publish_to_fleet(LOADED, lambda order: order, False)

    async def remove_one_shot_rules(self) -> int:
        return await self._publish_to_fleet(
            REMOVE_ONE_SHOT_NAME, lambda order: order._replace(rules=()), False
        )

    async def _publish_to_fleet(
        self, name: str, change: Callable[[FleetOrder], FleetOrder], is_new: bool
    ) -> int:
        """Publish an order that is made of the one in force. `is_new` says that its scenario is another."""
        try:
            for _ in range(MAX_TRIES):
                before = await self._obey_order_in_force()
                number = await self._publish_order(change(before), is_new)
                if number:
                    self._member.order_changed.set()
                    return number
        except StoreError as error:
            raise OperatorError(
                f"{name}: the store of the fleet does not answer: {error}", os.EX_TEMPFAIL
            ) from None
        raise OperatorError(f"{name}: other machines give orders at the same time; try again", os.EX_TEMPFAIL)

    async def _publish_order(self, order: FleetOrder, is_new: bool) -> int:
        """Put an order in force; return its number, or 0 if another one came in between."""
        return await self._member.store.publish(order, is_new)

    def _obeyed_by(self, machine: Machine) -> int:
        """Return the number of the last order that a machine obeys; -1 if it obeys none."""
        return machine.order

    async def applied(self, number: int, seconds: float, is_pointless: Callable[[], bool]) -> str:
        """Wait until all machines that are alive obey an order; return the names of those that do not."""
        until = time.monotonic() + seconds
        while True:
            try:
                machines = await self._member.machines()
            except StoreError:
                return "the store of the fleet does not answer, and a machine"
            late = [one.name for one in machines if one.alive and -1 < self._obeyed_by(one) < number]
            if not late or time.monotonic() >= until or is_pointless():
                return " and ".join(late)
            await asyncio.sleep(MACHINES_INTERVAL)

    def is_dropped(self, number: int) -> bool:
        return self._order.number == number and super().is_dropped(self._local_number)

    # The orders of the fleet.

    async def follow(self, *others: Callable[[], Awaitable[object]]) -> None:
        """Obey the orders of the fleet, for ever. `others` obey other orders that are announced with them."""
        changed = self._member.order_changed
        # Without announcements, the next write tells of the order.
        listening = asyncio.create_task(self._member.store.listen(ORDER_CHANNEL, changed.set))
        try:
            while True:
                changed.clear()
                for obey in (self._obey_order_in_force, *others):
                    try:
                        await obey()
                    except (StoreError, OperatorError) as error:
                        self._warn(error)
                await changed.wait()
        finally:
            listening.cancel()

    def _warn(self, error: Exception) -> None:
        """Log that an order cannot be obeyed, at most once a minute: the store may give one after the other.

        Where the store does not answer at all, the member says so, and when it answers again.
        """
        now = time.monotonic()
        if self._member.available and now - self._warned >= WARNING_INTERVAL:
            self._warned = now
            log.error("fleet: an order cannot be obeyed: %.500a", str(error))

    async def _obey_order_in_force(self) -> FleetOrder:
        """Obey the order in force, and return it. Raises StoreError, and OperatorError."""
        async with self._obeying:
            order = await self._member.store.order()
            if order.number < self._order.number:
                await self._member.store.restore(self._order)  # the store has lost it
                return self._order
            if order.number > self._order.number:
                await self._obey(order)
            return order

    async def _obey(self, order: FleetOrder) -> None:
        """Put an order in force on this machine, and tell the fleet."""
        self._local_number, _ = await self.obey_locally(order)
        scenario = order.name or "of the configuration"
        log.info("fleet: order %d: scenario %s, one-shot rules %d", order.number, scenario, len(order.rules))
        self._order = order
        self._member.obeyed = order.number
        await self._member.write()
        self._member.forget_view()

    async def obey_locally(self, order: FleetOrder, seconds: float = OBEY_TIMEOUT) -> tuple[int, bool]:
        """Put an order in force on this machine; return its number here, and whether all workers apply it.

        Raises OperatorError and StoreError.
        """
        number = self._publish(order.name, await self._local_change(order))
        late = await super().applied(number, seconds, lambda: False)
        if late:
            log.warning("fleet: a worker did not apply order %d within %g s", order.number, seconds)
        return number, not late

    async def _local_change(self, order: FleetOrder) -> Callable[[RuntimeOrder, int], RuntimeOrder]:
        """Check an order, and return how it changes that of this machine.

        Raises OperatorError and StoreError.
        """
        name, before = order.name, self._channel.read()[1]
        wanted: dict[str, Any] = {}
        tls = frozenset[TLSParameters]()
        if not name:
            wanted = {"name": "", "text": "", "tables": {}, "at": order.at, "began": 0.0}
        elif (before.name, before.at) != (name, order.at):
            found = await self._check(name, partial(check_text, name, order.text.encode()))
            # The scenario's clock is the store's, whenever a machine begins to obey.
            began = time.monotonic() - max(0.0, await self._member.store.now() - order.at)
            wanted = {
                "name": name,
                "text": found.text,
                "tables": found.tables,
                "at": order.at,
                "began": began,
            }
            tls |= found.tls
        known = {one.shared for one in before.one_shot_rules}
        for one in order.rules:
            if one.id not in known:
                check = partial(check_one_shot_rule, ONE_SHOT_NAME, one.rule)
                tls |= (await self._check(ONE_SHOT_NAME, check)).tls

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            rules = self._one_shot_rules(order, before, number)
            return replace(self._with_certificates(before, tls), one_shot_rules=rules, **wanted)

        return change

    def _one_shot_rules(
        self, order: FleetOrder, before: RuntimeOrder, number: int
    ) -> tuple[OneShotRule, ...]:
        """Return the one-shot rules of an order, and give each that is new a budget."""
        known = {one.shared: one for one in before.one_shot_rules if one.shared}
        kept = [known[rule.id] for rule in order.rules if rule.id in known]
        places = iter(sorted(set(range(MAX_ONE_SHOT_RULES)) - {one.place for one in kept}))
        for one in before.one_shot_rules:
            if one not in kept:
                self._channel.set_budget(one, 0)
        added = {}
        for rule in order.rules:
            if rule.id not in known:
                added[rule.id] = OneShotRule(number, next(places), rule.times, rule.rule, rule.id)
                self._channel.set_budget(added[rule.id], rule.times)
        return tuple({**known, **added}[rule.id] for rule in order.rules)
