"""The scope of a request for figures: this machine, or the fleet that it belongs to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from blackhole import __version__
from blackhole.fleet.machine import FleetView
from blackhole.fleet.member import FleetMember
from blackhole.fleet.replies import StoreError
from blackhole.fleet.runs import FleetFigures
from blackhole.metrics.findings import findings
from blackhole.metrics.snapshot import Snapshot
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.operations import Parameter
from blackhole.web.stats_view import StatsView

SCOPE_PARAMETER: Final = Parameter(
    "scope",
    "whose figures: this machine's, or those of its fleet",
    {"type": "string", "enum": ["machine", "fleet"], "default": "machine"},
)


class ScopedHandler(BaseHandler):
    """The base of the handlers that use the figures."""

    stats: StatsView
    fleet: FleetMember | None = None

    @property
    def is_of_fleet(self) -> bool:
        """Whether the fleet is asked for. Raises APIError for an unknown scope."""
        return self.choice_argument(SCOPE_PARAMETER) == "fleet"

    @property
    def member(self) -> FleetFigures:
        """This machine as a part of its fleet. Raises APIError if there is none."""
        if self.fleet is None:
            raise APIError(HTTPStatus.NOT_FOUND, "This server is in no fleet; start it with --fleet.")
        return self.fleet

    async def fleet_view(self) -> FleetView:
        """Return the figures of the fleet. Raises APIError if there are none."""
        with store_errors_as_responses():
            return await self.member.view()

    async def scoped_snapshot(self) -> Snapshot:
        """Return the counters of this machine, or those of the fleet if they are asked for."""
        return (await self.fleet_view()).snapshot if self.is_of_fleet else self.stats.snapshot()


@contextmanager
def store_errors_as_responses() -> Iterator[None]:
    """Turn the error of a store that does not answer into a response."""
    try:
        yield
    except StoreError:
        raise APIError(
            HTTPStatus.SERVICE_UNAVAILABLE, "The store of the fleet does not answer; try later."
        ) from None


def fleet_figures(view: FleetView) -> dict[str, Any]:
    """Return all figures of a fleet, for JSON."""
    return {
        "version": __version__,
        "time": time.time(),
        **view.as_dict(),
        "findings": [finding.as_dict() for finding in findings(view.snapshot)],
        "workers": view.workers,
    }
