"""The page of a machine in a fleet, in a real browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from blackhole import redis_url
from blackhole.fleet.store import FleetStore
from tests.external_programs import requires
from tests.http_api import Sink, ask, post, send
from tests.program import wait_for
from tests.redis_server import RedisServer
from tests.test_page import CONTRAST, LABELS, PHONE, WIDE, Browser, browser, chromium

__all__ = ["browser", "chromium"]

pytestmark = requires("chromium", "chromedriver")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def write_once(redis: RedisServer, name: str, age: float) -> None:
    """Write as a machine that then writes no more."""
    facts = {
        "name": name,
        "version": "1.0",
        "scenario": "/etc/friday.toml",
        "up": 1,
        "messages": 4,
        "rate": 0,
    }
    store = FleetStore(redis_url.fleet(f"redis://127.0.0.1:{redis.port}/0"), "mail")
    summary = json.dumps(facts | {"open": 3, "load": 0.25, "workers": 1, "order": 0})
    await store.write(f"{name}:1", {"reply . 250": 4}, summary, age)
    await store.close()


FLEET = "document.querySelector('#scope [value=fleet]').click()"
MACHINE = "document.querySelector('#scope [value=machine]').click()"
CLOSED = "return getComputedStyle(document.getElementById(arguments[0])).display === 'none'"


def test_the_page_shows_a_fleet_with_its_machines_as_rows(browser: Browser, redis: RedisServer) -> None:
    options = f"--fleet=redis://127.0.0.1:{redis.port}/0", "--fleet_name=mail"
    with Sink(*options, "--hostname=one.test") as one, Sink(*options, "--hostname=two.test") as two:
        for sink in one, two:
            sink.dashboard()
        asyncio.run(write_once(redis, "gone.test", 300))
        send(one.port, 2)
        send(two.port, 3)
        browser.open(one)
        wait_for(lambda: browser.number("messages") == 2, "this machine is shown")
        assert browser.run(CLOSED, "machines-section")
        browser.run(FLEET)
        wait_for(lambda: browser.number("messages") == 9, "all machines are")
        rows = {row[0]: row[1:] for row in browser.table("machines")}
        assert [*rows] == ["gone.test", "one.test", "two.test"]
        age, rate, open_connections, load, count, version, scenario = rows["gone.test"]
        assert age.startswith("gone, 5 min")
        assert (rate, open_connections, load, count) == ("0/s", "3", "25 %", "4")
        assert (version, scenario) == ("1.0", "friday.toml")
        assert rows["two.test"][4] == "3"
        for section in "charts", "workers", "scenario-current", "one-shot-form":
            assert browser.run("return !document.getElementById(arguments[0]).checkVisibility()", section)
        browser.run("document.getElementById('run-name').value = 'all'")
        browser.run("document.querySelector('#run-form button').click()")
        wait_for(lambda: "all" in str(browser.table("runs")), "a run of the fleet began")
        send(two.port, 6)
        wait_for(lambda: browser.table("runs")[0][2] == "6", "it counts on all machines")
        browser.run("document.querySelector('#runs button').click()")
        path = "/runs/all?scope=fleet"
        wait_for(lambda: ask(two.http, path).json["running"] is False, "it was stopped")
        assert ask(one.http, "/runs").json == []

        for size, dark in ((WIDE, False), (PHONE, True), ((320, 640), False)):
            browser.open(one, size, dark)
            browser.run(FLEET)
            browser.driver.refresh()  # the address has the scope
            wait_for(lambda: browser.number("messages") == 15, "the fleet is shown at once")
            assert browser.run("return document.documentElement.scrollWidth") <= size[0]
            assert browser.run(LABELS) == []
            assert browser.run(CONTRAST) == []
        redis.kill()
        wait_for(lambda: "The store of the fleet does not answer." in browser.text("fleet-message"), "told")
        assert browser.number("messages") == 15
        wait_for(lambda: "s old." in browser.text("fleet-message"), "with the age of what is shown")
        browser.run(MACHINE)
        wait_for(lambda: browser.number("messages") == 2, "this machine is shown again")
        browser.console_messages()  # the browser logs the status 503
        browser.driver.get("about:blank")


def test_the_page_of_a_machine_without_a_fleet_has_no_scope(browser: Browser) -> None:
    with Sink() as sink:
        sink.dashboard()
        post(sink.http, "/runs", {"name": "x"})
        browser.open(sink)
        assert browser.is_hidden("scope")
        assert browser.run(CLOSED, "machines-section")
