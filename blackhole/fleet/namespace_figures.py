"""The figures of one namespace in a fleet: the sum over all machines, and its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from blackhole.fleet import fields
from blackhole.fleet.machine import FleetView, silence_notes
from blackhole.fleet.member import FleetMember
from blackhole.fleet.namespace_store import SharedNamespace
from blackhole.fleet.replies import FleetRun
from blackhole.fleet.store import Total
from blackhole.store.namespaces import MAX_NAMESPACE_RUNS


class NamespaceFigures:
    """What a member of a fleet tells of one namespace, as the member itself does of the whole fleet."""

    max_runs = MAX_NAMESPACE_RUNS

    def __init__(
        self,
        member: FleetMember,
        namespace: SharedNamespace,
        keep: Callable[[Mapping[str, FleetRun]], None] = lambda runs: None,
    ) -> None:
        """`keep` takes a copy of the runs, which the store may lose."""
        self.store: Final = member.store.of_namespace(namespace.id)
        self._member: Final = member
        self._namespace: Final = namespace
        self._keep: Final = keep

    async def settle(self) -> tuple[str, ...]:
        """Wait until all machines have written; see `FleetMember.settle`. Raises StoreError."""
        return await self._member.settle()

    async def view(self) -> FleetView:
        """Return the namespace as it is now. Raises StoreError.

        It has no machines: what they tell of themselves is not of a namespace alone.
        """
        machines = (await self._member.view()).machines
        total, now, runs = await self.store.total(), await self.store.now(), await self.store.runs()
        self._keep(runs)
        made = self._namespace.made
        notes = (*silence_notes(machines),)
        counters = fields.snapshot(total.fields, max(0.0, now - made), made, (), 0, notes)
        return FleetView(counters, (), self._member.store.name, Total(total.fields, made), now, runs)

    async def messages(self) -> int:
        """Return the number of messages. Raises StoreError."""
        total = await self.store.total()
        return sum(fields.snapshot(total.fields, 0, 0, (), 0).messages.values())
