"""How often rules spoke: counted in the shared map, by name; exact over workers, reloads and orders."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import LIMIT_DECISIONS, MAX_RULE_NAMES, RULE_HITS_START
from blackhole.metrics.report import rule_match_lines
from blackhole.metrics.status import figure_lines
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.limiters import UseLimit
from blackhole.rules.scenario import Scenario
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.session import Session
from blackhole.store.active_scenario import SEVERAL_LIMITS, ActiveScenario
from blackhole.store.attempts import AttemptTable
from tests.engines import make_engine
from tests.http_api import Sink, ask, figures, post
from tests.program import Program, run, wait_for
from tests.remote_store import RemoteStore, UnavailableStore, with_lookups
from tests.stopped_process import process_that_stops, stop
from tests.test_exact_counts import replaced
from tests.test_simulator import outcome

# In the engine


def engine(text: str, strict: bool = False) -> SMTPEngine:
    """One whose rules are counted in the cells 10001, 10002, ..."""
    read = enumerate(parse_rules(text, "test"), 10001)
    rules = tuple(replace(rule, counter=cell) for cell, rule in read)
    return make_engine(rules, strict=strict)


def matched(session: Session) -> list[int]:
    """The rules that have spoken since the last look, by their numbers."""
    said, session.counted_events = session.counted_events, []
    return [cell - 10000 for cell in said if cell > 10000]


FOUR = """
[[rule]]
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 Nobody"
[[rule]]
phase = "RCPT"
recipient = "slow@*"
delay = 1
[[rule]]
phase = "RCPT"
recipient = "welcome@*"
reply = "accept"
[[rule]]
phase = "."
then = "close"
"""


@pytest.mark.parametrize(("who", "rule"), [("nobody", 1), ("slow", 2), ("welcome", 3)])
def test_match_is_counted_whatever_the_effect(who: str, rule: int) -> None:
    session = engine(FOUR).session()
    session.greet()
    session.receive(b"HELO client.test\r\nMAIL FROM:<a@example.com>\r\n")
    assert matched(session) == []
    session.receive(b"RCPT TO:<%s@example.com>\r\n" % who.encode())
    assert matched(session) == [rule]
    session.receive(b"NOOP\r\n")
    assert matched(session) == []


def test_match_is_counted_for_a_fault_without_a_reply() -> None:
    session = engine(FOUR).session()
    session.greet()
    session.receive(b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n")
    assert matched(session) == []
    assert session.receive(b"hello\r\n.\r\n") == b""
    assert matched(session) == [4]


def test_match_is_counted_before_an_implicit_handshake() -> None:
    session = engine('[[rule]]\nphase = "STARTTLS"\ncertificate = "expired"\n').session(secure=True)
    session.check_implicit_tls()
    session.secured()
    session.greet()
    assert matched(session) == [1]


def test_rule_without_a_counter_is_not_counted() -> None:
    """As for the rules of a mode."""
    session = make_engine(mode="unavailable").session()
    session.greet()
    assert len(session.counted_events) == 1


@pytest.mark.parametrize("then", ["half-reply", "close", "close-after-reply"])
def test_fault_in_the_greeting_meets_a_client_that_talks_first(then: str) -> None:
    session = engine(f'[[rule]]\nphase = "CONNECT"\nthen = "{then}"\n', strict=True).session()
    out = session.greet()
    assert session.client_spoke_first(out, sampled=False) == out
    assert matched(session) == [1]


# What limits decide

LIMITED = """
[[rule]]
name = "busy"
phase = "MAIL"
throttle = { messages = 2, per = "1h" }
reply = "450 4.7.1 Slow down"
when_unknown = "451 4.3.0 Nobody knows"
[[rule]]
name = "grey"
recipient = "grey@*"
greylist = true
[[rule]]
name = "full"
phase = "RCPT"
recipient = "full@*"
reply = "452 4.2.2 Full"
"""


def decisions(store: AttemptTable | RemoteStore | UnavailableStore, *lines: bytes) -> dict[str, list[int]]:
    """Return what each rule has decided on these commands: its matches, what its limit let pass, and what it
    limited."""
    counters = Counters(1)
    scenario = ActiveScenario(Scenario(tuple(parse_rules(LIMITED, "test")))).counted(counters)
    session = make_engine(scenario.rules, environment=RuleEnvironment(attempt_store=store)).session()
    session.greet()
    for line in lines:
        with_lookups(session, session.receive(line + b"\r\n"))
    cells = counters.cells(counters.allocate_row())
    for event in session.counted_events:
        cells[event] += 1
    found = counters.snapshot()
    return {
        name: [count, *found.rule_limits[name][1:]] if name in found.rule_limits else [count]
        for name, count in found.rule_hits.items()
    }


MAIL = b"MAIL FROM:<ann@example.com>"
TRANSACTIONS = (b"HELO client.test", *[MAIL, b"RCPT TO:<grey@b.test>", b"RSET"] * 3, MAIL, b"RSET", MAIL)


@pytest.mark.parametrize("store", [AttemptTable, RemoteStore])
def test_limit_counts_what_it_lets_pass_and_what_it_limits(
    store: Callable[[], AttemptTable | RemoteStore],
) -> None:
    found = decisions(store(), *TRANSACTIONS)
    assert found == {"busy": [3, 2, 3], "grey": [2, 0, 2], "full": [0]}


def test_limit_without_an_answer_of_the_store_decides_nothing() -> None:
    assert decisions(RemoteStore(answers=False), *TRANSACTIONS)["busy"] == [5, 0, 0]
    assert decisions(UnavailableStore(), *TRANSACTIONS)["busy"] == [5, 0, 0]


def test_limit_of_each_kind_has_a_text() -> None:
    limits = (
        ('throttle = { messages = 100, per = "minute" }', "100 messages in 60 s by client"),
        (
            'throttle = { recipients = 20, per = "1h", by = ["sender", "user"], window = "sliding" }',
            "20 recipients in 3600 s by sender, user, sliding",
        ),
        (
            'throttle = { messages = 60, per = "minute", burst = 5 }',
            "60 messages in 60 s by client, 5 at once",
        ),
        (
            'throttle = { messages = 50, per = "day", grows = 2, to = 5000 }',
            "50 messages in 86400 s by client, growing to 5000",
        ),
        ('throttle = { messages = 3, per = "connection" }', "3 messages in a connection by client"),
        ("throttle = { concurrent = 10 }", "10 connections at once by client"),
        ('throttle = { refused = 10, per = "1h" }', "10 refused in 3600 s by client"),
        (
            'throttle = { refused = 10, per = "1h", share = 0.2 }',
            "10 refused in 3600 s by client, over 20 % of all",
        ),
        ("greylist = true", "retry after 300 to 172800 s by network, sender, recipient"),
    )
    text = "".join(f'[[rule]]\n{key}\nreply = "450 4.7.1 Later"\n' for key, _ in limits)
    counters = Counters(1)
    ActiveScenario(Scenario(tuple(parse_rules(text, "test")))).counted(counters)
    found = counters.snapshot().rule_limits
    assert [one.limit for one in found.values()] == [wanted for _, wanted in limits]


def test_uses_of_a_one_shot_rule_are_no_limit() -> None:
    (rule,) = parse_rules('[[rule]]\nphase = "RCPT"\nreply = "450 4.7.1 Later"\n', "test")
    counters = Counters(1)
    one_shot = replace(rule, limiter=UseLimit(3, "x"))
    (counted,) = ActiveScenario(Scenario((one_shot,))).counted(counters).rules
    assert (counted.counter, counted.limit_counters) == (RULE_HITS_START, ())
    assert counters.snapshot().rule_limits == {}


def test_limit_changes_with_its_rule_and_its_figures_stay() -> None:
    def put_in_force(*rules: str) -> None:
        blocks = (
            f'[[rule]]\nname = "busy"\nphase = "MAIL"\nreply = "450 4.7.1 No"\n{one}\n' for one in rules
        )
        ActiveScenario(Scenario(tuple(parse_rules("".join(blocks), "test")))).counted(counters)

    counters = Counters(1)
    put_in_force('throttle = { messages = 2, per = "1h" }')
    (cell,) = counters.rule_counters(["busy"], {"busy": "2 messages in 3600 s by client"})
    row = counters.cells(counters.allocate_row())
    for counted, amount in zip(counters.limit_counters(cell), (1500, 30), strict=True):
        row[counted] += amount
    before = counters.snapshot()
    assert before.rule_limits == {"busy": ("2 messages in 3600 s by client", 1500, 30)}
    lines = ["  busy: 0; 2 messages in 3600 s by client: 1,500 passed, 30 limited"]
    assert rule_match_lines(before) == lines
    assert "limits of rules: 1,500 passed, 30 limited" in [*figure_lines(before)]
    assert len(LIMIT_DECISIONS) == len(counters.limit_counters(cell))
    put_in_force('throttle = { messages = 2, per = "1h" }', 'throttle = { messages = 9, per = "1h" }')
    assert counters.snapshot().rule_limits["busy"].limit == SEVERAL_LIMITS
    put_in_force("")
    assert counters.snapshot().rule_limits == {"busy": ("", 1500, 30)}
    assert rule_match_lines(counters.snapshot()) == ["  busy: 0; its limit: 1,500 passed, 30 limited"]
    assert (counters.snapshot() - before).rule_limits == {}


def test_limits_of_rules_without_a_counter_of_their_own_are_added_up() -> None:
    counters = Counters(1)
    names = [*map(str, range(MAX_RULE_NAMES))]
    *_, last = counters.rule_counters(names, dict.fromkeys(names, "10 connections at once"))
    counters.cells(counters.allocate_row())[counters.limit_counters(last)[0]] += 7
    found = counters.snapshot().rule_limits
    assert (found["126"], found["others"]) == (("10 connections at once", 0, 0), ("", 7, 0))


# In the map


def test_rule_name_keeps_its_counter() -> None:
    stats = Counters(1)
    assert stats.rule_counters(["b", "a", "b"]) == [RULE_HITS_START, RULE_HITS_START + 1, RULE_HITS_START]
    assert stats.rule_counters(["a", "c"]) == [RULE_HITS_START + 1, RULE_HITS_START + 2]
    stats.cells(stats.allocate_row())[RULE_HITS_START + 1] = 4
    before = stats.snapshot()
    assert before.rule_hits == {"b": 0, "a": 4, "c": 0}
    stats.cells(0)[RULE_HITS_START] = 9
    assert (stats.snapshot() - before).rule_hits == {"b": 9, "a": 0, "c": 0}


def test_names_beyond_the_table_share_a_counter() -> None:
    stats = Counters(1)
    assert stats.rule_counters(["others"]) == [RULE_HITS_START + MAX_RULE_NAMES - 1], (
        "whoever is called so is one of them"
    )
    cells = stats.rule_counters(map(str, range(MAX_RULE_NAMES + 10)))
    assert cells == [
        *range(RULE_HITS_START, RULE_HITS_START + MAX_RULE_NAMES),
        *[RULE_HITS_START + MAX_RULE_NAMES - 1] * 10,
    ]
    stats.cells(stats.allocate_row())[RULE_HITS_START + MAX_RULE_NAMES - 1] = 5
    seen = stats.snapshot().rule_hits
    assert ([*seen][-2:], seen["others"], len(seen)) == (["126", "others"], 5, MAX_RULE_NAMES)


def test_process_that_is_stopped_while_it_adds_a_name_blocks_no_other_process() -> None:
    """What has a counter keeps it; new names are counted with the others meanwhile."""
    stats = Counters(1)
    stats.rule_counters(["a"])

    def add_stopped() -> None:
        stats._lock.acquire()
        stop()
        stats._lock.release()

    with process_that_stops(add_stopped):
        began = time.monotonic()
        assert stats.rule_counters(["a", "b"]) == [RULE_HITS_START, RULE_HITS_START + MAX_RULE_NAMES - 1]
        assert time.monotonic() - began < 0.5
        assert stats.snapshot().rule_hits == {"a": 0, "others": 0}
    assert stats.rule_counters(["a", "b"]) == [RULE_HITS_START, RULE_HITS_START + 1]


def test_long_rule_name_is_clipped_between_characters() -> None:
    stats = Counters(1)
    assert stats.rule_counters(["x" + "é" * 40, "x" + "é" * 50]) == [RULE_HITS_START, RULE_HITS_START]
    assert stats.snapshot().rule_hits == {"x" + "é" * 31: 0}


# The real program

RULES = """
[[rule]]
name = "nobody here"
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 Nobody"

[[rule]]
phase = "RCPT"
recipient = "gone@*"
then = "close"

[[rule]]
name = "never"
phase = "HELP"
reply = "502 5.5.1 No"
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    yield path


def wait_for_hits(look: Callable[[], dict[str, int]], wanted: dict[str, int]) -> None:
    """Who was not answered is counted when his connection has ended, which he may hear of before."""
    wait_for(lambda: look() == wanted, f"{wanted}")


def test_rule_hits_are_exact_over_killed_workers_and_reloads(file: Path, tmp_path: Path) -> None:
    def hits() -> dict[str, int]:
        return program.snapshot().rule_hits

    pid = tmp_path / "pid"
    with Program("--workers=2", f"--scenario={file}", f"--pid={pid}") as program:
        assert hits() == {"nobody here": 0, "2": 0, "never": 0}
        for number in range(30):
            asked = ("nobody", "gone", "bob")[number % 3]
            outcome(program.port, "ann@example.com", f"{asked}@example.com")
        wait_for_hits(hits, {"nobody here": 10, "2": 10, "never": 0})
        for victim in program.workers():
            os.kill(victim, signal.SIGKILL)
            wait_for(partial(replaced, program, victim), "a successor")
        outcome(program.port, "ann@example.com", "nobody@example.com")
        file.write_text(RULES.replace("never", "ever"))
        old = set(program.workers())
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: not old.intersection(program.workers()), "the new workers")
        wait_for(lambda: "ever" in hits(), "the new rules")
        assert outcome(program.port, "ann@example.com", "nobody@example.com").startswith("550")
        wait_for_hits(hits, {"nobody here": 12, "2": 10, "never": 0, "ever": 0})
        told = "Rule matches:\n  nobody here: 12\n  rule 2: 10\n  never: 0\n"
        assert told in run("report", f"--pid={pid}").stdout
        assert "rule matches: 22\n" in run("status", f"--pid={pid}").stdout
        assert (
            '"rule_hits": {\n    "nobody here": 12,' in run("report", f"--pid={pid}", "--format=json").stdout
        )
        assert "nobody here: 12\n" in run("report", f"--pid={pid}", "--format=junit").stdout


def test_limits_are_exact_over_workers_and_shown_wherever_rules_are(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(LIMITED)
    pid = tmp_path / "pid"
    limit = "2 messages in 3600 s by client"
    with Sink("--workers=2", f"--scenario={path}", f"--pid={pid}") as program:
        program.dashboard()

        def busy() -> dict[str, object]:
            return dict(figures(program.http)["rule_limits"]["busy"])

        assert busy() == {"limit": limit, "passed": 0, "limited": 0}
        assert post(program.http, "/runs", {"name": "one"}).status == 201
        codes = [outcome(program.port, "ann@example.com", "bob@example.com")[:3] for _ in range(7)]
        assert [code == "250" for code in codes] == [True] * 2 + [False] * 5
        wait_for(lambda: busy() == {"limit": limit, "passed": 2, "limited": 5}, "the decisions are counted")
        scraped = ask(program.http, "/metrics").body.decode()
        assert re.findall(
            r'^blackhole_rule_limit_decisions_total\{(.*rule="busy".*)\} (.*)$', scraped, re.M
        ) == [
            ('decision="passed",rule="busy"', "2.0"),
            ('decision="limited",rule="busy"', "5.0"),
        ]
        assert f'blackhole_rule_limit_info{{limit="{limit}",rule="busy"}} 1.0' in scraped
        told = f"\n  busy: 5; {limit}: 2 passed, 5 limited\n"
        assert told in run("report", f"--pid={pid}").stdout
        assert "limits of rules: 2 passed, 5 limited\n" in run("status", f"--pid={pid}").stdout
        report = ask(program.http, "/runs/one").json
        assert report["rule_limits"]["busy"] == {"limit": limit, "passed": 2, "limited": 5}


def test_match_is_counted_while_the_client_waits_for_a_stalled_reply(tmp_path: Path) -> None:
    path = tmp_path / "stall.toml"
    path.write_text('[[rule]]\nname = "mute"\nphase = "NOOP"\nthen = "stall"\n')
    with Program(f"--scenario={path}") as program, socket.create_connection(program.address, 20) as client:
        client.recv(4096)
        client.sendall(b"NOOP\r\n")
        wait_for_hits(lambda: program.snapshot().rule_hits, {"mute": 1})
        assert program.snapshot().open == 1


def test_one_shot_rules_are_counted_and_a_run_counts_from_its_start(file: Path) -> None:
    with Sink("--workers=2", f"--scenario={file}") as program:
        program.dashboard()

        def hits() -> dict[str, int]:
            found = figures(program.http)["rule_hits"]
            assert isinstance(found, dict)
            return found

        assert outcome(program.port, "ann@example.com", "nobody@example.com")[:3] == "550"
        assert figures(program.http)["scenario"]["names"] == ["nobody here", "2", "never"]
        wait_for_hits(hits, {"nobody here": 1, "2": 0, "never": 0})
        assert post(program.http, "/runs", {"name": "one"}).status == 201
        rule = {"phase": "RCPT", "recipient": "bob@*", "reply": "451 4.3.0 Later"}
        assert post(program.http, "/next", {"count": 3, "name": "mine", **rule}).status == 200
        assert post(program.http, "/next", {"count": 1, **rule}).status == 200
        heard = [outcome(program.port, "ann@example.com", "bob@example.com")[:3] for _ in range(6)]
        assert heard == ["451"] * 4 + ["250"] * 2
        wait_for_hits(hits, {"nobody here": 1, "2": 0, "never": 0, "POST /next": 4})
        text = '[[rule]]\nname = "full"\nphase = "RCPT"\nreply = "452 4.2.2 Full"\n'
        assert ask(program.http, "/scenario", "PUT", text).json["names"] == ["full"]
        with smtplib.SMTP("127.0.0.1", program.port, local_hostname="client.test", timeout=20) as client:
            for _ in range(5):
                client.mail("ann@example.com")
                assert client.rcpt("bob@example.com")[0] == 452
                client.rset()
        wait_for_hits(hits, {"nobody here": 1, "2": 0, "never": 0, "POST /next": 4, "full": 5})
        report = ask(program.http, "/runs/one").json
        assert report["rule_hits"] == {"nobody here": 0, "2": 0, "never": 0, "POST /next": 4, "full": 5}
        scraped = ask(program.http, "/metrics").body.decode()
        assert re.findall(r'^blackhole_rule_hits_total\{rule="(.*)"\} (.*)$', scraped, re.M) == [
            ("nobody here", "1.0"),
            ("2", "0.0"),
            ("never", "0.0"),
            ("POST /next", "4.0"),
            ("full", "5.0"),
        ]
