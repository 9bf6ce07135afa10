"""Several machines that are one sink, with a real Redis server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blackhole import options, redis_url
from blackhole.fleet.machine import parse_machine
from blackhole.fleet.replies import StoreError
from blackhole.fleet.store import FleetStore
from blackhole.settings import OperatorError
from tests.http_api import Sink, ask, send
from tests.program import free_port, run, wait_for
from tests.redis_server import RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def fleet_option(redis: RedisServer) -> str:
    return f"--fleet=redis://127.0.0.1:{redis.port}/0"


def fleet(sink: Sink) -> Any:
    """Return the figures of the fleet as a machine tells them, or None while it cannot."""
    answer = ask(sink.http, "/stats.json?scope=fleet")
    return answer.json if answer.status == 200 else None


def messages(sink: Sink) -> int:
    found = fleet(sink)
    return sum(found["messages"].values()) if found else -1


def test_the_figures_of_all_machines_are_added_up(redis: RedisServer) -> None:
    with Sink(fleet_option(redis), "--hostname=one.test") as one, Sink(fleet_option(redis)) as two:
        for sink in one, two:
            sink.dashboard()
        send(one.port, 5)
        send(two.port, 7)
        wait_for(lambda: messages(one) == 12, "both machines have written")
        found = fleet(two)
        assert found["recipients"] == 24
        assert found["connections"]["by_listener"] == {f"127.0.0.1:{sink.port}": 1 for sink in (one, two)}
        assert sorted(machine["messages"] for machine in found["machines"]) == [5, 7]
        assert "one.test" in {machine["name"] for machine in found["machines"]}
        assert found["workers"] == sum(machine["workers"] for machine in found["machines"]) > 0
        metrics = ask(one.http, "/metrics?scope=fleet").body.decode()
        assert re.search(r'^blackhole_messages_total\{outcome="accepted"\} 12\.0$', metrics, re.MULTILINE)
        assert ask(two.http, "/report?scope=fleet").body.startswith(b"12 messages (12 accepted")
        assert figures_of_this_machine(one) == 5


def figures_of_this_machine(sink: Sink) -> int:
    return int(ask(sink.http, "/stats.json").json["messages"]["accepted"])


def test_a_machine_that_stops_writes_its_last_message(redis: RedisServer) -> None:
    with Sink(fleet_option(redis)) as one, Sink(fleet_option(redis)) as two:
        for sink in one, two:
            sink.dashboard()
        send(one.port, 3)
        assert one.stop() == 0
        wait_for(lambda: messages(two) == 3, "the last write of the machine that stopped")
        wait_for(lambda: sum(machine["alive"] for machine in fleet(two)["machines"]) == 1, "it is gone")
        two.dashboard()
        send(two.port, 2)
        wait_for(lambda: messages(two) == 5, "the other goes on")


def test_a_store_that_loses_everything_gets_it_again(redis: RedisServer) -> None:
    """Also the figures of a machine that is gone, from one that is not."""
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(Sink(fleet_option(redis))) for _ in range(3))
        for number, sink in enumerate((one, two, three), 1):
            sink.dashboard()
            send(sink.port, number)
        wait_for(lambda: messages(three) == 6, "all have written")
        one.stop()
        wait_for(lambda: sum(machine["alive"] for machine in fleet(two)["machines"]) == 2, "one is gone")
        # The others have copied its figures once they have written after its end.
        before = fleet(two)["seconds"]
        wait_for(lambda: fleet(two)["seconds"] > before + 2, "two more writes")
        redis.kill()
        wait_for(lambda: "figures are written again when it answers" in two.output(), "it is noticed")
        wait_for(lambda: ask(two.http, "/stats.json?scope=fleet").status == 503, "it is told")
        send(two.port, 4)
        redis.start()
        wait_for(lambda: messages(three) == 10, "everything is written again")
        assert messages(two) == 10
        assert "answers again" in two.output()
        began = fleet(two)["started"]
        redis.ask("FLUSHALL")
        wait_for(lambda: (found := fleet(two)) and found["started"] > began, "a total of its own again")
        wait_for(lambda: messages(three) == 10, "once more")


def test_the_command_line_shows_the_fleet(redis: RedisServer, tmp_path: Path) -> None:
    pid = f"--pid={tmp_path}/pid"
    with Sink(fleet_option(redis), pid, "--hostname=one.test") as one, Sink(fleet_option(redis)) as two:
        for sink in one, two:
            sink.dashboard()
            send(sink.port, 2)
        wait_for(lambda: messages(one) == 4, "both machines have written")
        done = run("status", pid, "--scope=fleet")
        assert done.returncode == 0
        assert re.match(
            r"The fleet blackhole counts since \d+ s: 2 machines alive, 0 gone, 0 connections open\n"
            r"4 messages \(4 accepted, 0 deferred, 0 rejected\), 8 recipients\n",
            done.stdout,
        )
        assert "one.test: version " in done.stdout
        found = json.loads(run("status", pid, "--scope=fleet", "--json").stdout)
        assert (found["messages"]["accepted"], len(found["machines"])) == (4, 2)
        assert run("report", pid, "--scope=fleet").stdout.startswith("4 messages (4 accepted")
        two.stop()
        wait_for(
            lambda: "1 machine alive, 1 gone" in run("status", pid, "--scope=fleet").stdout, "it is gone"
        )
        redis.kill()
        wait_for(lambda: fleet(one) is None, "it is noticed")
        done = run("report", pid, "--scope=fleet")
        assert (done.returncode, done.stdout) == (os.EX_UNAVAILABLE, "")
        assert done.stderr == "blackhole: The store of the fleet does not answer; try later.\n"


def test_a_dashboard_with_a_token_shows_the_fleet_to_who_has_it(redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    port, pid = free_port(), f"--pid={tmp_path}/pid"
    dashboard = f"--dashboard=127.0.0.1:{port},token={tmp_path}/token"
    with Sink(fleet_option(redis), pid, dashboard):
        wait_for(lambda: run("status", pid, dashboard, "--scope=fleet").returncode == 0, "it is shown")
        done = run("status", pid, "--scope=fleet")
        assert done.returncode == os.EX_UNAVAILABLE
        assert "token" in done.stderr


def test_wait_waits_for_messages_of_the_whole_fleet(redis: RedisServer) -> None:
    with Sink(fleet_option(redis)) as one, Sink(fleet_option(redis)) as two, ThreadPoolExecutor() as pool:
        for sink in one, two:
            sink.dashboard()
        wait_for(lambda: messages(one) == 0, "the store answers")
        waiting = pool.submit(ask, one.http, "/wait?scope=fleet&messages=5&timeout=20")
        time.sleep(0.5)
        send(one.port, 2)
        send(two.port, 3)
        assert waiting.result().json["messages"] == 5
        assert ask(one.http, "/wait?scope=fleet&messages=1&timeout=0").status == 504
        assert ask(one.http, "/wait?scope=fleet&run=x").status == 404


def test_a_second_fleet_on_the_same_store_is_apart(redis: RedisServer) -> None:
    with Sink(fleet_option(redis)) as one, Sink(fleet_option(redis), "--fleet_name=other") as other:
        for sink in one, other:
            sink.dashboard()
            send(sink.port)
        wait_for(lambda: messages(one) == messages(other) == 1, "each has its own figures")
        assert fleet(other)["fleet"] == "other"


def test_without_a_fleet_its_scope_is_not_found(redis: RedisServer) -> None:
    with Sink() as sink:
        sink.dashboard()
        answer = ask(sink.http, "/stats.json?scope=fleet")
        assert answer.status == 404
        assert answer.json == {"error": "This server is in no fleet; start it with --fleet."}
        assert ask(sink.http, "/report?scope=all").json == {"error": "scope: expected one of machine, fleet."}


def test_what_is_stored_of_a_machine_is_input_like_any() -> None:
    for text in (b"", b"[", b"[]", b"{}", b"[" * 2000, b'{"name": 1e999}', b"\xff"):
        assert parse_machine("x:1", 0, text) is None
    known = {"name": "a", "version": "1", "scenario": "loaded", "up": 1, "messages": 1, "rate": 1, "open": 0}
    known["order"] = 0
    assert parse_machine("x:1", 0, json.dumps(known | {"load": 0, "workers": "many"}).encode()) is None
    found = parse_machine("x:1", 99, json.dumps(known | {"load": 0, "workers": 2}).encode())
    assert found is not None
    assert (found.workers, found.alive) == (2, False)


def test_a_store_with_values_of_another_kind_is_an_error(redis: RedisServer) -> None:
    async def write() -> None:
        store = FleetStore(redis_url.fleet(f"redis://127.0.0.1:{redis.port}"), "blackhole")
        try:
            await store.write("x:1", {"reply . 250": 1}, "")
        finally:
            await store.close()

    redis.ask("SET", "blackhole:{blackhole}:total", "text")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        asyncio.run(write())


def test_options_of_a_fleet() -> None:
    of_fleet = options.parse(["--fleet=redis://h/2?prefix=sink"], {}).settings
    assert (of_fleet.attempt_store.host, of_fleet.attempt_store.prefix) == ("h", "sink")
    assert of_fleet.fleet_name == "blackhole"
    apart = options.parse(["--fleet=redis://h/2", "--attempt-store=local"], {}).settings
    assert not apart.attempt_store.host
    shown = run("--fleet=redis://h/2", "--dashboard=127.0.0.1:8025", "--print-config").stdout
    assert re.search(r"^attempt_store *= redis://h:6379/2 ", shown, re.MULTILINE)
    assert not options.parse([], {}).settings.fleet.host
    for arguments, message in (
        (["--fleet=redis://h", "--dashboard=off"], "--fleet: the figures are written by the dashboard's"),
        (["--fleet=local"], "--fleet: expected off, redis://"),
        (["--fleet-name=a b"], "--fleet-name: expected up to 64 letters"),
    ):
        with pytest.raises(OperatorError, match=message):
            options.parse(arguments, {})


def test_the_password_of_the_store_is_never_shown() -> None:
    url = f"redis://user:geheim@127.0.0.1:{free_port()}/0"
    assert "geheim" not in run(f"--fleet={url}", "--print-config").stdout


def test_a_machine_that_stops_while_its_store_is_away_writes_when_that_is_back(redis: RedisServer) -> None:
    with Sink(fleet_option(redis)) as one, Sink(fleet_option(redis)) as two:
        for sink in one, two:
            sink.dashboard()
        wait_for(lambda: messages(two) == 0, "the store answers")
        redis.kill()
        send(one.port, 3)
        one.process.terminate()
        time.sleep(1)
        redis.start()
        assert one.process.wait(30) == 0
        wait_for(lambda: messages(two) == 3, "it was written")
