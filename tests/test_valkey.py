"""What a fleet asks of its store, with Valkey in place of Redis; with Redis where there is no Valkey."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

import pytest

from tests.http_api import Sink, ask, figures, post
from tests.program import scenario_option, wait_for
from tests.redis_server import RedisServer, find_valkey

RULES = """
[[rule]]
phase = "RCPT"
recipient = "third@*"
attempt = "< 3"
reply = "450 4.2.1 Later"
"""
FULL = '[[rule]]\nphase = "RCPT"\nreply = "452 4.2.2 Mailbox full"\n'
KEY = "blackhole:{blackhole}:"


class Fleet(NamedTuple):
    """Two machines, and the server that they share."""

    store: RedisServer
    machines: tuple[Sink, Sink]

    def rcpt(self, recipient: str, times: int) -> list[int]:
        """Return the codes of the replies to RCPT, of one machine after the other."""
        codes = []
        for sink, _ in zip(cycle(self.machines), range(times), strict=False):
            with smtplib.SMTP("127.0.0.1", sink.port, timeout=30) as client:
                client.ehlo()
                client.mail("ann@example.com")
                codes.append(client.rcpt(recipient)[0])
        return codes


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    scenario = scenario_option(tmp_path_factory.mktemp("scenario"), RULES)
    with RedisServer(program=find_valkey()) as store:
        options = f"--fleet={store.url()}", "--fleet_control", "--workers=1", scenario
        with Sink(*options) as one, Sink(*options) as two:
            for sink in one, two:
                sink.dashboard()
            wait_for(lambda: figures(one.http, "?scope=fleet").get("machines", [])[1:], "both have joined")
            yield Fleet(store, (one, two))


def test_it_is_valkey_if_there_is_one(fleet: Fleet) -> None:
    is_valkey = fleet.store.ask("INFO", "server").get("server_name") == "valkey"
    assert is_valkey == (find_valkey() is not None)


def test_attempts_are_counted_on_all_machines_also_when_the_server_has_lost_its_scripts(fleet: Fleet) -> None:
    assert fleet.rcpt("third@one.test", 4) == [450, 450, 250, 250]
    fleet.store.ask("SCRIPT", "FLUSH")
    assert fleet.rcpt("third@two.test", 4) == [450, 450, 250, 250]


def test_a_retry_at_another_machine_is_seen(fleet: Fleet) -> None:
    def returned() -> int:
        found = [figures(sink.http)["retries"]["deferred"]["returned"] for sink in fleet.machines]
        return sum(found)

    assert fleet.rcpt("third@three.test", 1) == [450]
    wait_for(lambda: fleet.store.ask("XLEN", f"{KEY}outcomes"), "it is told")
    wait_for(lambda: fleet.rcpt("third@three.test", 2) and returned(), "it is seen")


def test_counters_are_added_up(fleet: Fleet) -> None:
    for sink in fleet.machines:
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=30) as client:
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: x\r\n\r\nx\r\n")
    answer = ask(fleet.machines[0].http, "/wait?scope=fleet&messages=2&timeout=30")
    assert answer.status == 200
    assert post(fleet.machines[1].http, "/runs?scope=fleet", {"name": "smoke"}).status in (200, 201)


def test_orders_are_announced_and_obeyed_by_all(fleet: Fleet) -> None:
    one, two = fleet.machines
    assert fleet.store.ask("PUBSUB", "NUMSUB", f"{KEY}orders", f"{KEY}outcomes") == [
        *(f"{KEY}orders", 2, f"{KEY}outcomes", 2)
    ]
    assert ask(one.http, "/scenario", "PUT", FULL).status == 200
    assert fleet.rcpt("bob@example.com", 2) == [452, 452]
    once = {"phase": "RCPT", "reply": "450 4.2.0 Once"}
    assert post(two.http, "/next", {"count": 3, **once}).status == 200
    assert fleet.rcpt("bob@example.com", 4) == [450, 450, 450, 452]
    assert ask(two.http, "/scenario", "DELETE").status == 200
    assert fleet.rcpt("bob@example.com", 2) == [250, 250]
