"""Stages of a connection: the CPU time that the engine takes for each, with and without rules.

No rule matches. Each figure is the least of many turns, which other work on the machine changes little.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from benchmarks.growth import MESSAGES, chunks, engine
from benchmarks.plan import Plan
from benchmarks.scenarios import SCENARIOS
from benchmarks.table import Row, Table
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.session import Session

SESSIONS: Final = 400

FINAL_DOT: Final = b".\r\n"

FILLER: Final = (b"x" * 78 + b"\r\n") * 128
"""What makes a message one of 10 KiB."""

PIECE: Final = 4096
"""Octets of a message that are written at once by senders that buffer."""

COLUMNS: Final = {
    "rules": ("rules", ""),
    "begin": ("begin", ",.2f"),
    "helo": ("greeting, HELO", ",.2f"),
    "message": ("message", ",.2f"),
    "end": ("QUIT, end", ",.2f"),
    "total": ("connection", ",.2f"),
    "large": ("10 KiB", ",.2f"),
    "pieces": ("10 KiB in pieces", ",.2f"),
}


def larger(message: Sequence[bytes]) -> list[bytes]:
    """Return a message with 10 KiB more in its body."""
    *commands, body = message
    return [*commands, body.removesuffix(FINAL_DOT) + FILLER + FINAL_DOT]


def in_pieces(message: Sequence[bytes]) -> list[bytes]:
    """Return a message whose body comes in pieces."""
    *commands, body = message
    return [*commands, *(body[start : start + PIECE] for start in range(0, len(body), PIECE))]


def send(sessions: Sequence[Session], change: Callable[[Sequence[bytes]], Sequence[bytes]]) -> float:
    """Send a message in each session; return the microseconds of CPU time for one."""
    messages = [change(chunks(next(MESSAGES))) for _ in sessions]
    with timer() as taken:
        for session, message in zip(sessions, messages, strict=True):
            for chunk in message:
                session.receive(chunk)
                session.counted_events.clear()
    return taken[0]


@contextmanager
def timer() -> Iterator[list[float]]:
    """Yield a list that gets the microseconds of CPU time for each of SESSIONS."""
    taken: list[float] = []
    begun = time.process_time_ns()
    yield taken
    taken.append((time.process_time_ns() - begun) / SESSIONS / 1000)


def turn(made: SMTPEngine) -> Mapping[str, float]:
    """Return the microseconds of each stage in one turn."""
    with timer() as begin:
        sessions = [made.session(client="192.0.2.1") for _ in range(SESSIONS)]
        for session in sessions:
            session.policy.set_local_address(str)
    with timer() as helo:
        for session in sessions:
            session.greet()
            session.receive(b"HELO client.test\r\n")
    found = {
        "begin": begin[0],
        "helo": helo[0],
        "message": send(sessions, list),
        "large": send(sessions, larger),
        "pieces": send(sessions, lambda message: in_pieces(larger(message))),
    }
    with timer() as end:
        for session in sessions:
            session.receive(b"QUIT\r\n")
            session.closed()
    made.sizes.clear()
    return {**found, "end": end[0]}


def measure(plan: Plan) -> Table:
    """Measure all stages for each scenario, in turns."""
    engines = {name: engine(text) for name, text in {"none": "", **SCENARIOS}.items()}
    least: dict[str, dict[str, float]] = {name: {} for name in engines}
    gc.disable()
    try:
        for _ in range(5 * (plan.rounds + 1)):
            for name, made in engines.items():
                for stage, taken in turn(made).items():
                    least[name][stage] = min(taken, least[name].get(stage, taken))
            gc.collect()
    finally:
        gc.enable()
    rows: list[Row] = [
        {
            "rules": name,
            **stages,
            "total": sum(stages[stage] for stage in ("begin", "helo", "message", "end")),
        }
        for name, stages in least.items()
    ]
    table = Table("stages", "CPU µs of the engine for the stages of a connection", COLUMNS, rows)
    table.note = f"The least of {5 * (plan.rounds + 1)} turns of {SESSIONS} sessions each."
    return table
