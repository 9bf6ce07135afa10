"""Random inputs for a session without a socket, and what must hold whatever they are.

Nothing is raised; replies are whole lines of printable ASCII, 512 octets at most (RFC 5321 4.5.3.1.5); at
most LINE octets of a command and four of a body are kept, of AUTH AUTH_LINE; and neither replies nor what
is left behind depend on the cuts, or on where the memory is.

A run consists of blocks, and a block is made from the run's seed and its own number alone: it is the same
whoever makes it, and can be made again.
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

from blackhole.net.admission import AdmissionControl
from blackhole.net.client_table import ClientTable, ClientTableView
from blackhole.rules.attempt_store import Answer, Record, Slot, Update
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.retries import EVENTS
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import AUTH_LINE, LINE, Session, SMTPEngine
from blackhole.smtp.state import NOTED
from blackhole.smtp.violations import ALWAYS_INSPECT
from tests.elsewhere import Told, fetched
from tests.fuzz.kinds import BODIES, GREETED, KINDS, Kind, mixed

CORPUS = Path(__file__).resolve().parent.parent / "corpus"

BLOCK = 1000
"""Inputs in a block."""

VALID = re.compile(rb"(?:[2-5][0-9][0-9](?:[ -][ -~]{0,506})?\r\n)*")
"""Any number of reply lines."""

CUT_OFF = re.compile(VALID.pattern + rb"(?:[2-5][ -~]{0,509}\r?)?")
"""The same, with a fault before the last one was over."""

CELLS = NOTED + len(EVENTS)
"""Counters of replies, of violations, and of what came again."""

SLOW = 0.1
"""Seconds of processor time that no input may take."""

RESUMES = 20000
"""How often a session may want to wait, in one input."""

CLIENT = "192.0.2.77"


def damaged(dice: Random, said: bytes) -> bytes:
    """Octets with something broken, or doubled."""
    draw = dice.random
    place, what = int(draw() * len(said)), draw()
    if what < 0.3:
        return said[:place] + bytes((int(draw() * 256),)) + said[place:]
    if what < 0.5:
        return said[:place] + said[place + 1 + int(draw() * 8) :]
    if what < 0.7:
        return said[:place] + bytes((int(draw() * 256),)) + said[place + 1 :]
    if what < 0.8:
        return said[:place] + said[place : place + 40] * (2 + int(draw() * 3)) + said[place:]
    if what < 0.9:
        return said[place:] + said[:place]
    return said[:place] + dice.randbytes(int(draw() * 30)) + said[place:]


def generate(dice: Random, words: tuple[bytes, ...]) -> list[bytes]:
    """An input: words, and in half of them something broken."""
    draw = dice.random
    said = [GREETED] if draw() < 0.5 else []
    for _ in range(1 + int(draw() * 8)):
        said.append(words[int(draw() * len(words))])
        if said[-1].endswith(b"DATA\r\n") and draw() < 0.7:
            said.append(BODIES[int(draw() * len(BODIES))])
    while draw() < 0.5:
        place = int(draw() * len(said))
        if draw() < 0.1:
            said = said[place:] + said[:place]
        else:
            said[place] = damaged(dice, said[place])
    return said


def cut(dice: Random, words: list[bytes]) -> list[bytes]:
    """The same octets in pieces: between words, as clients do; anywhere, as networks do; or one by one."""
    draw = dice.random
    how, said = draw(), b"".join(words)
    if how < 0.6:
        pieces, last = [], b""
        for word in words:
            last += word
            if draw() < 0.9:
                pieces.append(last)
                last = b""
        return [piece for piece in (*pieces, last) if piece]
    if how < 0.97:
        places = sorted({int(draw() * len(said)) for _ in range(1 + int(draw() * 6))})
        ends = zip([0, *places], [*places, len(said)], strict=True)
        return [said[start:end] for start, end in ends if start < end]
    return [said[place : place + 1] for place in range(min(len(said), 300))] + [said[300:]] * (
        len(said) > 300
    )


class Broken(AssertionError):
    """Something does not hold."""


class Kept:
    """A memory that can be set back, and answers at once."""

    def __init__(self) -> None:
        self.known: dict[int, Record] = {}

    def clear(self) -> None:
        self.known.clear()

    def key_hash(self, key: Hashable) -> int:
        return crc32(repr(key).encode())

    def contains(self, key_hash: int) -> bool:
        return self.known.get(key_hash, (0,))[0] > 0

    def add(self, key_hash: int, count: int, now: float) -> bool:
        if self.contains(key_hash):
            return False
        self.known[key_hash] = count, now, now
        return True

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        self.known[key_hash], answer = change(self.known.get(key_hash, (0, now, now)), now)
        return answer

    def sweep(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        for key_hash in self.known:
            yield self.update_hash(key_hash, now, change)


class Note(Told):
    """An answer that has to be fetched, and what was asked about."""

    def __init__(self, known: object, key: bytes) -> None:
        super().__init__(known)
        self.key = key


class Notes:
    """A memory that can be set back. It has no answer for one key of eight."""

    def __init__(self) -> None:
        self.known: dict[bytes, Record] = {}
        self.present: Counter[bytes] = Counter()
        self.far = False
        """Its answers have to be fetched."""

    def clear(self) -> None:
        self.known.clear()
        self.present.clear()

    def update(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> Answer | Note | None:
        self.known[key], answer = change(self.known.get(key, (0, now, now)), now)
        return self._told(answer, key)

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | Note | None:
        full = self.present[key] >= limit
        told = self._told(full, key)
        if told is False or (isinstance(told, Note) and told.known is False):
            self.present[key] += 1
        return told

    def release(self, place: Slot) -> None:
        if isinstance(place, bytes):
            self.present[place] -= 1
        elif isinstance(place, Note) and place.known is False:
            self.present[place.key] -= 1

    def _told(self, answer: Answer, key: bytes) -> Answer | Note | None:
        known = answer if crc32(key) % 8 else None
        return Note(known, key) if self.far else known


class Stand:
    """A kind at work: its engine, and the world around it, which can be set back."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.notes = Notes()
        self.past = Kept()
        self.now = self.minute = 0.0
        trace = (lambda session, way, line: None) if kind.traced else None
        self.engine = SMTPEngine(
            kind.config,
            Random(7),
            trace,
            RuleEnvironment(lambda: self.now, self.notes, self.past, lambda: self.now),
        )
        self.guard: AdmissionControl | None = None
        if kind.rates is not None:
            self.ledger = ClientTableView(ClientTable(1), 0, tuple, lambda: self.minute)
            self.guard = AdmissionControl(kind.rates, self.ledger)
        self.most = AUTH_LINE if kind.config.auth else LINE
        self.whole = kind.whole
        self.visits = 2 if kind.remembers else 1
        """What is remembered shows when somebody comes again."""

    def hear(self, pieces: list[bytes], seed: int, far: bool = False) -> list[object]:
        """What new sessions answer, one after the other; how and at what stage they are left.

        `far` is the memory where its answers have to be fetched.
        """
        engine = self.engine
        engine.random_source.seed(seed)
        engine._sessions = ALWAYS_INSPECT * (seed & 1)  # every other input is looked at closely
        self.notes.clear()
        self.notes.far = far
        self.past.clear()
        self.now = float(seed % 3600)
        if self.guard is not None:
            self.minute += 60.0
            self.ledger.sweep()
        heard: list[object] = []
        for _ in range(self.visits):
            heard += self.visit(pieces)
            engine.sizes.clear()
            self.now += 400.0
        return heard

    def visit(self, pieces: list[bytes]) -> tuple[bytes, NextAction, int]:
        """One session, from its beginning to its end, and what must hold behind it."""
        guest, secure = None, self.kind.secure
        if self.guard is None:
            session = self.engine.session(secure, CLIENT)
        else:
            guest = self.guard.admit(CLIENT)
            assert guest is not None and guest._place is not None
            if self.guard.refusal(guest) is not None:
                raise Broken("somebody was left behind")
            session = self.engine.session(secure, CLIENT, guest.meter)
        out = self.converse(session, pieces)
        if self.guard is not None and guest is not None:
            guest.leave()
        if session.evaluator is not None:
            session.evaluator.leave()
        if any(self.notes.present.values()):
            raise Broken(f"who has left still counts: {self.notes.present}")
        if not (VALID if self.whole else CUT_OFF).fullmatch(out):
            raise Broken(f"not replies: {out!r}")
        return out, session.next_action, session.stage

    def converse(self, session: Session, pieces: list[bytes]) -> bytes:
        """Say it, and wait as long as the session wants; all that is answered."""
        check, heard = self.check, []
        left = RESUMES
        if self.kind.secure:
            session.check_implicit_tls()
            fetched(session, b"")
            if session.next_action is not NextAction.READ:
                return b""
            session.secured()
        out = fetched(session, session.greet())
        check(session, out)
        heard.append(out)
        for piece in [*pieces, b""]:
            while session.next_action is NextAction.SLEEP:
                self.now += session.wait
                out = fetched(session, session.resume())
                check(session, out)
                heard.append(out)
                left -= 1
                if not left:
                    raise Broken("waits for ever")
            if session.next_action is NextAction.START_TLS:
                session.secured()
            elif session.next_action is not NextAction.READ:
                break
            if piece:
                out = fetched(session, session.receive(piece))
                check(session, out)
                heard.append(out)
        return b"".join(heard)

    def check(self, session: Session, out: bytes) -> None:
        """What must hold after each piece."""
        if out and self.whole and not VALID.fullmatch(out):
            raise Broken(f"not a reply: {out!r}")
        if (
            session.next_action is NextAction.READ
            and len(session._rest) > LINE
            and len(session._rest) > self.most
        ):
            raise Broken(f"keeps {len(session._rest)} octets of a command")
        if len(session._tail) > 4:
            raise Broken(f"keeps {len(session._tail)} octets of a body")
        if not session.in_body and not session.stage and session.recipients and session.engine.config.strict:
            raise Broken("recipients without a transaction")
        if session.counted_events:
            if not 0 <= min(session.counted_events) <= max(session.counted_events) < CELLS:
                raise Broken(f"counted where there is nothing to count: {session.counted_events}")
            session.counted_events.clear()


@cache
def stand(number: int) -> Stand:
    """A kind of the list, made once."""
    return Stand(KINDS[number])


def attempt(there: Stand, said: bytes, pieces: list[bytes], seed: int) -> bytes:
    """Put an input to a stand, whole and in pieces; what was heard. Raises Broken, or whatever comes."""
    whole = there.hear([said] if said else [], seed)
    parts = there.hear(pieces, seed, far=True)
    if there.kind.even and whole != parts:
        raise Broken(f"whole: {whole!r}, in pieces {pieces!r}: {parts!r}")
    first = whole[0]
    assert isinstance(first, bytes)
    return first


@dataclass
class Finding:
    """An input that broke something."""

    kind: str
    block: int
    said: bytes
    what: str


@dataclass
class Done:
    """What a run, or a block of one, came to."""

    inputs: int = 0
    slowest: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    """Of processor time."""
    peak: dict[int, tuple[int, int]] = field(default_factory=dict)
    """KiB of memory that each process had at most: after its first block, and after its last one."""

    def add(self, block: Done) -> None:
        """One more block."""
        self.inputs += block.inputs
        self.slowest = max(self.slowest, block.slowest)
        self.findings += block.findings
        self.seconds += block.seconds
        for pid, (first, last) in block.peak.items():
            self.peak[pid] = self.peak.get(pid, (first, last))[0], last

    @property
    def grown(self) -> int:
        """KiB by which the peak of a process has grown since its first block, at most."""
        return max((last - first for first, last in self.peak.values()), default=0)


def run(seed: int, number: int, count: int = BLOCK) -> Done:
    """A block: inputs for all kinds in turn, and for one that is new each time."""
    dice, done = Random(f"{seed} {number}"), Done()
    novel = Stand(mixed(dice))
    clock = time.process_time
    began = last = clock()
    for turn in range(number * BLOCK, number * BLOCK + count):
        which = turn % (len(KINDS) + 1)
        there = novel if which == len(KINDS) else stand(which)
        words = generate(dice, there.kind.words)
        said, pieces = b"".join(words), cut(dice, words)
        took = inf
        for _ in range(3):  # a machine that stands still for a moment counts it as ours
            try:
                attempt(there, said, pieces, turn)
            except Exception as error:
                done.findings.append(Finding(there.kind.name, number, said, f"{error!r}"))
            last, before = clock(), last
            took = min(took, last - before)
            if took <= SLOW:
                break
        else:
            done.findings.append(Finding(there.kind.name, number, said, f"took {took:.3f} s, three times"))
        done.slowest = max(done.slowest, took)
    done.inputs = count
    done.seconds = last - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done.peak[os.getpid()] = peak, peak
    return done


def corpus() -> list[Path]:
    """Inputs that were kept."""
    return sorted(CORPUS.glob("*.txt"))


def collect(count: int, most: int, seed: int) -> dict[str, bytes]:
    """Of so many inputs a few that lead, together, to as many different pairs of successive replies
    as they can, by number."""
    dice = Random(seed)
    found: list[tuple[bytes, set[tuple[str, ...]]]] = []
    known: set[tuple[str, ...]] = set()
    for number in range(count):
        kind = number % len(KINDS)
        said = b"".join(generate(dice, KINDS[kind].words))
        heard = attempt(stand(kind), said, [said], number)
        codes = [line[:9].decode().rstrip() for line in heard.splitlines() if line[3:4] == b" "]
        pairs = {(str(kind), *pair) for pair in pairwise(codes)}
        if pairs - known and len(said) < 600:
            known |= pairs
            found.append((said, pairs))
    kept: dict[str, bytes] = {}
    while len(kept) < most and found:
        said, pairs = max(found, key=lambda one: len(one[1]) / (40 + len(one[0])))
        kept[f"{len(kept):02}"] = said
        found = [(other, left - pairs) for other, left in found if left - pairs]
    return kept
