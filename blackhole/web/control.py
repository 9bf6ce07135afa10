"""Control: the pages by which a test tells the server how to behave, and what they may order.

The dashboard checks what it is told to the end before it orders anything, so workers find no
mistake in it; and it answers when all of them have said that they obey, so a test can go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from random import Random
from typing import Any, Final

from tornado.web import stream_request_body

from blackhole.metrics.counters import Counters, clipped
from blackhole.metrics.layout import MAX_RULE_NAMES
from blackhole.net import tls
from blackhole.rules import scenario
from blackhole.rules.model import Rule
from blackhole.rules.scenario import Scenario, ScenarioSource
from blackhole.rules.scenario_file import parse_rule, parse_rules
from blackhole.settings import OperatorError, Settings
from blackhole.smtp.session import SMTPEngine
from blackhole.smtp.state import ListenerConfig
from blackhole.store.control import MAX_ONE_SHOT_RULES, ControlChannel, OneShotRule, RuntimeOrder
from blackhole.web.pages import APIError, BaseHandler

log = logging.getLogger(__name__)

TEXT: Final = 1 << 16
"""Octets of a scenario."""

FAR: Final = 1 << 20
"""Octets of one that are read, to say that it is too long."""

PATIENCE: Final = 5.0
"""Seconds that workers are waited for."""

LOOK: Final = 0.005
"""Seconds between two looks at them."""

TIMES: Final = 1_000_000
"""That a rule can be told to speak."""

LOADED: Final = "loaded"
"""The name of all that --scenario gave."""


def tried(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """These rules, sorted for a client as workers sort them: what fails at that fails here, and not there."""
    found = tuple(rules)
    SMTPEngine(ListenerConfig(rules=found), Random()).evaluator("127.0.0.1", False)
    return found


class Control:
    """What may be ordered, and what is in force."""

    def __init__(self, settings: Settings, loaded: Scenario, orders: ControlChannel, stats: Counters) -> None:
        profiles = [f"{scenario.PROFILE_PREFIX}{name}" for name in scenario.profiles()]
        self._settings, self._loaded, self._orders, self._stats = settings, loaded, orders, stats
        self._sources: Final = {
            source.name: source for source in (*map(scenario.read_source, profiles), *loaded.sources)
        }
        files = ", ".join(os.path.basename(source.name) for source in loaded.sources)
        self.choices: Final = [
            {"name": LOADED, "about": files, "rules": len(loaded.rules)},
            *(
                {
                    "name": source.name,
                    "about": scenario.about(source),
                    "rules": len(scenario.parse_sources([source])),
                }
                for source in self._sources.values()
            ),
        ]
        """The scenarios that there are to switch to."""
        self._counted: tuple[int, int, list[str]] = 0, 0, []
        """The number of the last order whose rules were counted, how many they were, and their names."""

    # Orders: each gives its number. Raises OperatorError for what cannot be.

    def load(self, source: ScenarioSource) -> int:
        """Put this scenario in the place of the one in force."""
        rules = tried(parse_rules(source.text, source.name))

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            return replace(
                self._showing(before, rules),
                name=source.name,
                text=source.text,
                at=time.time(),
                began=time.monotonic(),
            )

        return self._orders.publish(change)

    def switch(self, name: str) -> int:
        """Go over to one of the choices. A file is known by its path, or by its name alone."""
        if name == LOADED:
            return self.restore()
        for source in self._sources.values():
            if name in (source.name, os.path.basename(source.name)):
                return self.load(source)
        raise OperatorError(f"{name!r}: no such scenario; there are {', '.join((LOADED, *self._sources))}")

    def restore(self) -> int:
        """Go back to what was loaded."""
        return self._orders.publish(
            lambda before, number: replace(before, name="", text="", at=time.time(), began=0.0)
        )

    def expect(self, count: int, block: Mapping[str, Any]) -> int:
        """Have a rule speak the next so many times, behind those that wait for that already."""
        rules = tried([parse_rule(block, "POST /next")])

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            waiting = self._waiting(before)
            free = set(range(MAX_ONE_SHOT_RULES)) - {one.place for one in waiting}
            if not free:
                raise OperatorError(
                    f"POST /next: {MAX_ONE_SHOT_RULES} rules wait already; DELETE /next forgets them"
                )
            one = OneShotRule(number, min(free), count, block)
            self._orders.set_budget(one, count)
            return replace(self._showing(before, rules), one_shot_rules=(*waiting, one))

        return self._orders.publish(change)

    def forget(self) -> int:
        """Have no rule speak any more that was to come next."""

        def change(before: RuntimeOrder, number: int) -> RuntimeOrder:
            for one in before.one_shot_rules:
                self._orders.set_budget(one, 0)
            return replace(before, one_shot_rules=())

        return self._orders.publish(change)

    def _showing(self, order: RuntimeOrder, rules: Iterable[Rule]) -> RuntimeOrder:
        """The order with the certificates that further rules have clients shown.

        Those that were made for what was loaded may be gone after a reload.
        """
        wanted = scenario.certificate_names(rules) - set(order.certificates)
        made = {name: tls.faulty(name, self._settings).decode() for name in wanted}
        return replace(order, certificates={**order.certificates, **made})

    def _waiting(self, order: RuntimeOrder) -> tuple[OneShotRule, ...]:
        return tuple(filter(self._orders.remaining, order.one_shot_rules))

    # What is in force.

    def followed(self, number: int) -> bool:
        """Whether all workers follow this order, or a later one. One that does not live yet will."""
        least = self._stats.applied_order()
        return least is None or least >= number

    def source(self) -> str:
        """The text of the scenario in force."""
        _, order = self._orders.read()
        sources = self._loaded.sources
        if order.name or len(sources) == 1:
            return order.text if order.name else sources[0].text
        return "\n".join(f"# {source.name}\n{source.text}" for source in sources)

    def coming(self) -> list[dict[str, Any]]:
        """What is left of the rules that speak next."""
        _, order = self._orders.read()
        return [
            {"count": one.times, "left": self._orders.remaining(one), **one.rule}
            for one in self._waiting(order)
        ]

    def state(self) -> dict[str, Any]:
        """In short."""
        number, order = self._orders.read()
        if self._counted[0] != number:
            rules = parse_rules(order.text, order.name) if order.name else self._loaded.rules
            names = dict.fromkeys(clipped(rule.name) for rule in rules)
            self._counted = number, len(rules), [*names][:MAX_RULE_NAMES]
        return {
            "name": order.name or LOADED,
            "ordered": bool(order.name),
            "rules": self._counted[1],
            "names": self._counted[2],
            "since": order.at if order.name else max(order.at, self._loaded.loaded_at),
            "next": self.coming(),
        }


def large() -> APIError:
    """Why a scenario is not taken."""
    return APIError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A scenario may have {TEXT} octets.")


class OrderHandler(BaseHandler):
    """A page by which orders are given."""

    async def order(self, give: Callable[[], int]) -> None:
        """Give an order, and answer once it is obeyed."""
        control = self.dashboard.control
        try:
            number = give()
        except OperatorError as error:
            raise APIError(HTTPStatus.BAD_REQUEST, str(error)) from None
        state = control.state()
        log.info(
            "order %d over HTTP: scenario %s, rules %d, to speak next %d",
            *(number, state["name"], state["rules"], len(state["next"])),
        )
        until = time.monotonic() + PATIENCE
        while not control.followed(number):
            if time.monotonic() >= until or self.gone:
                raise APIError(
                    HTTPStatus.GATEWAY_TIMEOUT,
                    f"It is in force, but some worker has not heard it in {PATIENCE:g} s.",
                )
            await asyncio.sleep(LOOK)
        self.say(control.state())


@stream_request_body  # so that it may be larger than what other pages are told
class ScenarioHandler(OrderHandler):
    """/scenario: the one in force."""

    body = b""

    def prepare(self) -> None:
        super().prepare()
        length = self.request.headers.get("Content-Length", "0")
        if length.isdigit() and int(length) > FAR:
            raise large()
        self.request.connection.set_max_body_size(FAR)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:
        self.body = (self.body + chunk)[: TEXT + 1]

    def get(self) -> None:
        accepted = self.request.headers.get("Accept", "")
        control = self.dashboard.control
        if "toml" in accepted and "json" not in accepted:
            self.set_header("Content-Type", "application/toml")
            self.write(control.source())
        else:
            self.say(control.state() | {"text": control.source(), "choices": control.choices})

    head = get

    async def put(self) -> None:
        """A text, in the place of what is in force; an empty one for what was loaded."""
        if len(self.body) > TEXT:
            raise large()
        control = self.dashboard.control
        if self.body.strip():
            name = "PUT /scenario"
            await self.order(lambda: control.load(ScenarioSource(name, scenario.decoded(self.body, name))))
        else:
            await self.order(control.restore)

    async def post(self) -> None:
        """One that was loaded, by its name."""
        name = self.told(self.body).get("name")
        if not isinstance(name, str):
            raise APIError(HTTPStatus.BAD_REQUEST, 'The body is to be {"name": NAME}.')
        await self.order(lambda: self.dashboard.control.switch(name))

    async def delete(self) -> None:
        """What was loaded."""
        await self.order(self.dashboard.control.restore)


class NextRulesHandler(OrderHandler):
    """/next: rules that speak so many times, ahead of all others."""

    def get(self) -> None:
        self.say(self.dashboard.control.coming())

    async def post(self) -> None:
        block = self.told(self.request.body)
        count = block.pop("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= TIMES:
            raise APIError(
                HTTPStatus.BAD_REQUEST, f"POST /next: count: expected a whole number from 1 to {TIMES}"
            )
        await self.order(lambda: self.dashboard.control.expect(count, block))

    async def delete(self) -> None:
        await self.order(self.dashboard.control.forget)
