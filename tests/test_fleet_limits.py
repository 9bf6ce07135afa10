"""Limits by client over the machines of a fleet, and how often their store did not answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from blackhole.net.client_table import CONNECTIONS, MESSAGES
from blackhole.net.fleet_usage import AMOUNTS, FleetUsage
from blackhole.rules.attempt_store import HeldSlot, PendingAnswer
from tests.http_api import Sink, ask, figures
from tests.program import wait_for
from tests.redis_server import RedisServer
from tests.smtp_client import SMTPClient


@contextmanager
def two_machines(redis: RedisServer, *options: str) -> Iterator[tuple[Sink, Sink]]:
    """Two machines of a fleet, whose store has five seconds to answer, because this machine may be busy."""
    fleet = f"--fleet={redis.url()}"
    with (
        Sink(fleet, "--trusted=", "--workers=1", *options) as one,
        Sink(fleet, "--trusted=", "--workers=1", *options) as two,
    ):
        for sink in one, two:
            sink.dashboard()
        wait_for(lambda: redis.ask("CLIENT", "LIST").count("cmd=eval ") == 2, "both workers have connected")
        yield one, two


def greetings(sinks: Sequence[Sink], stack: ExitStack) -> list[str]:
    """Connect to each of these machines, and return the codes of the greetings."""
    return [stack.enter_context(SMTPClient(("127.0.0.1", sink.port))).greeting[:3] for sink in sinks]


def send(client: SMTPClient, number: int) -> list[str]:
    """Send messages, and return the replies to DATA."""
    codes = []
    for _ in range(number):
        client.command_code("MAIL FROM:<ann@a>")
        client.command_code("RCPT TO:<bob@b>")
        codes.append(client.command_code("DATA"))
        if codes[-1] == "354":
            client.command_code("Hi\r\n.")
    return codes


def test_machines_count_the_open_connections_of_a_client_together(redis: RedisServer) -> None:
    with two_machines(redis, "--client_connections=3") as (one, two), ExitStack() as last:
        with ExitStack() as stack:
            assert greetings([one, two, one, two, one], stack) == ["220"] * 3 + ["421"] * 2
            wait_for(lambda: figures(two.http)["limits_met"]["client_connections"] == 1, "it is counted")
        wait_for(lambda: greetings([two], last) == ["220"], "they are free again")
        keys = redis.names()
        assert len([key for key in keys if ":slots:" in key or ":client:" in key]) == 2
        assert not any("127.0.0" in key for key in keys), "keys carry no address"


def test_machines_count_new_connections_and_messages_of_a_client_together(redis: RedisServer) -> None:
    limits = ("--client_connection_rate=6", "--client_message_rate=50")
    with two_machines(redis, *limits) as (one, two), ExitStack() as stack:
        wait_for(lambda: redis.ask("TIME")[0] % 60 < 45, "the minute does not end within the test")
        a, b = (stack.enter_context(SMTPClient(("127.0.0.1", sink.port))) for sink in (one, two))

        def known() -> list[int]:
            """Return the connections and messages of this minute, as the store knows them."""
            return [int(word) for word in redis.ask("GET", *redis.names("*:client:*")).split()[1:3]]

        assert send(a, 49) == ["354"] * 49
        wait_for(lambda: known() == [2, 49], "the store has them")
        replies = [send(b, 1)]
        while replies[-1] != ["450"]:
            time.sleep(0.05)  # it learns of them within a second
            replies += [send(b, 1)]
        assert len(replies) < 50, "this machine alone has not received as many"
        assert Counter(greetings([one, two] * 3, stack)) == {"220": 4, "421": 2}


def test_without_its_store_a_machine_has_its_own_limits_and_counts_the_questions(
    own_redis: RedisServer,
) -> None:
    with two_machines(own_redis, "--client_connections=2") as (one, two), ExitStack() as stack:
        own_redis.kill()
        assert greetings([one, one, one, two, two, two], stack) == ["220", "220", "421"] * 2

        def unanswered() -> int:
            return int(figures(one.http)["store"]["unanswered"])

        wait_for(lambda: unanswered() >= 6, "each question is counted")
        assert figures(one.http)["store"]["openings"] == 1
        assert "Shared store:" in ask(one.http, "/report?format=text").body.decode()
        assert "blackhole_store_unanswered_total" in ask(one.http, "/metrics").body.decode()


class OtherMachines:
    """A store that answers at once, and in which other machines count too."""

    def __init__(self) -> None:
        self.sums = [0] * AMOUNTS
        self.sent: list[list[int]] = []
        self.answers = True

    def use(
        self, key: bytes, amounts: Sequence[int], on_answer: Callable[[tuple[int, ...] | None], None]
    ) -> PendingAnswer | None:
        self.sent.append([*amounts])
        if self.answers:
            self.sums = [known + amount for known, amount in zip(self.sums, amounts, strict=True)]
            on_answer((*self.sums, 30_000))
        return None

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        return None

    def release(self, slot: HeldSlot) -> None:
        raise AssertionError("no slot was acquired")


@pytest.mark.pure
def test_a_client_is_asked_about_with_its_first_command_after_a_pause_and_then_once_a_second() -> None:
    store, now = OtherMachines(), [0.0]
    usage = FleetUsage(store, "sinks", 0, lambda: now[0])
    connection = usage.enter(b"client")
    client = connection.client
    assert (client.sum(CONNECTIONS), client.sum(MESSAGES)) == (1, 0)
    usage.sweep()
    store.sums[MESSAGES - CONNECTIONS] += 7
    assert client.count(MESSAGES, 1) == 1, "the store had told of none"
    assert [client.count(MESSAGES, 1) for _ in range(3)] == [9, 10, 11]
    assert len(store.sent) == 2, "the new connection, and the first message"
    usage.sweep()
    assert store.sent[-1][MESSAGES - CONNECTIONS] == 3
    now[0] = 31
    assert client.count(MESSAGES, 1) == 1, "another minute"


@pytest.mark.pure
def test_what_a_store_did_not_take_is_not_sent_again_and_clients_are_forgotten() -> None:
    store = OtherMachines()
    usage = FleetUsage(store, "sinks", 0, lambda: 0.0)
    store.answers = False
    for number in range(1000):
        usage.enter(b"%d" % number).leave()
    for _ in range(2):
        usage.sweep()
    assert len(store.sent) == 1000
    assert usage._clients == {}
