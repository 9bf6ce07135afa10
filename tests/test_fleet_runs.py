"""Measurements over a fleet, and its end after a number of messages, with a real Redis server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import smtplib
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from blackhole import redis_url
from blackhole.fleet.store import FleetStore
from tests.http_api import Sink, ask, post, send
from tests.program import SCRIPT, run, wait_for
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def machine(stack: ExitStack, redis: RedisServer, name: str, *options: str) -> Sink:
    """Start a machine of the fleet `name`."""
    url = f"--fleet=redis://127.0.0.1:{redis.port}/0"
    sink = stack.enter_context(Sink(url, f"--fleet_name={name}", *options))
    sink.dashboard()
    return sink


def fleet(sink: Sink) -> Any:
    """Return the figures of the fleet, or None while there are none."""
    answer = ask(sink.http, "/stats.json?scope=fleet")
    return answer.json if answer.status == 200 else None


def has_machines(sink: Sink, number: int) -> bool:
    found = fleet(sink)
    return bool(found) and sum(one["alive"] for one in found["machines"]) == number


def start_run(sink: Sink, name: str) -> Any:
    answer = post(sink.http, "/runs?scope=fleet", {"name": name})
    assert answer.status == 201, answer.body
    return answer.json


def stop_run(sink: Sink, name: str) -> Any:
    answer = post(sink.http, f"/runs/{name}/stop?scope=fleet")
    assert answer.status == 200, answer.body
    return answer.json


def test_a_run_counts_exactly_what_came_between_its_ends_on_all_machines(stack: ExitStack) -> None:
    """Also when a machine ends in between, and when the store loses everything."""
    store = stack.enter_context(RedisServer())
    one, two = (machine(stack, store, "runs") for _ in range(2))
    wait_for(lambda: has_machines(one, 2), "both have written")
    send(two.port, 3)  # has not been written when the run begins
    begun = start_run(one, "short")
    assert (begun["total"], begun["running"], begun["late"]) == (0, True, [])
    send(one.port, 4)
    send(two.port, 5)  # nor has this when it ends, on another machine
    ended = stop_run(two, "short")
    assert (ended["total"], ended["running"], ended["late"]) == (9, False, [])
    assert ended["messages"] == {"accepted": 9, "deferred": 0, "rejected": 0}
    assert (ended["recipients"], len(ended["machines"])) == (18, 2)
    send(one.port, 1)
    start_run(two, "long")
    later = dict.fromkeys(("machines", "workers", "connections"), ANY)
    assert stop_run(one, "short") == ask(two.http, "/runs/short?scope=fleet").json | later
    assert [run["total"] for run in ask(two.http, "/runs?scope=fleet").json] == [9, 0]
    assert [run["name"] for run in fleet(one)["runs"]] == ["short", "long"]
    assert ask(one.http, "/runs").json == [], "a machine has runs of its own"
    report = ask(one.http, "/runs/short/report?scope=fleet").body.decode()
    assert report.startswith("9 messages (9 accepted, 0 deferred, 0 rejected), 18 recipients\n")
    assert post(one.http, "/runs?scope=fleet", {"name": "short"}).status == 409
    assert post(one.http, "/runs/no-run/stop?scope=fleet").status == 404
    assert ask(one.http, "/wait?scope=fleet&run=short").status == 409

    send(one.port, 6)
    assert one.stop() == 0
    during = ask(two.http, "/wait?scope=fleet&run=long&messages=6&timeout=20")
    assert (during.status, during.json["messages"]) == (200, 6)
    # The figures of the first, and the run, are copied with the next write after its end.
    before = fleet(two)["seconds"]
    wait_for(lambda: fleet(two)["seconds"] > before + 2.5, "two more writes")
    store.kill()
    wait_for(lambda: fleet(two) is None, "it is noticed")
    assert post(two.http, "/runs?scope=fleet", {"name": "x"}).status == 503
    send(two.port, 7)
    store.start()
    wait_for(lambda: ask(two.http, "/runs/long?scope=fleet").status == 200, "it is written again")
    ended = stop_run(two, "long")
    assert (ended["total"], ended["late"]) == (13, [])
    assert fleet(two)["messages"]["accepted"] == 26


def test_without_a_fleet_there_are_no_runs_of_one(stack: ExitStack) -> None:
    sink = stack.enter_context(Sink())
    sink.dashboard()
    for path in "/runs", "/runs/x", "/runs/x/report":
        assert ask(sink.http, f"{path}?scope=fleet").status == 404
    assert post(sink.http, "/runs?scope=fleet", {"name": "x"}).status == 404


def send_until_refused(port: int, most: int) -> int:
    """Send messages until the server ends, at most so many, and return how many were accepted."""
    accepted = 0
    with suppress(OSError, smtplib.SMTPException), smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        for _ in range(most):
            client.sendmail("a@example.com", ["b@example.com"], "x\r\n")
            accepted += 1
    return accepted


def test_stop_after_counts_the_messages_of_all_machines(stack: ExitStack, redis: RedisServer) -> None:
    """Also across a reload: the next dashboard does not add the other machines once more."""
    one, two = (machine(stack, redis, "stop", "--stop_after=20") for _ in range(2))
    other = machine(stack, redis, "stop")
    wait_for(lambda: has_machines(one, 3), "all have written")
    send(two.port, 8)
    wait_for(lambda: fleet(one)["messages"]["accepted"] == 8, "it is written")
    before = one.dashboard()
    os.kill(one.pid, signal.SIGHUP)
    wait_for(lambda: one.dashboards() not in ([before], []) and one.dashboard() != before, "reloaded", 40)
    wait_for(lambda: has_machines(one, 3), "the next dashboard writes, and none has left")
    send(one.port, 11)
    wait_for(lambda: fleet(two)["messages"]["accepted"] == 19, "it is written")
    assert (one.process.poll(), two.process.poll()) == (None, None)
    assert send_until_refused(one.port, 1) == 1
    for sink in one, two:
        assert sink.process.wait(30) == 0
    assert other.process.poll() is None, "a machine without the option goes on"
    assert "blackhole: 12 messages (12 accepted" in one.output()
    assert "blackhole: 8 messages (8 accepted" in two.output()
    totals = [re.findall(r"fleet stop: (\d+) messages", sink.output()) for sink in (one, two)]
    assert totals == [["20"], ["20"]], "each tells of all"


def test_what_is_told_of_machines_says_how_old_it_is_and_what_it_cannot_know(
    stack: ExitStack, redis: RedisServer, tmp_path: Path
) -> None:
    pid = f"--pid={tmp_path}/pid"
    one = machine(stack, redis, "told", pid, "--hostname=one.test")
    wait_for(lambda: has_machines(one, 1), "it has written")
    asyncio.run(write_once(redis, "two.test"))
    assert start_run(one, "incomplete")["late"] == ["two.test"]
    redis.ask("ZADD", "blackhole:{told}:seen", time.time() - 75, "two.test:1")
    assert stop_run(one, "incomplete")["late"] == ["two.test"]
    wait_for(lambda: has_machines(one, 1), "it is gone")
    report = run("report", pid, "--scope=fleet").stdout
    assert "Counted by 1 machine alive now, and by all that were in the fleet before.\n" in report
    assert re.search(r"^two\.test: gone, its last figures are 1 min \d+ s old\.$", report, re.MULTILINE)
    assert "Evidence and clients are kept by each machine: ask it with --scope machine.\n" in report
    assert "Evidence and clients" not in run("report", pid).stdout
    assert "Evidence and clients" in run("report", pid, "--scope=fleet", "--format=junit").stdout
    assert json.loads(run("report", pid, "--scope=fleet", "--json").stdout)["notes"]
    status = run("status", pid, "--scope=fleet").stdout
    assert re.search(r"^two\.test: gone since 1 min \d+ s, version 1, ", status, re.MULTILINE)
    metrics = ask(one.http, "/metrics?scope=fleet").body.decode()
    assert re.search(
        r'^blackhole_fleet_machine_age_seconds\{machine="two\.test"\} \d\d\.', metrics, re.MULTILINE
    )
    top = run("top", pid, "--scope=fleet", command=("sh", "-c", '"$@" | head -1', "sh", *SCRIPT))
    assert re.search(r"messages/s .* \| 1 machine: one\.test 0/s$", top.stdout, re.MULTILINE)


async def write_once(redis: RedisServer, name: str) -> None:
    """Write as a machine of the fleet "told" that then writes no more."""
    facts = {"name": name, "version": "1", "scenario": "loaded", "up": 1, "messages": 0, "rate": 0, "open": 0}
    store = FleetStore(redis_url.fleet(f"redis://127.0.0.1:{redis.port}/0"), "told")
    await store.write(f"{name}:1", {}, json.dumps(facts | {"load": 0, "workers": 1, "order": 0}))
    await store.close()
