"""The HTTP handlers that change how the server behaves: /scenario, /scenario/check and /next.

They respond when all workers apply the order, so that a test can go on.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final

from tornado.web import stream_request_body

from blackhole import values
from blackhole.settings import OperatorError, ScenarioVariable
from blackhole.values import expected
from blackhole.web.base_handler import APIError, BaseHandler
from blackhole.web.control import ScenarioControl
from blackhole.web.operations import MAX_ONE_SHOT_COUNT, VARIABLES_PARAMETER

log = logging.getLogger(__name__)

MAX_SCENARIO: Final = 1 << 16
"""Octets of a scenario."""

MAX_UPLOAD: Final = 1 << 20
"""Octets of a request that are read, so that the client receives the error for a scenario too large."""

APPLY_TIMEOUT: Final = 5.0
"""Seconds for all workers to apply an order."""


ERROR_STATUS: Final = {
    os.EX_TEMPFAIL: HTTPStatus.SERVICE_UNAVAILABLE,
    os.EX_SOFTWARE: HTTPStatus.INTERNAL_SERVER_ERROR,
    os.EX_CANTCREAT: HTTPStatus.CONFLICT,
}
"""Code of an OperatorError -> status of the response; all others are mistakes in the request."""


class OrderHandler(BaseHandler):
    """The base of the handlers that publish orders."""

    control: ScenarioControl
    orders: set[OrderHandler]
    """Those that have not responded yet. The process waits for them before it ends."""

    def prepare(self) -> None:
        super().prepare()
        self.orders.add(self)

    def on_finish(self) -> None:
        self.orders.discard(self)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.orders.discard(self)

    async def accepted(self, order: Awaitable[int]) -> int:
        """Return what an order returns. Raises APIError if there is a mistake in it."""
        try:
            return await order
        except OperatorError as error:
            if error.code == os.EX_SOFTWARE:
                log.error("an order could not be checked: %s", error)
            status = ERROR_STATUS.get(error.code, HTTPStatus.BAD_REQUEST)
            raise APIError(status, str(error), line_of(str(error))) from None

    async def publish(self, order: Awaitable[int]) -> None:
        """Publish an order, and respond when all workers apply it."""
        await self.apply(order)
        self.write_json(self.control.state())

    async def apply(self, order: Awaitable[int]) -> None:
        """Publish an order, and wait until all workers apply it. Raises APIError."""
        number = await self.accepted(order)
        state = self.control.state()
        log.info(
            "order %d over HTTP: scenario %s, rules %d, one-shot rules %d",
            *(number, state["name"], state["rules"], len(state["next"])),
        )
        missing = await self.control.applied(number, APPLY_TIMEOUT, lambda: self.disconnected)
        if missing:
            raise APIError(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"The order is in force, but {missing} did not apply it within {APPLY_TIMEOUT:g} s.",
            )
        if self.control.is_dropped(number):
            raise APIError(HTTPStatus.BAD_REQUEST, "The order was dropped, because a worker has died of it.")


def line_of(error: str) -> int | None:
    """Return the line of a scenario that an error names; None if it names none.

    >>> line_of("PUT /scenario:12: rule 3: reply: missing")
    12
    >>> line_of("PUT /scenario: Invalid value (at line 2, column 9)")
    2
    """
    found = re.match(r"\w+ /[\w/]+:(\d+): ", error) or re.search(r"\(at line (\d+), column \d+\)$", error)
    return int(found[1]) if found else None


@stream_request_body  # so that its body may be larger than those of other requests
class ScenarioBaseHandler(OrderHandler):
    """The base of the handlers that are sent a scenario."""

    body = b""

    def prepare(self) -> None:
        super().prepare()
        length = self.request.headers.get("Content-Length", "0")
        if re.fullmatch("[0-9]{1,19}", length) and int(length) > MAX_UPLOAD:
            raise too_large()
        self.request.connection.set_max_body_size(MAX_UPLOAD)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        self.body = (self.body + chunk)[: MAX_SCENARIO + 1]

    def variables(self) -> tuple[ScenarioVariable, ...]:
        """Return the values of variables in the query. Raises APIError for what is none."""
        found: list[ScenarioVariable] = []
        for text in self.get_query_arguments(VARIABLES_PARAMETER.name):
            try:
                found += values.variables(text)
            except ValueError as error:
                name = f"{self.request.method} {self.request.path}"
                raise APIError(HTTPStatus.BAD_REQUEST, f"{name}: set: {error}") from None
        return tuple(found)

    def scenario(self) -> bytes:
        """Return the body. Raises APIError if it is too large."""
        if len(self.body) > MAX_SCENARIO:
            raise too_large()
        return self.body


class CheckScenarioHandler(ScenarioBaseHandler):
    """POST /scenario/check: whether the scenario in the body has mistakes. It is not put in force."""

    async def post(self) -> None:
        rules = await self.accepted(
            self.control.check("POST /scenario/check", self.scenario(), self.variables())
        )
        self.write_json({"rules": rules})


class ScenarioHandler(ScenarioBaseHandler):
    """/scenario: the scenario in force."""

    def get(self) -> None:
        accepted = self.request.headers.get("Accept", "")
        control = self.control
        if "toml" in accepted and "json" not in accepted:
            self.set_header("Content-Type", "application/toml")
            self.write(control.source())
        else:
            self.write_json(control.state() | {"text": control.source(), "choices": control.choices})

    head = get

    async def put(self) -> None:
        """Replace the scenario by the body; an empty body restores that of the configuration."""
        text, control = self.scenario(), self.control
        if text.strip():
            await self.publish(control.load("PUT /scenario", text, self.variables()))
        else:
            await self.publish(control.restore())

    async def post(self) -> None:
        """Switch to a scenario by its name."""
        name = self.json_object(self.body).get("name")
        if not isinstance(name, str):
            raise APIError(HTTPStatus.BAD_REQUEST, 'Expected {"name": NAME} in the body.')
        await self.publish(self.control.switch(name, self.variables()))

    async def delete(self) -> None:
        """Restore the scenario of the configuration."""
        await self.publish(self.control.restore())


def too_large() -> APIError:
    """Return the error for a scenario that is too large."""
    return APIError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A scenario can have at most {MAX_SCENARIO} octets."
    )


class NextRulesHandler(OrderHandler):
    """/next: the one-shot rules, which come before all others."""

    def get(self) -> None:
        self.write_json(self.control.one_shot_rules())

    async def post(self) -> None:
        block = self.json_object(self.request.body)
        count = block.pop("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_ONE_SHOT_COUNT:
            error = expected(f"a whole number from 1 to {MAX_ONE_SHOT_COUNT}", count)
            raise APIError(HTTPStatus.BAD_REQUEST, f"POST /next: count: {error}")
        await self.publish(self.control.add_one_shot_rule(count, block))

    async def delete(self) -> None:
        await self.publish(self.control.remove_one_shot_rules())
