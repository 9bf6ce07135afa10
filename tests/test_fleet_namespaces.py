"""Namespaces of a fleet: orders and figures of several jobs over two machines, with a real Redis server."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.external_programs import path_of, requires
from tests.http_api import Answer, Sink, ask, post
from tests.program import run, wait_for
from tests.redis_server import RedisServer
from tests.test_namespaces_program import DEFERS, REFUSES, deliver

OPTIONS = (
    *("--fleet_control", "--namespace_by=tag,user", "--auth=any", "--auth_plaintext"),
    *("--recent=1000", "--workers=2"),
)
NEXT = {"phase": "RCPT", "reply": "450 4.2.0 Once"}


class NamespacedFleet:
    """Two machines of one fleet, and its store."""

    def __init__(self, stack: ExitStack) -> None:
        self.pidfile = f"{stack.enter_context(tempfile.TemporaryDirectory(prefix='blackhole-'))}/pid"
        """Of the first machine."""
        self.redis = stack.enter_context(RedisServer())
        self._stack = stack
        self.one = self.add("--hostname=one.test", f"--pid={self.pidfile}")
        self.two = self.add("--hostname=two.test")

    def add(self, *options: str) -> Sink:
        url = f"--fleet=redis://127.0.0.1:{self.redis.port}/0?timeout=5"
        sink = self._stack.enter_context(Sink(url, *OPTIONS, *options))
        sink.dashboard()
        return sink

    @property
    def machines(self) -> tuple[Sink, Sink]:
        return self.one, self.two

    def order(self, sink: Sink, method: str, path: str, text: str = "") -> Answer:
        """Give an order for a namespace, which all machines obey when this returns.

        On a busy machine they may take longer than the response waits (504).
        """
        answer = ask(sink.http, f"/namespaces/{path}", method, text)
        assert answer.status in (200, 201, 504), answer.body
        if answer.status == 504:
            later = "/namespaces/later/scenario"
            wait_for(lambda: ask(sink.http, later, "PUT", "").status == 200, "all obey", 60)
        return answer

    def put(self, sink: Sink, path: str, text: str = "") -> Answer:
        return self.order(sink, "PUT", path, text)

    def next(self, sink: Sink, path: str, count: int) -> None:
        self.order(sink, "POST", f"{path}/next", json.dumps({**NEXT, "count": count}))

    def deliver(self, namespace: str, messages: int) -> list[Counter[int]]:
        """Send so many messages to each machine, and return the codes of their replies."""
        recipient = f"bob+ns.{namespace}@example.com"
        return [Counter(deliver(sink.port, recipient, messages)) for sink in self.machines]


@pytest.fixture(scope="module")
def fleet() -> Iterator[NamespacedFleet]:
    with ExitStack() as stack:
        found = NamespacedFleet(stack)
        found.put(found.one, "expired")  # the last of these tests needs one that was not used for a while
        yield found


def figures(sink: Sink, path: str) -> Any:
    answer = ask(sink.http, f"/namespaces/{path}")
    assert answer.status == 200, answer.body
    return answer.json


def wait_for_messages(sink: Sink, namespace: str, messages: int) -> None:
    answer = ask(sink.http, f"/namespaces/{namespace}/wait?messages={messages}&timeout=25")
    assert (answer.status, answer.json["messages"]) == (200, messages)


def sees_both_jobs(sink: Sink) -> bool:
    """Return whether a machine tells of each of two jobs what it did, on both machines."""
    of_a, of_b = (figures(sink, f"{name}/report?format=json") for name in ("job-a", "job-b"))
    return bool(
        (of_a["rule_hits"], of_a["recipients"], of_a["connections"]) == ({"full": 6}, 0, 6)
        and (of_b["rule_hits"], of_b["messages"]["deferred"], of_b["connections"]) == ({"later": 8}, 8, 8)
        and of_a["messages"]["deferred"] == of_b["messages"]["accepted"] == 0
    )


def test_two_jobs_with_opposite_scenarios_see_only_their_own_on_both_machines(fleet: NamespacedFleet) -> None:
    one, two = fleet.machines
    fleet.put(one, "job-a/scenario", REFUSES)
    fleet.put(two, "job-b/scenario", DEFERS)
    assert fleet.deliver("job-a", 3) == [Counter({552: 3})] * 2
    assert fleet.deliver("job-b", 4) == [Counter({451: 4})] * 2
    assert fleet.deliver("nobody", 2) == [Counter({250: 2})] * 2
    wait_for_messages(one, "job-b", 8)
    for sink in fleet.machines:
        wait_for(lambda: sees_both_jobs(sink), "it has what both machines have counted")  # noqa: B023
        assert b"Counted by " in ask(sink.http, "/namespaces/job-b/report").body
        here = figures(sink, "job-b/report?format=json&scope=machine")
        assert here["messages"]["deferred"] == 4
        recent = figures(sink, "job-b/recent")
        assert (recent["scope"], len(recent["transactions"])) == ("machine", 4)
        by_name = {found["name"]: found for found in ask(sink.http, "/namespaces").json}
        assert (by_name["job-b"]["messages"], by_name["job-b"]["scenario"]) == (8, "PUT /scenario")
        assert 0 <= by_name["job-a"]["unused"] < 60
    assert ask(one.http, "/namespaces/job-a/wait?messages=1&timeout=0").status == 504


@requires("swaks")
def test_swaks_meets_the_scenario_of_its_tag_on_each_machine(fleet: NamespacedFleet) -> None:
    fleet.put(fleet.one, "swaks/scenario", DEFERS)
    for sink in fleet.machines:
        server = f"--server=127.0.0.1:{sink.port}"
        words = [path_of("swaks"), server, "--to=bob+ns.swaks@example.com", "--from=ann@example.com"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert "<** 451 4.3.0 Later" in done.stdout


def test_one_shot_replies_of_a_namespace_are_counted_over_the_whole_fleet(fleet: NamespacedFleet) -> None:
    one, two = fleet.machines
    fleet.next(one, "shots", 3)
    assert sum(fleet.deliver("shots", 2) + fleet.deliver("shots", 2), Counter()) == {450: 3, 250: 5}
    fleet.next(two, "shots", 1)
    assert sum(fleet.deliver("nobody", 1), Counter()) == {250: 2}
    assert len(figures(one, "shots/next")) == 1
    fleet.order(one, "DELETE", "shots/next")
    assert fleet.deliver("shots", 1) == [Counter({250: 1})] * 2


LIMITED = """
[[rule]]
name = "busy"
phase = "RCPT"
throttle = { recipients = 3, per = "1h", by = "recipient" }
reply = "450 4.7.1 Slow down"
"""


def test_limits_in_a_namespace_and_what_they_decide_are_those_of_all_machines(fleet: NamespacedFleet) -> None:
    one, two = fleet.machines
    fleet.put(one, "limited/scenario", LIMITED)
    assert sum(fleet.deliver("limited", 4), Counter()) == {250: 3, 450: 5}

    def decided() -> tuple[int, int]:
        found = figures(two, "limited/stats.json")["rule_limits"].get("busy", {})
        return found.get("passed"), found.get("limited")

    wait_for(lambda: decided() == (3, 5), "all decisions are counted")
    here = [figures(sink, "limited/stats.json?scope=machine") for sink in fleet.machines]
    assert [sum(one["rule_limits"]["busy"][name] for one in here) for name in ("passed", "limited")] == [3, 5]
    assert {one["rule_limits"]["busy"]["limit"] for one in here} == {"3 recipients in 3600 s by recipient"}
    assert here[0]["scenario"]["names"] == figures(one, "limited/stats.json")["scenario"]["names"] == ["busy"]
    everywhere = ask(one.http, "/stats.json?scope=fleet").json["rule_limits"]["busy"]
    assert (everywhere["passed"], everywhere["limited"]) == (3, 5)


def test_a_run_of_a_namespace_counts_its_messages_on_all_machines(fleet: NamespacedFleet) -> None:
    one, two = fleet.machines
    assert fleet.put(one, "runner").status in (201, 504)
    assert fleet.put(two, "RUNNER").status == 200
    fleet.deliver("runner", 1)
    wait_for_messages(one, "runner", 2)
    started = post(one.http, "/namespaces/runner/runs", {"name": "first"})
    assert (started.status, started.json["total"], started.json["machines"]) == (201, 0, [])
    assert post(two.http, "/namespaces/runner/runs", {"name": "first"}).status == 409
    fleet.deliver("runner", 2)
    fleet.deliver("nobody", 1)
    waited = ask(two.http, "/namespaces/runner/wait?messages=4&timeout=25&run=first")
    assert (waited.status, waited.json["messages"]) == (200, 4)
    assert post(two.http, "/namespaces/runner/runs/first/stop").json["total"] == 4
    fleet.deliver("runner", 1)
    wait_for_messages(one, "runner", 8)
    assert figures(one, "runner/runs/first")["messages"]["accepted"] == 4
    assert [found["total"] for found in figures(two, "runner/runs")] == [4]
    assert b"4 messages" in ask(two.http, "/namespaces/runner/runs/first/report").body
    assert ask(one.http, "/runs?scope=fleet").json == []


def test_a_namespace_that_is_removed_is_gone_on_all_machines_and_in_the_store(fleet: NamespacedFleet) -> None:
    one, two = fleet.machines
    fleet.put(one, "bob@example.com/scenario", REFUSES)
    assert deliver(two.port, "ann@example.com", user="bob@example.com") == [552]
    wait_for(lambda: figures(one, "bob@example.com/report?format=json")["rule_hits"], "it is counted")
    namespace = fleet.redis.ask("HGET", "blackhole:{blackhole}:namespaces", "bob@example.com").split()[0]
    assert len(fleet.redis.names(f"*:{namespace}:*")) == 2
    assert not [key for key in fleet.redis.names() if "@" in key or "example" in key]
    fleet.order(two, "DELETE", "Bob@example.com")
    for sink in fleet.machines:
        assert ask(sink.http, "/namespaces/bob@example.com").status == 404
        assert deliver(sink.port, "ann@example.com", user="bob@example.com") == [250]
    wait_for(lambda: not fleet.redis.names(f"*:{namespace}:*"), "nothing of it is left")
    fleet.put(two, "bob@example.com")
    assert figures(one, "bob@example.com")["messages"] == 0


def test_a_mistake_in_an_order_reaches_no_machine(fleet: NamespacedFleet) -> None:
    wrong = ask(fleet.one.http, "/namespaces/typo/scenario", "PUT", '[[rule]]\nphase = "RCTP"\n')
    assert (wrong.status, "RCTP" in wrong.json["error"]) == (400, True)
    for sink in fleet.machines:
        assert ask(sink.http, "/namespaces/typo").status == 404


def test_an_order_that_a_machine_cannot_obey_is_told_and_replaced(fleet: NamespacedFleet) -> None:
    """One of another version may have given it; a request with it is refused."""
    fleet.put(fleet.two, "strange/scenario", REFUSES)
    index, ask_store = "blackhole:{blackhole}:namespaces", fleet.redis.ask
    namespace, _, made = ask_store("HGET", index, "strange").split()
    order = f"blackhole:{{blackhole}}:namespace:{namespace}:order"
    ask_store("HSET", order, "text", '[[rule]]\nphase = "RCTP"\n', "at", 1)
    ask_store("HSET", index, "strange", f"{namespace} {ask_store('HINCRBY', index, ' number', 1)} {made}")
    try:
        for sink in fleet.machines:
            wait_for(lambda: "an order cannot be obeyed: " in sink.output(), "it is told")  # noqa: B023
        assert fleet.deliver("strange", 1) == [Counter({552: 1})] * 2
        fleet.put(fleet.one, "strange/scenario", DEFERS)
    except BaseException:  # so that the other tests go on
        ask(fleet.one.http, "/namespaces/strange", "DELETE")
        raise
    assert fleet.deliver("strange", 1) == [Counter({451: 1})] * 2


def test_the_command_line_refuses_to_pass_one_machine_off_as_the_fleet(fleet: NamespacedFleet) -> None:
    done = run("report", "--scope=fleet", "--namespace=job", f"--pid={fleet.pidfile}")
    assert (done.returncode, "GET /namespaces/job/report" in done.stderr) == (78, True)


def test_a_namespace_that_no_machine_uses_for_an_hour_of_the_store_is_gone(fleet: NamespacedFleet) -> None:
    fleet.put(fleet.two, "used")

    def is_gone() -> bool:
        fleet.redis.ask("ZADD", "blackhole:{blackhole}:namespaces:used", "XX", 1, "expired")
        return not fleet.redis.ask("HEXISTS", "blackhole:{blackhole}:namespaces", "expired")

    wait_for(is_gone, "it is gone")

    def is_told() -> bool:
        return {ask(sink.http, "/namespaces/expired").status for sink in fleet.machines} == {404}

    wait_for(is_told, "it is gone on all machines")
    assert figures(fleet.one, "used")
    assert "namespaces are gone, as nobody used them: expired" in fleet.one.output() + fleet.two.output()


def test_a_store_that_lost_everything_gets_it_again_and_a_machine_that_joins_obeys(
    fleet: NamespacedFleet,
) -> None:
    fleet.put(fleet.one, "old")
    fleet.put(fleet.one, "job/scenario", REFUSES)
    fleet.order(fleet.two, "DELETE", "old")
    fleet.deliver("job", 2)

    def has_hits(number: int) -> bool:
        return bool(figures(fleet.two, "job/report?format=json")["rule_hits"] == {"full": number})

    wait_for(lambda: has_hits(4), "all is counted")
    assert post(fleet.one.http, "/namespaces/job/runs", {"name": "kept"}).status == 201
    fleet.redis.ask("FLUSHALL")
    wait_for(lambda: fleet.redis.ask("HEXISTS", "blackhole:{blackhole}:namespaces", "job"), "it is back")
    wait_for(lambda: has_hits(4), "its figures are back")
    wait_for(lambda: figures(fleet.two, "job/runs"), "its run is back")
    three = fleet.add("--workers=1")
    wait_for(lambda: ask(three.http, "/namespaces/job").status == 200, "it obeys")
    assert ask(three.http, "/namespaces/old").status == 404
    assert deliver(three.port, "bob+ns.job@example.com") == [552]
    wait_for(lambda: has_hits(5), "it counts")
    fleet.put(three, "job/scenario", DEFERS)
    assert fleet.deliver("job", 1) == [Counter({451: 1})] * 2
    assert three.stop() == 0


def test_without_its_store_a_fleet_takes_no_orders_for_namespaces_and_forgets_none(
    fleet: NamespacedFleet,
) -> None:
    one, two = fleet.machines
    fleet.put(two, "kept/scenario", DEFERS)
    fleet.redis.kill()
    try:
        refused = ask(one.http, "/namespaces/kept/scenario", "PUT", REFUSES)
        assert (refused.status, "does not answer" in refused.json["error"]) == (503, True)
        for path in ("", "/kept", "/kept/report", "/kept/runs"):
            assert ask(one.http, f"/namespaces{path}").status == 503, path
        assert ask(one.http, "/namespaces/kept", "DELETE").status == 503
        assert fleet.deliver("kept", 1) == [Counter({451: 1})] * 2
    finally:
        fleet.redis.start()
    wait_for(lambda: fleet.redis.ask("HEXISTS", "blackhole:{blackhole}:namespaces", "kept"), "it is back")
    fleet.put(one, "kept/scenario", REFUSES)
    assert fleet.deliver("kept", 1) == [Counter({552: 1})] * 2


def test_a_machine_without_namespaces_is_not_waited_for(fleet: NamespacedFleet) -> None:
    other = fleet.add("--namespace_by=off", "--workers=1")
    fleet.put(fleet.one, "alone/scenario", REFUSES)
    assert deliver(other.port, "bob+ns.alone@example.com") == [250]
    assert ask(other.http, "/namespaces").status == 404
    assert other.stop() == 0
