"""Random inputs for a session without a socket, and what must hold whatever they are.

Nothing is raised; replies are whole lines of printable ASCII, 512 octets at most (RFC 5321 4.5.3.1.5); at
most LINE octets of a command and four of a body are kept; and replies do not depend on the cuts.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from blackhole.smtp import Config, Engine, Then
from blackhole.smtp.session import LINE, Session
from blackhole.smtp.state import Limits

CORPUS = Path(__file__).resolve().parent.parent / "corpus"

WORDS = (
    b"HELO c.test\r\n", b"EHLO c.test\r\n", b"ehlo [192.0.2.1]\n", b"HELO\r\n",
    b"MAIL FROM:<a@b.test>\r\n", b"MAIL FROM:<>\r\n", b"MAIL FROM: a@b.test SIZE=5\r\n",
    b"MAIL FROM:<a@b.test> SIZE=99999\r\n",
    b"MAIL FROM:<a@b.test> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=q+2Bq\r\n",
    b"MAIL FROM:<\xc3\xb1@b.test> SMTPUTF8\r\n", b"RCPT TO:<c@d.test>\r\n",
    b"RCPT TO:<\xc3\xb6@d.test>\r\n", b"RCPT TO:<postmaster>\r\n", b'RCPT TO:<"a > \\"b"@d.test>\r\n',
    b"RCPT TO:<c@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c@d.test\r\n",
    b"RCPT TO:<c@d.test> FUTURE=1\r\n", b"RCPT\r\n", b"DATA\r\n", b"data\n", b"DATA x\r\n", b".\r\n",
    b"\r\n.\r\n", b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"..\r\n", b".", b"Subject: hello\r\n",
    b"hello\r\n\r\nhello", b"\r\n", b"\n", b"\r", b"\0", b"\xff", b"\xff\r\n", b" ", b"\t",
    b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@d.test>\r\nDATA\r\n",
    b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nhello\r\n.\r\n", b"DATA\r\n.\r\n", b"RSET\r\n",
    b"RSET x\r\n", b"NOOP\r\n", b"VRFY c\r\n", b"EXPN c\r\n", b"HELP\r\n", b"HELP MAIL\r\n", b"QUIT\r\n",
    b"AUTH PLAIN AA==\r\n", b"BDAT 5 LAST\r\n", b"BDAT 99999999999999999999999\r\n", b"STARTTLS\r\n",
    b"STARTTLS x\r\n", b"XYZZY\r\n", b"TURN\r\n", b"GET / HTTP/1.1\r\n", b"Host: x\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"PROXY TCP4 1.2.3.4 5.6.7.8 9 25\r\n", b"x" * 200, b"x" * 2046 + b"\r\n",
    b"x" * 2100 + b"\r\n", b"NOOP " + b"y" * 2041 + b"\r\n", b"NOOP\r\n" * 150,
)  # fmt: skip
"""What conversations are made of."""


class Kind(NamedTuple):
    """A way to configure a listener."""

    config: Config
    even: bool = True
    """Replies do not depend on the cuts: nothing is refused for having come too early."""


LIMITS = Limits(soft_errors=3, errors=6, junk=5, recipients=2, messages=2)

KINDS = (
    Kind(Config(hostname="mx.test", message_size_limit=1000)),
    Kind(Config(hostname="mx.test", mode="random")),
    Kind(Config(hostname="mx.test", mode="bounce", message_size_limit=60)),
    Kind(Config(hostname="mx.test", mode="offline")),
    Kind(Config(hostname="mx.test", mode="unavailable")),
    Kind(Config(hostname="mx.test", delay=(0.5, 1.5))),
    Kind(Config(hostname="mx.test", message_size_limit=40, limits=LIMITS)),
    Kind(Config(hostname="mx.test", bare_newline="count")),
    Kind(Config(hostname="mx.test", bare_newline="reject")),
    Kind(Config(hostname="mx.test", strict=True, limits=LIMITS), even=False),
    Kind(Config(hostname="mx.test", starttls=True), even=False),
)

VALID = re.compile(rb"(?:[2-5][0-9][0-9](?:[ -][ -~]{0,506})?\r\n)*")
"""Any number of reply lines."""

SLOW = 0.1
"""Seconds of processor time that no input may take."""


def generate(dice: Random) -> bytes:
    """An input: words, and in half of them something broken."""
    draw = dice.random
    said = b"".join([WORDS[int(draw() * len(WORDS))] for _ in range(1 + int(draw() * 9))])
    while draw() < 0.5:
        place, what = int(draw() * len(said)), draw()
        if what < 0.3:
            said = said[:place] + bytes((int(draw() * 256),)) + said[place:]
        elif what < 0.5:
            said = said[:place] + said[place + 1 + int(draw() * 8) :]
        elif what < 0.7:
            said = said[:place] + bytes((int(draw() * 256),)) + said[place + 1 :]
        elif what < 0.8:
            said = said[:place] + said[place : place + 40] * (2 + int(draw() * 3)) + said[place:]
        elif what < 0.9:
            said = said[place:] + said[:place]
        else:
            said = said[:place] + dice.randbytes(int(draw() * 30)) + said[place:]
    return said


def cut(dice: Random, said: bytes) -> list[bytes]:
    """The same octets in pieces."""
    if dice.random() < 0.1:
        return [said[place : place + 1] for place in range(min(len(said), 400))] + [said[400:]] * (
            len(said) > 400
        )
    places = sorted({int(dice.random() * len(said)) for _ in range(1 + int(dice.random() * 6))})
    return [
        said[start:end] for start, end in zip([0, *places], [*places, len(said)], strict=True) if start < end
    ]


class Broken(AssertionError):
    """Something does not hold."""


def check(session: Session, out: bytes) -> None:
    """What must hold after each piece."""
    if out and not VALID.fullmatch(out):
        raise Broken(f"not a reply: {out!r}")
    if session.then is Then.LISTEN and len(session._rest) > LINE:
        raise Broken(f"keeps {len(session._rest)} octets of a command")
    if len(session._tail) > 4:
        raise Broken(f"keeps {len(session._tail)} octets of a body")
    if not session.in_body and not session.stage and session.recipients and session.engine.config.strict:
        raise Broken("recipients without a transaction")


def hear(engine: Engine, pieces: list[bytes]) -> tuple[bytes, Then, int]:
    """What a new session answers; how and at what stage it is left."""
    session = engine.session()
    out = session.greet()
    check(session, out)
    heard = [out]
    for piece in pieces:
        while session.then is Then.WAIT:
            out = session.resume()
            check(session, out)
            heard.append(out)
        if session.then is Then.SECURE:
            session.secured()
        elif session.then is not Then.LISTEN:
            break
        out = session.receive(piece)
        check(session, out)
        heard.append(out)
        session.said.clear()
    while session.then is Then.WAIT:
        out = session.resume()
        check(session, out)
        heard.append(out)
    return b"".join(heard), session.then, session.stage


@dataclass
class Done:
    """What a run came to."""

    inputs: int = 0
    slowest: float = 0.0
    findings: list[tuple[int, bytes, str]] = field(default_factory=list)
    """The number of the kind, the input, and what did not hold."""
    seconds: float = 0.0


class Bench:
    """An engine of each kind, made once."""

    def __init__(self) -> None:
        self.engines = [Engine(kind.config, Random(7)) for kind in KINDS]

    def attempt(self, number: int, said: bytes, pieces: list[bytes], seed: int) -> bytes:
        """Put an input to one kind, whole and in pieces; what was heard. Raises Broken, or whatever comes."""
        engine = self.engines[number]
        engine.dice.seed(seed)
        whole = hear(engine, [said] if said else [])
        engine.dice.seed(seed)
        parts = hear(engine, pieces)
        if KINDS[number].even and whole != parts:
            raise Broken(f"whole: {whole!r}, in pieces {pieces!r}: {parts!r}")
        return whole[0]


def run(count: int, seed: int, until: float = float("inf")) -> Done:
    """So many inputs, or as many as fit before `until` of the processor's time."""
    bench, dice, done = Bench(), Random(seed), Done()
    kinds = len(KINDS)
    clock = time.process_time
    began = last = clock()
    for number in range(count):
        said = generate(dice)
        try:
            bench.attempt(number % kinds, said, cut(dice, said), number)
        except Exception as error:
            done.findings.append((number % kinds, said, f"{error!r}"))
        done.inputs += 1
        now = clock()
        if now - last > done.slowest:
            done.slowest = now - last
            if done.slowest > SLOW:
                done.findings.append((number % kinds, said, f"took {now - last:.3f} s"))
        last = now
        if now > until:
            break
    done.seconds = last - began
    return done


def corpus() -> list[Path]:
    """Inputs that were kept."""
    return sorted(CORPUS.glob("*.txt"))


def collect(count: int, most: int, seed: int) -> dict[str, bytes]:
    """Of so many inputs a few that lead, together, to as many different pairs of successive replies
    as they can, by number."""
    bench, dice = Bench(), Random(seed)
    found: list[tuple[bytes, set[tuple[str, ...]]]] = []
    known: set[tuple[str, ...]] = set()
    for number in range(count):
        said, kind = generate(dice), number % len(KINDS)
        heard = bench.attempt(kind, said, [said], number)
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
