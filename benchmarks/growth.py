"""Growth: the cost of a message in the engine by the number of rules, and the memory of the retry tracker.

No rule matches. Each message has a recipient and a Message-ID of its own, so that nothing is known of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random
from statistics import median
from typing import Final

from benchmarks import process
from benchmarks.plan import Plan
from benchmarks.scenarios import CHANCE, rule
from benchmarks.table import Row, Table
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.outcomes import DEFERRED, update_envelope
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.policy import NO_POLICY
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from blackhole.store.attempts import AttemptTable
from blackhole.store.outcome_table import OutcomeTable

COUNTS: Final = (1, 10, 100, 1000)

SESSIONS: Final = 20

KINDS: Final[dict[str, Callable[[int], str]]] = {
    "by address": lambda number: rule("RCPT", f'recipient = "user{number}@host.invalid"'),
    "by domain, `chance = 0.5`": lambda number: rule(
        "RCPT", f'recipient = "*@host{number}.invalid"\nchance = 0.5'
    ),
    "by chance": lambda number: rule("RCPT", CHANCE),
    "by chance, with a seed": lambda number: rule("RCPT", CHANCE),
    "by attempt": lambda number: rule("RCPT", f'attempt = "> {number + 1_000_000}"'),
    "by HELO name, which has a part of each glob": lambda number: rule(
        "RCPT", f'helo = "*client?test*{number}x"'
    ),
    "by header": lambda number: rule(".", f'header = "Subject: *bulk{number}*"'),
}
"""Name of a row -> the text of a rule by its number."""

MESSAGES: Final = count()
"""The number of each message."""


def text_of(kind: str, size: int) -> str:
    """Return a scenario of so many rules."""
    seed = "seed = 7\n" if "seed" in kind else ""
    return seed + "".join(map(KINDS[kind], range(size)))


def engine(text: str) -> SMTPEngine:
    """Return an engine with a scenario and stores of its own; no text: no rules."""
    config = ListenerConfig("mx.test", message_directives=True)
    if not text:
        return SMTPEngine(config, Random(), policy=NO_POLICY)
    attempts = AttemptTable()
    attempts.set_row(0)
    environment = RuleEnvironment(time.monotonic, attempts, OutcomeTable(), time.monotonic)
    rules = parse_rules(text, "benchmark")
    return SMTPEngine(
        config, Random(), policy=RulePolicy(rules, "accept", "127.0.0.1:25", Random(), environment)
    )


def sessions(text: str) -> list[Session]:
    """Return sessions, past EHLO, of an engine of their own."""
    made_by = engine(text)
    made = [made_by.session(client="192.0.2.1") for _ in range(SESSIONS)]
    for session in made:
        session.greet()
        session.receive(b"EHLO client.test\r\n")
    return made


def chunks(number: int) -> tuple[bytes, ...]:
    """Return what a client sends for a message."""
    return (
        b"MAIL FROM:<foo@client.test>\r\n",
        b"RCPT TO:<r%d@sink.test>\r\n" % number,
        b"DATA\r\n",
        b"From: <foo@client.test>\r\nTo: <r%d@sink.test>\r\nDate: Sat, 28 Nov 2026 20:00:00 +0000\r\n"
        b"Message-Id: <%d.1@client.test>\r\nSubject: a test\r\n\r\nLa de da de da\r\n.\r\n"
        % (number, number),
    )


def cost(used: list[Session], messages: int) -> float:
    """Return the microseconds of CPU time that a message takes."""
    sent = [chunks(next(MESSAGES)) for _ in range(messages)]
    begun = time.process_time()
    for number, message in enumerate(sent):
        session = used[number % SESSIONS]
        receive, events = session.receive, session.counted_events
        for chunk in message:
            receive(chunk)
            session.single_event = 0
            events.clear()
    took = time.process_time() - begun
    used[0].engine.sizes.clear()
    return took / messages * 1e6


def measure_rules(plan: Plan) -> Table:
    """Measure the cost of a message for each kind and number of rules, in turns."""
    columns = {"kind": ("rules", ""), "0": ("0", ",.1f")} | {
        str(size): (f"{size:,}", ",.1f") for size in COUNTS
    }
    table = Table("growth", "CPU µs per message in the engine, by the number of rules", columns)
    made = {(kind, size): sessions(text_of(kind, size)) for kind in KINDS for size in COUNTS}
    made["", 0] = sessions("")
    costs: dict[tuple[str, int], list[float]] = {key: [] for key in made}
    messages = 200 if plan.quick else 1000
    for _ in range(plan.rounds + 1):
        for key, used in made.items():
            costs[key].append(cost(used, messages))
    medians = {key: median(found[1:]) for key, found in costs.items()}
    table.rows = [
        {"kind": kind, "0": medians["", 0], **{str(size): medians[kind, size] for size in COUNTS}}
        for kind in KINDS
    ]
    table.note = "No rule matches. Rules at RCPT, those by header at the end of the message."
    return table


def measure_memory(plan: Plan) -> Table:
    """Measure the memory that the retry tracker's table takes after so many envelopes or messages."""
    columns = {"what": ("tracked", "")} | {
        str(size): (f"{size:,}, KiB", ",d") for size in (10_000, 1_000_000)
    }

    def resident(work: Callable[[OutcomeTable, int], object], size: int) -> int:
        table = OutcomeTable()
        before = process.resident([os.getpid()])
        for number in range(size):
            work(table, number)
        return process.resident([os.getpid()]) - before

    def defer(table: OutcomeTable, number: int) -> None:
        table.update_hash(table.key_hash(number), 1.0, partial(update_envelope, DEFERRED))

    def accept(table: OutcomeTable, number: int) -> None:
        table.add_accepted(table.key_hash(number))

    rows: list[Row] = [
        {"what": what} | {str(size): resident(work, size) for size in (10_000, 1_000_000)}
        for what, work in (("deferred envelopes", defer), ("accepted messages", accept))
    ]
    return Table("tracking", "Memory of the retry tracker", columns, rows)
