"""The HTTP handler of /recent: the last transactions, where the operator asks for them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from blackhole.metrics.transaction_reader import TransactionFilter, TransactionPage, TransactionReader
from blackhole.metrics.transactions import TRANSACTION_OUTCOMES
from blackhole.rules.globs import GlobSet
from blackhole.store.recent import Cursor
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.operations import Parameter

MAX_FOLLOWERS: Final = 64
"""Requests that wait for transactions at the same time."""

MAX_FOLLOW_SECONDS: Final = 60
"""Seconds that a request may wait."""

FOLLOW_INTERVAL: Final = 0.05
"""Seconds after which the records are looked at again."""

MAX_LIMIT: Final = 500
"""Transactions in a response."""

MAX_RECORD_OCTETS: Final = 1 << 18
"""Octets of the records of a response, which may be six times as long."""

WRITTEN_AT_ONCE: Final = 50
"""Transactions that are written before other requests have their turn."""

MAX_GLOB: Final = 256
"""Characters of a pattern."""


LIMIT_PARAMETER: Final = Parameter(
    "limit",
    "how many transactions",
    {"type": "number", "minimum": 1, "maximum": MAX_LIMIT, "default": 100},
)

FOLLOW_PARAMETER: Final = Parameter(
    "timeout",
    "seconds to wait for a transaction, if there is none",
    {"type": "number", "minimum": 0, "maximum": MAX_FOLLOW_SECONDS, "default": 0},
)

SINCE_PARAMETER: Final = Parameter("since", "a cursor, or seconds since 1970", {"type": "string"})

OUTCOME_PARAMETER: Final = Parameter(
    "outcome", "what became of a transaction", {"type": "string", "enum": [*TRANSACTION_OUTCOMES]}
)

GLOB_PARAMETERS: Final = tuple(
    Parameter(name, f"a glob for the {name}", {"type": "string", "maxLength": MAX_GLOB})
    for name in ("recipient", "sender", "client")
)

RECENT_PARAMETERS: Final = (
    LIMIT_PARAMETER,
    FOLLOW_PARAMETER,
    SINCE_PARAMETER,
    OUTCOME_PARAMETER,
    *GLOB_PARAMETERS,
)
"""The parameters of GET /recent."""


class RecentHandler(BaseHandler):
    """GET /recent: the newest transactions, or all since a cursor, after a wait if there is none yet."""

    recent: TransactionReader | None
    followers: set[RecentHandler]
    more_figures: Mapping[str, str] = {}
    """What the response says beside the transactions."""

    async def get(self) -> None:
        reader = self.recent
        if reader is None:
            raise APIError(
                HTTPStatus.NOT_FOUND, "No transactions are recorded. Start Blackhole with --recent 1000."
            )
        limit = int(self.number_argument(LIMIT_PARAMETER))
        timeout = self.number_argument(FOLLOW_PARAMETER)
        since = self.get_query_argument("since", "")
        wanted = self._filter(since)
        if since and not is_time(since):
            try:
                cursor = reader.read_cursor(since)
            except ValueError as error:
                raise APIError(HTTPStatus.BAD_REQUEST, f"since: {error}, or seconds since 1970.") from None
            found = await self._follow(reader, cursor, limit, wanted, timeout)
        else:
            found = await self._newest(reader, limit, wanted)
            if timeout and not found.transactions:
                found = await self._follow(reader, found.cursor, limit, wanted, timeout)
        await self._write(reader, found)

    async def _write(self, reader: TransactionReader, found: TransactionPage) -> None:
        """Write the response."""
        written: list[str] = []
        for number, one in enumerate(found.transactions, 1):
            written.append(json.dumps(one.as_dict()))
            if not number % WRITTEN_AT_ONCE:
                await asyncio.sleep(0)
        figures = {
            "kept": reader.records.kept,
            "next": reader.cursor_text(found.cursor),
            "more": found.more,
            **self.more_figures,
        }
        self.write_json(figures, "transactions", "[" + ",\n".join(written) + "]")

    @staticmethod
    async def _newest(reader: TransactionReader, limit: int, wanted: TransactionFilter) -> TransactionPage:
        """Return the newest transactions."""
        turns = reader.newest_in_turns(limit, wanted, MAX_RECORD_OCTETS)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                found: TransactionPage = end.value
                return found
            await asyncio.sleep(0)

    async def _follow(
        self, reader: TransactionReader, cursor: Cursor, limit: int, wanted: TransactionFilter, timeout: float
    ) -> TransactionPage:
        """Return the transactions behind a cursor; wait for one if there is none."""
        found = reader.since(cursor, limit, wanted, MAX_RECORD_OCTETS)
        if found.transactions or not timeout:
            return found
        if len(self.followers) >= MAX_FOLLOWERS:
            raise APIError(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_FOLLOWERS} requests are waiting already; try later."
            )
        self.followers.add(self)
        try:
            until = time.monotonic() + timeout
            total = -1
            while not found.transactions and time.monotonic() < until and not self.disconnected:
                await asyncio.sleep(FOLLOW_INTERVAL)
                before, total = total, reader.records.total
                if total != before or found.more:
                    found = reader.since(found.cursor, limit, wanted, MAX_RECORD_OCTETS)
        finally:
            self.followers.discard(self)
        return found

    def _filter(self, since: str) -> TransactionFilter:
        """Return the filter of the query. Raises APIError."""
        return TransactionFilter(
            self._globs("recipient"),
            self._globs("sender"),
            self._globs("client"),
            self.choice_argument(OUTCOME_PARAMETER),
            float(since) if is_time(since) else -math.inf,
        )

    def _globs(self, name: str) -> GlobSet | None:
        """Return a condition of the query; None if there is none. Raises APIError."""
        text = self.get_query_argument(name, "")
        if len(text) > MAX_GLOB:
            raise APIError(HTTPStatus.BAD_REQUEST, f"{name}: expected at most {MAX_GLOB} characters.")
        return GlobSet((text,)) if text else None


def is_time(text: str) -> bool:
    """Return whether a text is a number of seconds, and no cursor: those have letters or hyphens, or more
    digits."""
    return re.fullmatch(r"[0-9]{1,11}(?:\.[0-9]{1,9})?", text) is not None
