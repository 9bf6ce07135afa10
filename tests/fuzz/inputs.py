"""Random inputs for a session without a socket, and the invariants that must hold for every input.

- No exception is raised.
- Replies are whole lines of printable ASCII, of at most 512 octets (RFC 5321 4.5.3.1.5).
- A session keeps at most MAX_COMMAND_LINE octets of a command (of AUTH: MAX_AUTH_LINE), and four octets of
  a body.
- Replies and the final state do not depend on how the input is split into pieces, or on whether the answers
  of the store of attempts arrive at once or later.

A run consists of blocks. A block depends only on the seed of the run and on its own number, so that any
process can repeat it.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from zlib import crc32

from blackhole.metrics.layout import CELLS_START, EventCells
from blackhole.net.admission import AdmissionControl
from blackhole.net.client_table import ClientTable, ClientTableView
from blackhole.rules.attempt_store import Answer, HeldSlot, Record, Update
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.smtp.command_line import MAX_AUTH_LINE, MAX_COMMAND_LINE
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.inspection import InspectionPlan
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from tests.fuzz.listener_kinds import BODIES, EHLO, LISTENER_KINDS, ListenerKind, random_kind
from tests.remote_store import PendingLookup, with_lookups

CORPUS = Path(__file__).resolve().parent.parent / "corpus"

WAITS = (NextAction.SLEEP, NextAction.LIMIT_INPUT, NextAction.CHANGE_CLIENT)
"""After these, a session goes on without further input."""

BLOCK_INPUTS = 1000
"""Inputs in a block."""

REPLIES = re.compile(rb"(?:[2-5][0-9][0-9](?:[ -][ -~]{0,506})?\r\n)*")
"""Any number of reply lines."""

CUT_OFF_REPLIES = re.compile(REPLIES.pattern + rb"(?:[2-5][ -~]{0,509}\r?)?")
"""The same, where a fault may cut off the last line."""

EVENT_COUNT = CELLS_START
"""The number of counters of events."""

MAX_CPU_SECONDS = 0.1
"""Seconds of processor time that an input may take."""

MAX_RESUMES = 20000
"""How often a session may delay its replies to one input."""

CLIENT = "192.0.2.77"


def corrupt(source: Random, data: bytes) -> bytes:
    """Return the octets with some inserted, removed, changed, repeated or moved."""
    draw = source.random
    place, what = int(draw() * len(data)), draw()
    if what < 0.3:
        return data[:place] + bytes((int(draw() * 256),)) + data[place:]
    if what < 0.5:
        return data[:place] + data[place + 1 + int(draw() * 8) :]
    if what < 0.7:
        return data[:place] + bytes((int(draw() * 256),)) + data[place + 1 :]
    if what < 0.8:
        return data[:place] + data[place : place + 40] * (2 + int(draw() * 3)) + data[place:]
    if what < 0.9:
        return data[place:] + data[:place]
    return data[:place] + source.randbytes(int(draw() * 30)) + data[place:]


def generate(source: Random, phrases: tuple[bytes, ...]) -> list[bytes]:
    """Return an input: a list of phrases, half of the time with some of them corrupted."""
    draw = source.random
    data = [EHLO] if draw() < 0.5 else []
    for _ in range(1 + int(draw() * 8)):
        data.append(phrases[int(draw() * len(phrases))])
        if data[-1].endswith(b"DATA\r\n") and draw() < 0.7:
            data.append(BODIES[int(draw() * len(BODIES))])
    while draw() < 0.5:
        place = int(draw() * len(data))
        if draw() < 0.1:
            data = data[place:] + data[:place]
        else:
            data[place] = corrupt(source, data[place])
    return data


def split(source: Random, phrases: list[bytes]) -> list[bytes]:
    """Split an input between phrases, as a client does, or anywhere, as a network does, or into octets."""
    draw = source.random
    how, data = draw(), b"".join(phrases)
    if how < 0.6:
        pieces, last = [], b""
        for phrase in phrases:
            last += phrase
            if draw() < 0.9:
                pieces.append(last)
                last = b""
        return [piece for piece in (*pieces, last) if piece]
    if how < 0.97:
        places = sorted({int(draw() * len(data)) for _ in range(1 + int(draw() * 6))})
        ends = zip([0, *places], [*places, len(data)], strict=True)
        return [data[start:end] for start, end in ends if start < end]
    return [data[place : place + 1] for place in range(min(len(data), 300))] + [data[300:]] * (
        len(data) > 300
    )


class InvariantViolation(AssertionError):
    """An invariant does not hold."""


class ResettableOutcomeStore:
    """The outcomes of earlier attempts, in a dictionary that can be cleared."""

    def __init__(self) -> None:
        self.known: dict[int, Record] = {}
        self.accepted: set[int] = set()

    def clear(self) -> None:
        self.known.clear()
        self.accepted.clear()

    def key_hash(self, key: Hashable) -> int:
        return crc32(repr(key).encode())

    def contains(self, key_hash: int) -> bool:
        return self.known.get(key_hash, (0,))[0] > 0

    def has_records(self) -> bool:
        return bool(self.known)

    def add_accepted(self, key_hash: int) -> bool:
        is_new = key_hash not in self.accepted
        self.accepted.add(key_hash)
        return is_new

    def remove_accepted(self, key_hash: int) -> bool:
        is_known = key_hash in self.accepted
        self.accepted.discard(key_hash)
        return is_known

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        self.known[key_hash], answer = change(self.known.get(key_hash, (0, now, now)), now)
        return answer

    def sweep(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        for key_hash in self.known:
            yield self.update_hash(key_hash, now, change)


class LaterAnswer(PendingLookup):
    """An answer that arrives later, and the key that it is about."""

    def __init__(self, known: object, key: bytes) -> None:
        super().__init__(known)
        self.key = key


class ResettableAttemptStore:
    """A store of attempts that can be cleared. It has no answer for one key in eight."""

    def __init__(self) -> None:
        self.known: dict[bytes, Record] = {}
        self.held: Counter[bytes] = Counter()
        self.deferred = False
        """Whether answers arrive later."""

    def clear(self) -> None:
        self.known.clear()
        self.held.clear()

    def update(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | LaterAnswer | None:
        self.known[key], answer = change(self.known.get(key, (0, now, now)), now)
        return self._answer(answer, key)

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | LaterAnswer | None:
        refused = self.held[key] >= limit
        answer = self._answer(refused, key)
        if answer is False or (isinstance(answer, LaterAnswer) and answer.answer is False):
            self.held[key] += 1
        return answer

    def release(self, place: HeldSlot) -> None:
        if isinstance(place, bytes):
            self.held[place] -= 1
        elif isinstance(place, LaterAnswer) and place.answer is False:
            self.held[place.key] -= 1

    def _answer(self, answer: Answer, key: bytes) -> Answer | LaterAnswer | None:
        known = answer if crc32(key) % 8 else None
        return LaterAnswer(known, key) if self.deferred else known


class Harness:
    """A listener of one kind: its engine, and its stores, clock and clients, reset for each input."""

    def __init__(self, kind: ListenerKind) -> None:
        self.kind = kind
        self.attempts = ResettableAttemptStore()
        self.outcomes = ResettableOutcomeStore()
        self.now = self.minute = 0.0
        trace = (lambda session, way, line: None) if kind.traced else None
        environment = RuleEnvironment(lambda: self.now, self.attempts, self.outcomes, lambda: self.now)
        self.random_source = Random(7)
        numbers = EventCells()
        policy = RulePolicy(
            kind.rules, kind.mode, "127.0.0.1:25", self.random_source, environment, numbers.outcome
        )
        self.engine = SMTPEngine(kind.config, self.random_source, trace, policy, numbers)
        self.admission: AdmissionControl | None = None
        if kind.admission_settings is not None:
            self.clients = ClientTableView(ClientTable(1), 0, tuple, lambda: self.minute)
            self.admission = AdmissionControl(kind.admission_settings, self.clients)
        self.max_line = MAX_AUTH_LINE if kind.config.auth else MAX_COMMAND_LINE
        self.reply_pattern = REPLIES if kind.sends_whole_replies else CUT_OFF_REPLIES
        self.session_count = 2 if kind.remembers_clients else 1
        """A client that returns shows what a rule remembers."""

    def run_sessions(self, pieces: list[bytes], seed: int, deferred: bool = False) -> list[object]:
        """Return the output, the next action and the final stage of new sessions, one after another.

        If `deferred`, the answers of the store of attempts arrive later.
        """
        engine = self.engine
        self.random_source.seed(seed)
        # Every other input has its name and its bodies inspected.
        engine.inspection = InspectionPlan("all" if seed & 1 else "off")
        self.attempts.clear()
        self.attempts.deferred = deferred
        self.outcomes.clear()
        self.now = float(seed % 3600)
        if self.admission is not None:
            self.minute += 60.0
            self.clients.sweep()
        outputs: list[object] = []
        for _ in range(self.session_count):
            outputs += self.run_session(pieces)
            engine.sizes.clear()
            self.now += 400.0
        return outputs

    def run_session(self, pieces: list[bytes]) -> tuple[bytes, NextAction, int]:
        """Run one session to its end, and check what it leaves behind. Raises InvariantViolation."""
        usage, secure = None, self.kind.secure
        if self.admission is None:
            session = self.engine.session(secure, CLIENT)
        else:
            usage = self.admission.admit(CLIENT)
            assert usage is not None and usage._slot is not None
            if self.admission.refusal(usage) is not None:
                raise InvariantViolation("a client of an earlier session still counts")
            session = self.engine.session(secure, CLIENT, usage.meter)
        session, out = self.exchange(session, pieces)
        if self.admission is not None and usage is not None:
            usage.leave()
        session.closed()
        if any(self.attempts.held.values()):
            raise InvariantViolation(f"slots are held after the session has ended: {self.attempts.held}")
        if not self.reply_pattern.fullmatch(out):
            raise InvariantViolation(f"not replies: {out!r}")
        return out, session.next_action, session.stage

    def exchange(self, session: Session, pieces: list[bytes]) -> tuple[Session, bytes]:
        """Send the pieces, wait whenever the session delays a reply; return all that it sends.

        Return also the last session, which another client has that XCLIENT has named.
        """
        check_invariants, outputs = self.check_invariants, []
        left = MAX_RESUMES
        if self.kind.secure:
            session.check_implicit_tls()
            with_lookups(session, b"")
            if session.next_action is not NextAction.READ:
                return session, b""
            session.secured()
        out = with_lookups(session, session.greet())
        check_invariants(session, out)
        outputs.append(out)
        for piece in [*pieces, b""]:
            while session.next_action in WAITS:
                if session.next_action is NextAction.LIMIT_INPUT:
                    session.input_limited(session.input_fault.window if session.input_fault else 0)
                    continue
                if session.next_action is NextAction.CHANGE_CLIENT:
                    session = self.engine.session_after(session)
                    out = with_lookups(session, session.greet_named_client())
                else:
                    self.now += session.wait
                    out = with_lookups(session, session.resume())
                check_invariants(session, out)
                outputs.append(out)
                left -= 1
                if not left:
                    raise InvariantViolation("the session delays its replies without end")
            if session.next_action is NextAction.START_TLS:
                session.secured()
            elif session.next_action not in (NextAction.READ, NextAction.READ_SLOWLY):
                break
            if piece:
                out = with_lookups(session, session.receive(piece))
                check_invariants(session, out)
                outputs.append(out)
        return session, b"".join(outputs)

    def check_invariants(self, session: Session, out: bytes) -> None:
        """Raise InvariantViolation if the session is not as it must be after each piece."""
        if out and self.kind.sends_whole_replies and not REPLIES.fullmatch(out):
            raise InvariantViolation(f"not a reply: {out!r}")
        if (
            session.next_action is NextAction.READ
            and len(session.unprocessed) > MAX_COMMAND_LINE
            and len(session.unprocessed) > self.max_line
        ):
            raise InvariantViolation(f"keeps {len(session.unprocessed)} octets of a command")
        if session.body is not None and len(session.body.tail) > 4:
            raise InvariantViolation(f"keeps {len(session.body.tail)} octets of a body")
        if not session.in_body and not session.stage and session.recipients and session.engine.config.strict:
            raise InvariantViolation("recipients without a transaction")
        if session.counted_events:
            if not 0 <= min(session.counted_events) <= max(session.counted_events) < EVENT_COUNT:
                raise InvariantViolation(f"unknown events: {session.counted_events}")
            session.counted_events.clear()


@cache
def harness(number: int) -> Harness:
    """Return the harness of a kind of the list, which is made once."""
    return Harness(LISTENER_KINDS[number])


def run_input(listener: Harness, data: bytes, pieces: list[bytes], seed: int) -> bytes:
    """Run an input whole and in pieces, and return the output of the first session.

    Raises InvariantViolation, and every exception of the program.
    """
    whole = listener.run_sessions([data] if data else [], seed)
    parts = listener.run_sessions(pieces, seed, deferred=True)
    if listener.kind.same_for_all_pieces and whole != parts:
        raise InvariantViolation(f"whole: {whole!r}, in pieces {pieces!r}: {parts!r}")
    first = whole[0]
    assert isinstance(first, bytes)
    return first


@dataclass
class Finding:
    """An input that violates an invariant."""

    kind: str
    block: int
    data: bytes
    what: str


@dataclass
class InputResult:
    """The result of a run, or of a block of it."""

    inputs: int = 0
    slowest: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    """The processor time."""
    peak: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The peak memory of each process in KiB: after its first block, and after its last one."""

    def add(self, block: InputResult) -> None:
        """Add the result of a block."""
        self.inputs += block.inputs
        self.slowest = max(self.slowest, block.slowest)
        self.findings += block.findings
        self.seconds += block.seconds
        for pid, (first, last) in block.peak.items():
            self.peak[pid] = self.peak.get(pid, (first, last))[0], last

    @property
    def growth(self) -> int:
        """The largest growth of the peak memory of a process since its first block, in KiB."""
        return max((last - first for first, last in self.peak.values()), default=0)


def run_block(seed: int, number: int, count: int = BLOCK_INPUTS) -> InputResult:
    """Run a block of inputs for all kinds of listeners in turn, and for a new random kind."""
    source, result = Random(f"{seed} {number}"), InputResult()
    new_harness = Harness(random_kind(source))
    clock = time.process_time
    began = last = clock()
    for turn in range(number * BLOCK_INPUTS, number * BLOCK_INPUTS + count):
        index = turn % (len(LISTENER_KINDS) + 1)
        listener = new_harness if index == len(LISTENER_KINDS) else harness(index)
        phrases = generate(source, listener.kind.phrases)
        data, pieces = b"".join(phrases), split(source, phrases)
        seconds_taken = inf
        for _ in range(3):  # a pause of the machine counts as our processor time
            try:
                run_input(listener, data, pieces, turn)
            except Exception as error:
                result.findings.append(Finding(listener.kind.name, number, data, f"{error!r}"))
            last, before = clock(), last
            seconds_taken = min(seconds_taken, last - before)
            if seconds_taken <= MAX_CPU_SECONDS:
                break
        else:
            what = f"took at least {seconds_taken:.3f} s in each of three runs"
            result.findings.append(Finding(listener.kind.name, number, data, what))
        result.slowest = max(result.slowest, seconds_taken)
    result.inputs = count
    result.seconds = last - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result.peak[os.getpid()] = peak, peak
    return result


def corpus_files() -> list[Path]:
    """Return the files of the corpus."""
    return sorted(CORPUS.glob("*.txt"))


def select_corpus(count: int, max_files: int, seed: int) -> dict[str, bytes]:
    """Generate `count` inputs, and return those with the most different pairs of successive replies.

    The keys are numbers, the names of the files in the corpus.
    """
    source = Random(seed)
    found: list[tuple[bytes, set[tuple[str, ...]]]] = []
    known: set[tuple[str, ...]] = set()
    for number in range(count):
        kind = number % len(LISTENER_KINDS)
        data = b"".join(generate(source, LISTENER_KINDS[kind].phrases))
        output = run_input(harness(kind), data, [data], number)
        codes = [line[:9].decode().rstrip() for line in output.splitlines() if line[3:4] == b" "]
        reply_pairs: set[tuple[str, ...]] = {(str(kind), *pair) for pair in pairwise(codes)}
        if reply_pairs - known and len(data) < 600:
            known |= reply_pairs
            found.append((data, reply_pairs))
    kept: dict[str, bytes] = {}
    while len(kept) < max_files and found:
        data, reply_pairs = max(found, key=lambda one: len(one[1]) / (40 + len(one[0])))
        kept[f"{len(kept):02}"] = data
        found = [(other, left - reply_pairs) for other, left in found if left - reply_pairs]
    return kept
