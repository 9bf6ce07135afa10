"""The live figures as server-sent events, for the pages that are open."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

from tornado.iostream import StreamClosedError

from blackhole.smtp.state import PHASES
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.namespaces import Namespaces
from blackhole.web.stats_view import StatsView

MAX_VIEWERS: Final = 32
"""Pages that receive events at the same time."""

VIEWER_TIMEOUT: Final = 10
"""Seconds for a page to receive an event."""


def event(name: str, data: str) -> str:
    """Return a server-sent event with JSON data, which must be one line."""
    return f"event: {name}\ndata: {data}\n\n"


def compact_json(data: object) -> str:
    """Return data as JSON in one line."""
    return json.dumps(data, separators=(",", ":"))


class EventStream:
    """The event of each second, made once for all viewers.

    Has to be made while an event loop runs. `namespaces` is None for a server without them.
    """

    def __init__(
        self, stats: StatsView, scenarios: list[dict[str, Any]], namespaces: Namespaces | None
    ) -> None:
        self.viewers: Final[set[EventsHandler]] = set()
        self._stats, self._scenarios, self._namespaces = stats, scenarios, namespaces
        self._next: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def first(self) -> str:
        """Return the events that a new viewer gets: the history and the latest figures."""
        constants = {
            "rules": self._stats.violation_rules(),
            "choices": self._scenarios,
            "phases": PHASES,
            "recent": self._stats.kept_transactions,
            "fleet": self._stats.fleet,
        }
        return event("past", f"{self._stats.past_json()[:-1]},{compact_json(constants)[1:]}") + self._now()

    def publish(self) -> None:
        """Send the latest figures to all viewers."""
        # Without a viewer, nothing is made; one that has just left is woken up all the same, to end.
        self._next.set_result(self._now() if self.viewers else "")
        self._next = asyncio.get_running_loop().create_future()

    async def next(self) -> str:
        """Wait for the next event."""
        return await asyncio.shield(self._next)

    def _now(self) -> str:
        snapshot = self._stats.last_sample()
        figures = self._stats.current(snapshot)
        if self._namespaces is not None:
            figures["namespaces"] = self._namespaces.local_summaries(snapshot)
        return event("now", compact_json(figures))


class EventsHandler(BaseHandler):
    """GET /events."""

    events: EventStream

    async def get(self) -> None:
        events = self.events
        if len(events.viewers) >= MAX_VIEWERS:
            raise APIError(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_VIEWERS} pages are open already; close one."
            )
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        events.viewers.add(self)
        try:
            self.write(events.first())
            while True:
                # A viewer that does not read is disconnected; the others do not wait for it.
                async with asyncio.timeout(VIEWER_TIMEOUT):  # wait_for() may lose a cancellation
                    await self.flush()
                self.write(await events.next())
        except (StreamClosedError, TimeoutError):
            self.request.connection.stream.close()  # type: ignore[union-attr]
        except asyncio.CancelledError:
            self.finish()  # the server stops, which is not an error to log
            raise
        finally:
            events.viewers.discard(self)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.events.viewers.discard(self)
