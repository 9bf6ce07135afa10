"""The namespaces of a fleet: an order for one reaches all machines, and its figures are those of all.

A machine obeys the orders of namespaces as it obeys those of the fleet, and beside them: they have numbers of
their own. Machines without `--namespace-by` obey none, and are not waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Self

from blackhole.fleet import fields
from blackhole.fleet.machine import Machine
from blackhole.fleet.member import FleetMember
from blackhole.fleet.namespace_figures import NamespaceFigures
from blackhole.fleet.namespace_store import NamespaceIndex, NamespaceStore, SharedNamespace
from blackhole.fleet.replies import FleetOrder, FleetRun, StoreError
from blackhole.metrics.counters import Counters
from blackhole.metrics.namespace_counters import NamespaceState
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import OperatorError, Settings
from blackhole.store.control import MAX_NAMESPACES, NamespaceEntry
from blackhole.store.namespaces import NamespaceChannel
from blackhole.web.base_handler import APIError
from blackhole.web.fleet_control import OBEY_TIMEOUT, FleetControl
from blackhole.web.namespaces import Namespaces
from blackhole.web.scope import store_errors_as_responses

log = logging.getLogger(__name__)

TOUCH_INTERVAL: Final = 5.0
"""Seconds after which a machine tells the fleet which namespaces it has used."""


class ObeyedNamespace(NamedTuple):
    """A namespace of the fleet as this machine has it."""

    shared: SharedNamespace
    order: FleetOrder
    """What is in force in it."""


class FleetNamespaces(Namespaces):
    """The namespaces of a fleet, on one of its machines. `follow` is to run as long as the process serves."""

    def __init__(
        self,
        state: NamespaceState,
        settings: Settings,
        control: FleetControl,
        counters: Counters,
        member: FleetMember,
    ) -> None:
        super().__init__(state, settings, control, counters)
        self._fleet_control, self._member = control, member
        self.store: Final = NamespaceStore(member.store)
        self._number = 0
        """The number of the last order to a namespace that this machine obeys."""
        self._in_force: dict[str, FleetOrder] = {}
        """What is in force in each namespace, also where this machine cannot obey it."""
        self._obeyed: dict[str, ObeyedNamespace] = {}
        self._runs: dict[str, Mapping[str, FleetRun]] = {}
        """Copies of the runs that were seen last, by the id of the namespace."""
        self._epoch = ""
        """That of the store, when namespaces were obeyed last."""
        self.dropped: Final = deque[int](maxlen=MAX_NAMESPACES)
        """Numbers of the last orders of which a worker of this machine has died."""
        self._obeying: Final = asyncio.Lock()
        member.obeyed_namespaces = 0
        member.namespace_fields = self._fields

    def _fields(self, server: Snapshot) -> dict[str, int]:
        """Return the counters of all namespaces on this machine, as the fleet's store has them."""
        found: dict[str, int] = {}
        for entry in self.directory.entries():
            if entry.shared:
                counted = self._state.counters.counted(entry)
                found |= fields.namespace_fields(entry.shared, counted, server)
        return found

    # Orders.

    def control(self, name: str) -> FleetNamespaceControl:
        return FleetNamespaceControl.of(self._fleet_control, self.directory.channel(name), self, name)

    async def remove(self, name: str) -> int:
        try:
            number = await self.store.remove(name)
        except StoreError as error:
            problem = f"DELETE /namespaces/{name}: the store of the fleet does not answer: {error}"
            raise OperatorError(problem, os.EX_TEMPFAIL) from None
        self._member.order_changed.set()
        return number

    async def order(self, name: str) -> FleetOrder:
        """Obey the orders in force, and return that of a namespace. Raises StoreError."""
        with suppress(OperatorError):  # another order, which is not to wait for those that cannot be obeyed
            await self.obey()
        return self._in_force.get(name, FleetOrder())

    async def obey(self) -> None:
        """Obey the orders in force in all namespaces. Raises StoreError, and OperatorError."""
        async with self._obeying:
            index = await self.store.index()
            if index.number < self._number:  # the store has lost them
                obeyed = self._obeyed.items()
                known = NamespaceIndex(self._number, {name: one.shared for name, one in obeyed})
                await self.store.restore(known, {name: one.order for name, one in obeyed})
            elif index.number > self._number:
                await self._obey(index)
            before, self._epoch = self._epoch, self._member.epoch
            if before not in ("", self._epoch):
                await self._restore_runs()

    async def _restore_runs(self) -> None:
        """Write the runs again that this machine knows of, where the store has lost its data."""
        for namespace, runs in self._runs.items():
            for run in runs.values():
                await self._member.store.of_namespace(namespace).restore_run(run)

    async def _obey(self, index: NamespaceIndex) -> None:
        """Put what is in force in all namespaces of the fleet in force on this machine, and say so."""
        ids = {name: one.id for name, one in index.namespaces.items()}
        gone = [one.name for one in self.directory.entries() if ids.get(one.name) != one.shared]
        if gone:
            self.directory.remove(*gone)
        for name in self._in_force.keys() - ids.keys():
            del self._in_force[name]
        for name in [name for name, one in self._obeyed.items() if ids.get(name) != one.shared.id]:
            self._runs.pop(self._obeyed.pop(name).shared.id, None)
        seconds, failed = OBEY_TIMEOUT, None
        for one in index.namespaces.values():
            obeyed = self._obeyed.get(one.name)
            if obeyed is not None and obeyed.shared == one and self.directory.find(one.name) is not None:
                continue
            try:
                # One after the other, so that an order of which a worker dies is known.
                if not await self._obey_one(one, seconds):
                    seconds = 0.0
            except OperatorError as error:
                failed = error  # the others are obeyed all the same
        if failed is not None:
            raise failed
        log.info("fleet: order %d to a namespace: there are %d", index.number, len(index.namespaces))
        self._number = self._member.obeyed_namespaces = index.number
        await self._member.write()

    async def _obey_one(self, shared: SharedNamespace, seconds: float) -> bool:
        """Put what is in force in a namespace in force on this machine; return whether all workers apply it.

        Raises StoreError, and OperatorError.
        """
        order = await self.store.order(shared)
        if not order.number:  # it is gone meanwhile, and a later order says so
            return True
        order = order._replace(number=shared.number)
        self._in_force[shared.name] = order
        channel = self.directory.channel(shared.name, shared.id)
        control = FleetNamespaceControl.of(self._fleet_control, channel, self, shared.name)
        number, is_applied = await control.obey_locally(order, seconds)
        self._obeyed[shared.name] = ObeyedNamespace(shared, order)
        if channel.read()[1].dropped == number:
            log.error("fleet: the namespace %s is removed: a worker has died of its order", shared.name)
            self.dropped.append(shared.number)
            await self.store.remove(shared.name, shared.id)
        return is_applied

    async def follow(self) -> None:
        """Tell the fleet, for ever, which namespaces are used, and remove those that no machine uses."""
        told = time.monotonic()
        while True:
            await asyncio.sleep(TOUCH_INTERVAL)
            if not self._obeyed:
                continue
            now = time.monotonic()
            try:
                gone = await self.store.touch(self._used_within(now - told + 1))
            except StoreError:
                continue  # the next write says so
            told = now
            if gone:
                log.info("fleet: namespaces are gone, as nobody used them: %s", ", ".join(gone))
            if gone or self._number < self._member.namespaces:
                self._member.order_changed.set()

    def _used_within(self, seconds: float) -> Iterator[tuple[SharedNamespace, float]]:
        """Yield the namespaces that this machine has used in the last seconds, and how long ago."""
        for entry in self.directory.entries():
            obeyed, unused = self._obeyed.get(entry.name), self.directory.orders.unused(entry)
            if obeyed is not None and unused <= seconds:
                yield obeyed.shared, unused

    def remove_unused(self) -> None:
        """Do nothing: the store's clock says when a namespace is gone."""

    # Figures. Each method raises APIError if the store does not answer.

    def is_of_fleet(self, scope: str) -> bool:
        return scope != "machine"

    def figures(self, entry: NamespaceEntry) -> NamespaceFigures:
        obeyed = self._obeyed.get(entry.name)
        if obeyed is None or obeyed.shared.id != entry.shared:
            raise APIError(HTTPStatus.NOT_FOUND, f"There is no namespace {entry.name} in the fleet.")
        return NamespaceFigures(self._member, obeyed.shared, partial(self._keep_runs, entry.shared))

    def _keep_runs(self, namespace: str, runs: Mapping[str, FleetRun]) -> None:
        """Keep a copy of the runs of a namespace. A store that has none has lost them: none is removed."""
        if runs:
            self._runs[namespace] = runs

    async def summaries(self, entries: Iterable[NamespaceEntry]) -> list[dict[str, Any]]:
        found = []
        with store_errors_as_responses():
            unused, server = await self.store.unused(), self._counters.snapshot()
            for entry in entries:
                summary, obeyed = self.summary(entry, server), self._obeyed.get(entry.name)
                if obeyed is not None:
                    summary |= {"made": obeyed.shared.made, "unused": unused.get(entry.name, 0.0)}
                    summary["messages"] = await NamespaceFigures(self._member, obeyed.shared).messages()
                found.append(summary)
        return found


class FleetNamespaceControl(FleetControl):
    """Publishes the orders of one namespace to a fleet."""

    _namespaces: FleetNamespaces
    _name: str

    @classmethod
    def of(
        cls, control: FleetControl, channel: NamespaceChannel, namespaces: FleetNamespaces, name: str
    ) -> Self:
        """Return the control of a namespace. Its orders wait for their turn with those of the fleet."""
        found = cls.__new__(cls)
        vars(found).update(vars(control.of_channel(channel)))
        found._namespaces, found._name = namespaces, name
        return found

    async def _obey_order_in_force(self) -> FleetOrder:
        return await self._namespaces.order(self._name)

    async def _publish_order(self, order: FleetOrder, is_new: bool) -> int:
        return await self._namespaces.store.publish(self._name, order, is_new)

    def _obeyed_by(self, machine: Machine) -> int:
        return machine.namespaces

    def is_dropped(self, number: int) -> bool:
        return number in self._namespaces.dropped
