"""A model of the SMTP transaction, written from RFC 5321 and not from the engine, and random talk for both.

The model knows what was said and what must be answered, in three settings: order kept, order not kept, and
order not kept but recipients limited. Whatever a transaction holds shows in a later answer: the order, the
number of recipients, SMTPUTF8, the size of the body.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random

from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import SMTPEngine
from blackhole.smtp.state import ClientLimits, ListenerConfig

BLOCK = 1000
"""Conversations in a block."""

MOST = 3
"""Recipients, where they are limited."""

SIZE = 100
"""Octets of a message."""

SAID = {
    "ehlo": b"EHLO c.test\r\n",
    "helo": b"helo c.test\r\n",
    "ehlo nobody": b"EHLO\r\n",
    "mail": b"MAIL FROM:<a@b.test>\r\n",
    "null mail": b"MAIL FROM:<>\r\n",
    "mail utf8": b"MAIL FROM:<\xc3\xb1@b.test> SMTPUTF8\r\n",
    "mail utf8 undeclared": b"MAIL FROM:<\xc3\xb1@b.test>\r\n",
    "mail sized": b"MAIL FROM:<a@b.test> SIZE=50\r\n",
    "mail too large": b"MAIL FROM:<a@b.test> SIZE=101\r\n",
    "mail wrong": b"MAIL FROM:<a@b.test> SIZE=\xd9\xa3\r\n",
    "mail unknown": b"MAIL FROM:<a@b.test> FUTURE=1\r\n",
    "rcpt": b"RCPT TO:<c@d.test>\r\n",
    "rcpt utf8": b"RCPT TO:<\xc3\xb6@d.test>\r\n",
    "rcpt wrong": b"RCPT TO:\r\n",
    "data": b"DATA\r\n",
    "data wrong": b"DATA now\r\n",
    "rset": b"RSET\r\n",
    "rset wrong": b"RSET x\r\n",
    "noop": b"NOOP x\r\n",
    "vrfy": b"VRFY c\r\n",
    "expn": b"EXPN c\r\n",
    "help": b"HELP DATA\r\n",
    "unknown": b"XYZZY\r\n",
    "etrn": b"ETRN x\r\n",
    "starttls": b"STARTTLS\r\n",
    "starttls wrong": b"STARTTLS x\r\n",
}
BODIES = {
    "empty": b".\r\n",
    "short": b"Subject: x\r\n\r\n..\n.\nRSET\r\n.\r\n",
    "too large": b"y" * SIZE + b"\r\n.\r\n",
    "just": b"y" * (SIZE - 2) + b"\r\n.\r\n",
}

CONSTANT = {
    "ehlo nobody": "501", "noop": "250", "vrfy": "252", "expn": "252", "help": "214", "unknown": "500",
    "etrn": "502", "rset wrong": "501", "starttls wrong": "501",
}  # fmt: skip
"""What changes nothing, and is always answered alike."""


class Model:
    """What a server must know."""

    def __init__(self, strict: bool = False, most: int = 0) -> None:
        self.strict, self.most = strict, most
        self.greeted = self.secure = False
        self.body = False
        self.forget()

    def forget(self) -> None:
        self.sender = self.utf8 = False
        self.recipients = 0
        self.tried = 0

    def answer(self, word: str) -> str:
        """The code of the reply to a command."""
        if word in CONSTANT:
            return CONSTANT[word]
        verb = word.split()[0]
        return str(getattr(self, "mail" if word == "null mail" else verb)(word))

    def ehlo(self, word: str) -> int:
        self.forget()
        self.greeted = True
        return 250

    helo = ehlo

    def rset(self, word: str) -> int:
        self.forget()
        return 250

    def mail(self, word: str) -> int:
        if self.strict and (not self.greeted or self.sender):
            return 503
        if word in ("mail utf8 undeclared", "mail wrong", "mail unknown"):
            return {"undeclared": 553, "wrong": 501, "unknown": 555}[word.split()[-1]]
        self.forget()
        if word == "mail too large":
            return 552
        self.sender, self.utf8 = True, word == "mail utf8"
        return 250

    def rcpt(self, word: str) -> int:
        if self.strict and not self.sender:
            return 503
        if word != "rcpt":
            if word == "rcpt wrong":
                return 501
            if not self.utf8:
                return 553
        self.tried += 1
        if self.most and self.tried > self.most:
            return 452
        self.recipients += 1
        return 250

    def data(self, word: str) -> int:
        if self.strict and not (self.sender and self.recipients):
            return 503
        if word == "data wrong":
            return 501
        self.body = True
        return 354

    def end(self, body: str) -> str:
        """The code of the reply to the end of a message, which forgets it, taken or not."""
        self.body = False
        self.forget()
        return "552" if body == "too large" else "250"

    def starttls(self, word: str) -> int:
        if self.secure:
            return 503
        self.forget()
        self.greeted, self.secure = False, True
        return 220


SETTINGS = ({"strict": True}, {}, {"most": MOST})


def engine(strict: bool = False, most: int = 0) -> SMTPEngine:
    limits = ClientLimits(recipients=most) if most else None
    config = ListenerConfig(
        hostname="mx.test", message_size_limit=SIZE, strict=strict, starttls=True, limits=limits
    )
    return SMTPEngine(config, Random(7))


def codes(out: bytes) -> list[str]:
    """Of the replies, lines that go on left out."""
    return [line[:3].decode() for line in out.splitlines() if line[3:4] == b" "]


@dataclass
class Done:
    conversations: int = 0
    commands: int = 0
    disagreements: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, block: Done) -> None:
        """One more block."""
        self.conversations += block.conversations
        self.commands += block.commands
        self.disagreements += block.disagreements
        self.examples = [*self.examples, *block.examples][:10]
        self.seconds += block.seconds


def converse(machine: SMTPEngine, model: Model, dice: Random, length: int) -> tuple[int, str]:
    """One conversation; how many commands it had, and where the two disagree."""
    session = machine.session()
    session.greet()
    words, names = tuple(SAID), tuple(BODIES)
    spoken: list[str] = []
    group, wanted = b"", []
    for _ in range(length):
        if model.body:
            word = names[int(dice.random() * len(names))]
            group += BODIES[word]
            wanted.append(model.end(word))
            last = False
        else:
            word = words[int(dice.random() * len(words))]
            group += SAID[word]
            wanted.append(model.answer(word))
            # What follows these in one chunk is refused: STARTTLS always, DATA where the order is kept.
            last = wanted[-1] == "220" or (model.strict and model.body)
        spoken.append(word)
        if not last and dice.random() < 0.5:
            continue
        heard = codes(session.receive(group))
        while session.next_action is NextAction.SLEEP:
            heard += codes(session.resume())
        session.counted_events.clear()
        if session.next_action is NextAction.START_TLS:
            session.secured()
        if heard != wanted or session.next_action is not NextAction.READ or session.in_body != model.body:
            return len(spoken), f"{spoken}: {heard} and not {wanted}, {session.next_action}"
        group, wanted = b"", []
    return len(spoken), ""


def run(seed: int, number: int, count: int = BLOCK) -> Done:
    """A block of conversations: the same for the same seed and number."""
    machines = [engine(**setting) for setting in SETTINGS]
    dice, done = Random(f"{seed} {number}"), Done()
    began = time.process_time()
    for turn in range(count):
        which = turn % len(SETTINGS)
        commands, disagreement = converse(
            machines[which], Model(**SETTINGS[which]), dice, 4 + int(dice.random() * 24)
        )
        done.conversations += 1
        done.commands += commands
        if disagreement:
            done.disagreements += 1
            done.examples = [*done.examples, f"block {number}: {disagreement}"][:10]
    done.seconds = time.process_time() - began
    return done
