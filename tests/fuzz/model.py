"""A model of the SMTP transaction, written from RFC 5321 and not from the engine, and random conversations.

The model predicts the code of each reply in the SETTINGS: strict order of commands, lenient order,
lenient order with a limit of recipients, and LMTP. All that a transaction stores shows in a later reply: the
order of commands, the number of recipients, SMTPUTF8, the size of the body.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from blackhole.addresses import NetworkSet
from blackhole.rules.evaluator import RulePolicy
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.extensions import choose
from blackhole.smtp.policy import NO_POLICY, ListenerPolicy
from blackhole.smtp.replies import NextAction
from blackhole.smtp.state import LMTP, SMTP, ClientLimits, ListenerConfig

BLOCK_CONVERSATIONS = 1000
"""Conversations in a block."""

MAX_RECIPIENTS = 3
"""The number of recipients where it is limited."""

MAX_SIZE = 100
"""The maximum size of a message in octets."""

EARLY_REPLY = 30
"""Octets of a message after which it is refused, where that is so."""

CLIENT_ADDRESS = "127.0.0.1"
"""The address of the client, which may name others with XCLIENT."""

COMMANDS_BY_NAME = {
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
    "mail binary": b"MAIL FROM:<a@b.test> BODY=BINARYMIME\r\n",
    "bdat": b"BDAT 40\r\n" + b"RSET\r\n.\r\n\0\n" + b"x" * 29,
    "bdat empty": b"BDAT 0\r\n",
    "bdat large": b"BDAT 101\r\n" + b"x" * 101,
    "bdat last": b"BDAT 6 LAST\r\nQUIT\r\n",
    "bdat empty last": b"BDAT 0 LAST\r\n",
    "bdat large last": b"BDAT 101 LAST\r\n" + b"x" * 101,
    "bdat wrong": b"BDAT 6 FIRST\r\nQUIT\r\n",
    "xclient": b"XCLIENT ADDR=192.0.2.9\r\n",
    "xclient unavailable": b"xclient addr=[unavailable] HELO=c.test\r\n",
    "xclient wrong": b"XCLIENT ADDR=192.0.2\r\n",
    "xforward": b"XFORWARD ADDR=IPV6:2001:db8::9\r\n",
    "xforward wrong": b"XFORWARD LOGIN=a\r\n",
}
BODIES_BY_NAME = {
    "empty": b".\r\n",
    "short": b"Subject: x\r\n\r\n..\n.\nRSET\r\n.\r\n",
    "too large": b"y" * MAX_SIZE + b"\r\n.\r\n",
    "just": b"y" * (MAX_SIZE - 2) + b"\r\n.\r\n",
}

FIXED_REPLIES = {
    "ehlo nobody": "501", "noop": "250", "vrfy": "252", "expn": "252", "help": "214", "unknown": "500",
    "etrn": "502", "rset wrong": "501", "starttls wrong": "501",
}  # fmt: skip
"""The commands that change nothing and always get the same reply."""


class Model:
    """The state of a session that decides which replies it sends."""

    def __init__(
        self, strict: bool = False, max_recipients: int = 0, early_reply: int = 0, lmtp: bool = False
    ) -> None:
        self.strict, self.max_recipients, self.lmtp = strict, max_recipients, lmtp
        self.early_reply = early_reply
        """Octets of a message after which it is refused, before its end; 0: it never is."""
        self.greeted = self.tls = False
        self.body = False
        self.clear()

    def clear(self) -> None:
        """Clear the transaction (RFC 5321 4.1.1.5)."""
        self.octets = 0
        self.chunked = self.chunk_refused = self.binary = False
        self.sender = self.utf8 = False
        self.mail_refused = self.recipient_refused = False
        self.recipients = 0
        self.recipients_sent = 0

    def replies_to(self, name: str) -> list[str]:
        """Return the codes of the replies to a command: of several in LMTP to the last chunk of a message."""
        verb = name.split()[0]
        if verb in ("helo", "ehlo", "lhlo") and (verb == "lhlo") is not self.lmtp:
            return ["500"]
        if name in FIXED_REPLIES:
            return [FIXED_REPLIES[name]]
        count = self.reply_count if verb == "bdat" and name.endswith("last") else 1
        return [str(getattr(self, "mail" if name == "null mail" else verb)(name))] * count

    @property
    def reply_count(self) -> int:
        """The number of replies to a message (RFC 2033 4.2)."""
        return self.recipients or 1 if self.lmtp else 1

    def ehlo(self, name: str) -> int:
        self.clear()
        self.greeted = True
        return 250

    helo = lhlo = ehlo

    def rset(self, name: str) -> int:
        self.clear()
        return 250

    def mail(self, name: str) -> int:
        code = self.mail_code(name)
        self.mail_refused = code >= 400
        return code

    def mail_code(self, name: str) -> int:
        if self.strict and (not self.greeted or self.sender):
            return 503
        if name in ("mail utf8 undeclared", "mail wrong", "mail unknown"):
            return {"undeclared": 553, "wrong": 501, "unknown": 555}[name.split()[-1]]
        self.clear()
        if name == "mail too large":
            return 552
        self.sender, self.utf8, self.binary = True, name == "mail utf8", name == "mail binary"
        return 250

    def rcpt(self, name: str) -> int:
        code = self.rcpt_code(name)
        self.recipient_refused |= code >= 400
        return code

    def rcpt_code(self, name: str) -> int:
        if self.strict and (not self.sender or self.chunked):
            return 503
        if name != "rcpt":
            if name == "rcpt wrong":
                return 501
            if not self.utf8:
                return 553
        if self.has_no_sender:
            return 503
        self.recipients_sent += 1
        if self.max_recipients and self.recipients_sent > self.max_recipients:
            return 452
        self.recipients += 1
        return 250

    @property
    def has_no_sender(self) -> bool:
        """Whether MAIL was refused, and nothing before it is left of the transaction."""
        return self.mail_refused and not (self.sender or self.recipients)

    def bdat(self, name: str) -> int:
        """Return the code of the reply behind a chunk (RFC 3030 2)."""
        size = {"bdat": 40, "large": 101, "last": 6, "wrong": 6}.get(
            name.removesuffix(" last").split()[-1], 0
        )
        size = 6 if name == "bdat last" else size
        last, code = name.endswith("last"), 250
        self.octets += size
        in_order = not self.strict or (self.sender and self.recipients)
        in_order = in_order and (self.recipients > 0 or not self.lmtp)
        if size and not self.chunk_refused and 0 < self.early_reply <= self.octets:
            code = 452
        elif self.chunk_refused or not in_order:
            code = 503
        elif name == "bdat wrong":
            code = 501
        elif self.has_no_sender or (self.recipient_refused and not self.recipients):
            code = 503
        elif self.octets > MAX_SIZE:
            code = 552
        self.chunked = self.chunked or code == 250 or self.sender or self.recipients > 0
        self.chunk_refused = self.chunked and (self.chunk_refused or code != 250)
        self.octets *= self.chunked
        if last and self.chunked:
            self.clear()
        return code

    def data(self, name: str) -> int:
        if self.chunked or (self.strict and not (self.sender and self.recipients and not self.binary)):
            return 503
        if self.lmtp and not self.recipients:
            return 503
        if name == "data wrong":
            return 501
        if self.has_no_sender or (self.recipient_refused and not self.recipients):
            return 503
        self.body = True
        return 354

    def replies_to_end(self, body: str) -> list[str]:
        """Return the codes of the replies to a message, which clears the transaction in any case."""
        count = self.reply_count
        self.body = False
        self.clear()
        if 0 < self.early_reply <= len(BODIES_BY_NAME[body]) - len(b".\r\n"):
            return ["452"] * count
        return ["552" if body == "too large" else "250"] * count

    @property
    def in_transaction(self) -> bool:
        """Whether a command of a transaction was accepted."""
        return self.sender or self.recipients > 0 or self.chunked

    def xclient(self, name: str) -> int:
        """Return the code of the reply to XCLIENT, after which everything begins anew but TLS."""
        if self.in_transaction:
            return 503
        if name == "xclient wrong":
            return 501
        self.clear()
        self.greeted = False
        return 220

    def xforward(self, name: str) -> int:
        if self.in_transaction:
            return 503
        return 501 if name == "xforward wrong" else 250

    def starttls(self, name: str) -> int:
        if self.tls:
            return 503
        self.clear()
        self.greeted, self.tls = False, True
        return 220


SETTINGS: tuple[dict[str, Any], ...] = (
    {"strict": True},
    {},
    {"max_recipients": MAX_RECIPIENTS},
    {"early_reply": EARLY_REPLY},
    {"early_reply": EARLY_REPLY, "strict": True},
    {"lmtp": True},
    {"early_reply": EARLY_REPLY, "lmtp": True},
)

EARLY_REPLY_RULE = """
[[rule]]
phase = "CONNECT"
reply = "452 4.3.1 Full"
then = {{ reply-after = {octets} }}
"""


def engine_of(
    strict: bool = False,
    max_recipients: int = 0,
    early_reply: int = 0,
    fast_path: bool = True,
    lmtp: bool = False,
) -> SMTPEngine:
    """Return an engine with one of SETTINGS, with the fast path or without."""
    limits = ClientLimits(recipients=max_recipients) if max_recipients else None
    config = ListenerConfig(
        hostname="mx.test",
        service=LMTP if lmtp else SMTP,
        message_size_limit=MAX_SIZE,
        strict=strict,
        starttls=True,
        limits=limits,
        extensions=choose(["default", "BINARYMIME"]),
        xclient_from=NetworkSet([CLIENT_ADDRESS]),
        fast_path=fast_path,
    )
    policy: ListenerPolicy = NO_POLICY
    if early_reply:
        rules = parse_rules(EARLY_REPLY_RULE.format(octets=early_reply), "model")
        policy = RulePolicy(rules, "accept", "127.0.0.1:25", Random(7))
    return SMTPEngine(config, Random(7), policy=policy)


def codes(out: bytes) -> list[str]:
    """Return the codes of the replies; a reply of several lines counts once."""
    return [line[:3].decode() for line in out.splitlines() if line[3:4] == b" "]


@dataclass
class ModelResult:
    """The result of a run, or of a block of it."""

    conversations: int = 0
    commands: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """The processor time."""

    def add(self, block: ModelResult) -> None:
        """Add the result of a block."""
        self.conversations += block.conversations
        self.commands += block.commands
        self.differences += block.differences
        self.examples = [*self.examples, *block.examples][:10]
        self.seconds += block.seconds


def compare_conversation(engine: SMTPEngine, model: Model, source: Random, length: int) -> tuple[int, str]:
    """Hold one conversation; return the number of commands, and how the replies differ from the model's."""
    session = engine.session(client=CLIENT_ADDRESS)
    session.greet()
    names, bodies = tuple(COMMANDS_BY_NAME), tuple(BODIES_BY_NAME)
    sent: list[str] = []
    group, expected = b"", []
    for _ in range(length):
        if model.body:
            name = bodies[int(source.random() * len(bodies))]
            group += BODIES_BY_NAME[name]
            expected += model.replies_to_end(name)
            last = False
        else:
            name = names[int(source.random() * len(names))]
            group += COMMANDS_BY_NAME[name]
            expected += model.replies_to(name)
            # In the same chunk nothing may follow STARTTLS, and in strict order nothing DATA.
            last = expected[-1] == "220" or (model.strict and model.body)
        sent.append(name)
        if not last and source.random() < 0.5:
            continue
        received = codes(session.receive(group))
        while session.next_action in (NextAction.SLEEP, NextAction.CHANGE_CLIENT):
            if session.next_action is NextAction.SLEEP:
                received += codes(session.resume())
            else:
                session = engine.session_after(session)
                received += codes(session.greet_named_client())
        session.counted_events.clear()
        if session.next_action is NextAction.START_TLS:
            session.secured()
        if (
            received != expected
            or session.next_action is not NextAction.READ
            or session.in_body != model.body
        ):
            return len(sent), f"{sent}: got {received}, expected {expected}; {session.next_action}"
        group, expected = b"", []
    return len(sent), ""


def run_block(seed: int, number: int, count: int = BLOCK_CONVERSATIONS) -> ModelResult:
    """Run a block of conversations, which is the same for the same seed and number."""
    kinds = [
        (setting, engine_of(**setting, fast_path=fast_path))
        for fast_path in (True, False)
        for setting in SETTINGS
    ]
    source, result = Random(f"{seed} {number}"), ModelResult()
    began = time.process_time()
    for turn in range(count):
        setting, engine = kinds[turn % len(kinds)]
        commands, difference = compare_conversation(
            engine, Model(**setting), source, 4 + int(source.random() * 24)
        )
        result.conversations += 1
        result.commands += commands
        if difference:
            result.differences += 1
            result.examples = [*result.examples, f"block {number}: {difference}"][:10]
    result.seconds = time.process_time() - began
    return result
