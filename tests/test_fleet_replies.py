"""What the store of a fleet replies is input like any other: wrong types, huge replies, bad orders."""

from __future__ import annotations

import asyncio
import json
import resource
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import pytest

from blackhole import redis_url
from blackhole.fleet.machine import parse_machine
from blackhole.fleet.member import FleetMember
from blackhole.fleet.namespace_figures import NamespaceFigures
from blackhole.fleet.namespace_store import NamespaceStore, SharedNamespace
from blackhole.fleet.replies import FleetOrder, FleetRun, StoreError
from blackhole.fleet.runs import FleetRuns
from blackhole.fleet.store import ORDER_CHANNEL, FleetStore, Written
from blackhole.metrics.layout import ROW_CELLS
from blackhole.metrics.snapshot import Snapshot
from tests.http_api import Sink, ask
from tests.program import wait_for

HUGE = 1 << 28
"""Octets that a hostile store sends, if it is let."""


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def array(*replies: bytes) -> bytes:
    return b"*%d\r\n%s" % (len(replies), b"".join(replies))


def order(**changes: bytes) -> bytes:
    """Return the reply with an order that is valid but for `changes`."""
    fields = {"number": b"1", "name": b"x", "text": b"", "at": b"1", "rules": b"[]"} | changes
    return array(*(bulk(word) for name, value in fields.items() for word in (name.encode(), value)))


NORMAL: Mapping[bytes, bytes] = {
    b"EVALSHA": array(bulk(b"epoch"), *[b":1\r\n", b":0\r\n"] * 2, bulk(b"a"), *[b":0\r\n"] * 3),
    b"HGETALL": b"*0\r\n",
    b"ZRANGE": b"*0\r\n",
    b"TIME": array(bulk(b"1700000000"), bulk(b"0")),
    b"SUBSCRIBE": array(bulk(b"subscribe"), bulk(b"x"), b":1\r\n"),
}

WRONG = (
    *(b":5\r\n", b"$-1\r\n", b"*-1\r\n", b"+HELLO\r\n", bulk(b"hello"), b"*0\r\n", array(bulk(b"a"))),
    *(
        array(b":1\r\n", b":2\r\n"),
        array(array(b":1\r\n")),
        b"*1\r\n" * 50_000,
        b"\0\xff\xfe?\r\n",
        b"$a\r\n",
    ),
    *(b"*-5\r\n", b"$-7\r\n", b"-NOSCRIPT x\r\n", b"-MOVED 1 a:5\r\n", b"-ERR \x1b[31m\r\n", b"%1\r\n"),
    *(b"*200000000\r\n", b"$2000000000\r\n", b"+" + b"x" * (1 << 20), b":" + b"9" * 5000 + b"\r\n"),
    *(array(bulk(b"a"), bulk(b"nan")), array(bulk(b"9" * 400), bulk(b"inf"))),
    array(bulk(b"\xff"), b"$-1\r\n", bulk(b"9" * 30)),
    # In all, many times what a reply may have; each string of it is not too long.
    b"*100\r\n" + bulk(b"x" * (1 << 19)) * 100,
)
"""Replies that no method expects, or not all of them."""


class FakeStore(socketserver.ThreadingTCPServer):
    """A server that replies to each command as its table says, and then as NORMAL does."""

    daemon_threads = True
    replies: Mapping[bytes, bytes | Callable[[], bytes]] = {}


class Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            while line := self.rfile.readline():
                words = [self.rfile.read(int(self.rfile.readline()[1:]) + 2) for _ in range(int(line[1:]))]
                self.wfile.write(self.reply(words[0].strip().upper()))

    def reply(self, command: bytes) -> bytes:
        assert isinstance(self.server, FakeStore)
        if command in (b"CLIENT", b"SELECT"):
            return b"+OK\r\n"
        replies = self.server.replies
        found = replies.get(command, replies.get(b"*", NORMAL.get(command, b"-ERR unknown\r\n")))
        return found if isinstance(found, bytes) else found()


@contextmanager
def fake_store() -> Iterator[FakeStore]:
    with FakeStore(("127.0.0.1", 0), Conversation) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url(server: FakeStore) -> str:
    return f"redis://127.0.0.1:{server.server_address[1]}/0"


def figures() -> Snapshot:
    zeros = (0,) * ROW_CELLS
    return Snapshot(at=1.0, started=1.0, listeners=(), processes=(), rule_counters={}, cells=zeros)


RUN = FleetRun("x", 1, 0, {}, {})
NAMESPACE = SharedNamespace("a", "f00", 1, 1.0)


async def ask_everything(store: FleetStore) -> int:
    """Ask the store in every way, and return how often it was an error. Raises what is not a StoreError."""
    member = FleetMember(store, "one:1", figures, dict)

    async def announcement() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.follow(ORDER_CHANNEL, lambda: None)

    requests: tuple[Callable[[], Any], ...] = (
        *(member.view, member.machines, store.total, store.order, store.now, announcement),
        *(lambda: store.figures("one:1"), lambda: store.write("one:1", {}, "")),
        *(store.epoch, store.mark, store.runs, FleetRuns(member).all),
        *(lambda: store.start_run(RUN, ""), lambda: store.stop_run(RUN), lambda: store.restore_run(RUN)),
    )
    namespaces = NamespaceStore(store)
    requests += (
        *(namespaces.index, namespaces.unused, lambda: namespaces.touch([(NAMESPACE, 1.0)])),
        *(lambda: namespaces.publish("a", FleetOrder(), True), lambda: namespaces.remove("a")),
        *(lambda: namespaces.order(NAMESPACE), NamespaceFigures(member, NAMESPACE).view),
    )
    errors = 0
    for request in requests:
        try:
            await request()
        except StoreError as error:
            errors += 1
            assert len(str(error)) < 300
    member._copies.note(Written("epoch", 1, 0, runs=1))
    await member._copies.update()
    await store.close()
    return errors


@pytest.mark.parametrize("reply", WRONG, ids=lambda reply: repr(reply[:24]))
def test_a_reply_of_another_type_or_size_is_an_error_of_the_store(reply: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fake_store() as server:
        server.replies = {b"*": reply}
        assert asyncio.run(ask_everything(FleetStore(redis_url.fleet(url(server)), "f"))) >= 3
    # In KiB: the replies that are in the socket, and what one reply may have.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


RULE = '{"phase": "RCPT", "reply": "450 x"}'


@pytest.mark.parametrize(
    "changes",
    [
        *({"number": text} for text in (b"-1", b"x", b"9" * 30, b"1.5")),
        *({"at": text} for text in (b"nan", b"inf", b"-inf", b"x")),
        {"name": b"x" * 5000},
        {"text": b"x" * (1 << 17)},
        {"name": b"\xff"},
        *({"rules": text} for text in (b"5", b"{}x", b"[" * 20_000, b'["abc"]', b'[["a", true, {}]]')),
        {"rules": f'[["a", 1, {RULE}], ["a", 1, {RULE}]]'.encode()},
        {"rules": f'[["\\ud800", 1, {RULE}]]'.encode()},
        {"rules": f'[["{"a" * 1000}", 1, {RULE}]]'.encode()},
    ],
    ids=lambda changes: repr(changes)[:40],
)
def test_an_order_that_is_none_is_an_error_of_the_store(changes: Mapping[str, bytes]) -> None:
    async def read() -> None:
        store = FleetStore(redis_url.fleet(url(server)), "f")
        try:
            await store.order()
        finally:
            await store.close()

    with fake_store() as server:
        server.replies = {b"HGETALL": order()}
        asyncio.run(read())
        server.replies = {b"HGETALL": order(**changes)}
        with pytest.raises(StoreError, match="the order in the store is none"):
            asyncio.run(read())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e300", "1e20", '"1"', "null"])
def test_a_machine_with_a_number_that_no_json_or_counter_can_hold_is_left_out(number: str) -> None:
    """Such a number made the figures of the fleet JSON that no browser reads."""
    known = {"name": "a", "version": "1", "scenario": "", "up": 1, "messages": 1, "rate": 1, "open": 0}
    known |= {"load": 0, "workers": 1, "order": 0}
    assert parse_machine("x:1", 0, json.dumps(known).encode())
    for field in ("up", "messages", "rate", "open", "load", "workers", "order"):
        text = json.dumps(known | {field: "?"}).replace('"?"', number)
        assert parse_machine("x:1", 0, text.encode()) is None, field


def test_a_hostile_store_gets_a_line_a_minute_and_stops_neither_mail_nor_dashboard() -> None:
    numbers = count(1)
    rule = f'[["a", 1, {RULE.replace("RCPT", "NOPE")}]]'.encode()
    with fake_store() as server, Sink(f"--fleet={url(server)}", "--fleet-control") as sink:
        sink.dashboard()
        # Each write tells of another order, and each of them cannot be obeyed.
        server.replies = {
            b"EVALSHA": lambda: array(
                *(bulk(b"epoch"), b":1\r\n", b":%d\r\n" % next(numbers), *[b":0\r\n"] * 2),
                *(bulk(b"a"), *[b":0\r\n"] * 3),
            ),
            b"HGETALL": lambda: order(number=b"%d" % next(numbers), rules=rule),
        }
        wait_for(lambda: "an order cannot be obeyed" in sink.output(), "it is said")
        server.replies = server.replies | {b"HGETALL": lambda: order(number=b"x")}
        for reply in (b":5\r\n", b"$a\r\n", b"*1\r\n" * 50_000, b"$2000000000\r\n"):
            server.replies = server.replies | {b"TIME": reply, b"SUBSCRIBE": reply}
            assert ask(sink.http, "/stats.json?scope=fleet").status == 503
            assert ask(sink.http, "/fleet").status == 503
        before = next(numbers)
        wait_for(lambda: next(numbers) > before + 4, "the machine goes on writing")
        assert ask(sink.http, "/stats.json").status == 200
        assert sink.output().count("an order cannot be obeyed") == 1
        assert "Traceback" not in sink.output()
