"""Kinds of listeners that inputs are put to: their configurations, their rules, and what is said to them."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import cache
from random import Random
from typing import NamedTuple

from blackhole.net.admission import client_limits
from blackhole.rules.model import Rule
from blackhole.rules.modes import MODES
from blackhole.rules.scenario import load_rules, profiles
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import Settings
from blackhole.smtp.state import ClientLimits, ListenerConfig

HEARD = (
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
    b"x" * 2100 + b"\r\n", b"NOOP " + b"y" * 2041 + b"\r\n",
)  # fmt: skip
"""What conversations are made of, with whomever."""

FLOOD = (b"NOOP\r\n" * 150,)
"""More commands than get their turn at once."""

GREETED = b"EHLO c.test\r\n"

BODIES = (
    b".\r\n", b"hello\r\n.\r\n", b"Subject: an invoice\r\n\r\nhello\r\n.\r\n", b"..\r\n.\n.x\r\n.\r\n",
    b"X-Blackhole-Mode: bounce\r\n\r\nhello\r\n.\r\n", b"x" * 1100 + b"\r\n.\r\n", b"\xff\0\r\n.\r\nQUIT\r\n",
)  # fmt: skip
"""What follows DATA, more often than not."""

MESSAGE = b"EHLO c.test\r\nMAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n%b\r\n.\r\n"
"""A message from the first word to the last."""


def encoded(*words: bytes) -> bytes:
    return base64.b64encode(b"\0".join(words))


SECRETS = (
    GREETED, GREETED, b"AUTH PLAIN " + encoded(b"", b"user", b"secret") + b"\r\n", b"AUTH PLAIN\r\n",
    encoded(b"", b"user", b"secret") + b"\r\n", b"AUTH PLAIN " + encoded(b"", b"user", b"wrong") + b"\r\n",
    b"AUTH PLAIN " + encoded(b"", b"fail=1", b"") + b"\r\n", b"AUTH LOGIN\r\n", encoded(b"user") + b"\r\n",
    encoded(b"secret") + b"\r\n", b"AUTH LOGIN " + encoded(b"user") + b"\r\n" + encoded(b"secret") + b"\r\n",
    b"AUTH CRAM-MD5\r\n", encoded(b"user " + b"0123456789abcdef" * 2) + b"\r\n", b"AUTH CRAM-MD5 AAAA\r\n",
    b"AUTH CRAM-MD5\r\n" + encoded(b"user " + b"0123456789abcdef" * 2) + b"\r\n",
    b"AUTH XOAUTH2 " + encoded(b"user=user\x01auth=Bearer secret\x01\x01") + b"\r\n", b"AUTH XOAUTH2\r\n",
    b"AUTH XOAUTH2 " + encoded(b"user=fail=\x01auth=Bearer x\x01\x01") + b"\r\n", b"AUTH\r\n", b"AUTH =\r\n",
    b"AUTH SCRAM-SHA-256 AAAA\r\n", b"auth plain =\r\n", b"*\r\n", b"=\r\n", b"\xc3\xb1\r\n",
    b"AUTH PLAIN *\r\n", b"AUTH PLAIN " + b"A" * 12000 + b"\r\n", b"A" * 12288 + b"\r\n",
    b"A" * 12300 + b"\r\n",
)  # fmt: skip
"""To those who may want to know who is there."""

WISHES = (
    MESSAGE % (b"a@b.test", b"c@d.test", b"X-Blackhole-Mode: bounce\r\nX-Blackhole-Delay: 1,2\r\n\r\nhello"),
    b"X-Blackhole-Mode: random\r\n", b"x-blackhole-delay: 0.5\r\n", b"X-Blackhole-Delay: 9999999999999\r\n",
    b"X-Blackhole-Mode:\r\n bounce\r\n", b"X-Blackhole-Mode: x\r\nX-Blackhole-Delay: 2, 1\r\n",
    GREETED + b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", b"\r\n\r\n", b"a: b\r\n" * 1100,
)  # fmt: skip
"""To those who let a message say what becomes of it."""

TALK = (
    *WISHES,
    *(MESSAGE % (sender, recipient, b"Subject: %b\r\n\r\nhello" % subject)
      for sender, recipient, subject in (
          (b"a@b.test", b"c@d.test", b"an invoice"), (b"", b"full@d.test", b"hello"),
          (b"spam@bad.test", b"drip@d.test", b"hello"), (b"a@b.test", b"delay-5@d.test", b"x"))),
    *(b"RCPT TO:<%b@d.test>\r\n" % name
      for name in (b"reply-421", b"reply-552", b"close", b"reset", b"stall", b"drip", b"half", b"full")),
    b"MAIL FROM:<x@bad.test> SIZE=60\r\n", b"HELO bad.test\r\n", b"EHLO {recipient}\r\n", GREETED, GREETED,
)  # fmt: skip
"""To those with rules."""

RULES = {
    "replies": """
        seed = 5
        [[rule]]
        phase = "RCPT"
        chance = 0.4
        reply = ["450 4.2.1 {recipient} is busy\\nsaid to {helo} at {client}", "552 5.2.2 Full, {sender}"]
        [[rule]]
        phase = "MAIL"
        sender = "*@bad.test"
        size = ">= 50"
        reply = "421 4.7.0 Go away, {id}"
        [[rule]]
        phase = "."
        recipient = ["full@*", "c@d.test"]
        attempt = "<= 1"
        reply = "451 4.3.0 Once more, please"
        [[rule]]
        phase = "DATA"
        chance = 0.5
        reply = "354 Go on"
        [[rule]]
        phase = "EHLO"
        helo = "*.test"
        hide = ["PIPELINING", "size"]
        add = ["XFORWARD NAME ADDR"]
        [[rule]]
        phase = "*"
        tls = false
        client = "192.0.2.0/24"
        listener = "127.0.0.1:25"
        chance = 0.05
        reply = "454 4.7.0 Not now"
        [[rule]]
        phase = "RSET"
        reply = "accept"
        delay = 1
        """,
    "faults": """
        [[rule]]
        phase = ["MAIL", "RCPT"]
        chance = 0.1
        then = "close"
        [[rule]]
        phase = "RCPT"
        recipient = "reset@*"
        reply = "550 5.1.1 Nobody"
        then = "reset"
        [[rule]]
        phase = "*"
        chance = 0.05
        then = "stall"
        [[rule]]
        phase = ["EHLO", "."]
        chance = 0.2
        then = "half-reply"
        [[rule]]
        phase = "RCPT"
        recipient = "half@*"
        then = "close-before-reply"
        [[rule]]
        phase = ["DATA", "STARTTLS", "NOOP"]
        chance = 0.3
        then = "close-after-reply"
        """,
    "drips": """
        [[rule]]
        phase = ["CONNECT", "EHLO", "."]
        chance = 0.5
        then = { drip = 300 }
        [[rule]]
        phase = "RCPT"
        recipient = "drip@*"
        delay = [0.5, 1.5]
        then = { drip = 30 }
        [[rule]]
        phase = ["MAIL", "DATA", "HELP", "STARTTLS", "QUIT"]
        then = { drip = 100 }
        """,
    "gates": """
        [[rule]]
        name = "grey"
        greylist = { min = "5m", max = "2d" }
        recipient = "c@d.test"
        [[rule]]
        throttle = { recipients = 3, per = "minute", by = "sender-domain" }
        reply = "452 4.5.3 Enough"
        [[rule]]
        throttle = { messages = 2, per = "connection" }
        reply = "451 4.7.1 Enough"
        [[rule]]
        throttle = { bytes = 60, per = "hour", by = "recipient-domain" }
        reply = "552 5.2.2 Enough"
        when_unknown = "451 4.3.0 Who knows"
        [[rule]]
        throttle = { connections = 1, per = "second", by = "client" }
        reply = "421 4.7.0 Enough"
        [[rule]]
        throttle = { concurrent = 1, by = "all" }
        reply = "421 4.7.0 Enough"
        """,
    "delays": """
        [[window]]
        name = "storm"
        at = 10
        for = "10m"
        every = "20m"
        ramp = "5m"
        [[rule]]
        window = "storm"
        phase = "*"
        delay = { lognormal = { median = 0.3, p99 = 5 } }
        [[rule]]
        phase = ["RCPT", "."]
        chance = 0.5
        delay = { p50 = 0.1, p90 = 1, p99 = 10 }
        """,
    "headers": """
        [[rule]]
        phase = "."
        header = ["Subject: *invoice*", "X-Spam: *"]
        reply = "554 5.7.1 No invoices"
        [[rule]]
        phase = "."
        header = "Subject: hello"
        then = { drip = 50 }
        [[rule]]
        phase = ["STARTTLS"]
        certificate = "expired"
        """,
    "lists": """
        [[rule]]
        sender = "*@bad.test"
        blocklist = "zen.example.test"
        [[rule]]
        client = "192.0.2.0/24"
        phase = "CONNECT"
        chance = 0.3
        reply = "554 5.7.1 Not you"
        """,
}
"""Scenarios in which every key of a rule, every fault and every gate is to be found."""


@cache
def rules(name: str) -> tuple[Rule, ...]:
    return tuple(parse_rules(RULES[name], name))


def profile(name: str) -> tuple[Rule, ...]:
    return load_rules((f"profile:{name}",))


class Kind(NamedTuple):
    """A way to configure a listener."""

    name: str
    config: ListenerConfig
    words: tuple[bytes, ...] = HEARD
    """What is said to it."""
    rates: Settings | None = None
    """Its clients are counted over their connections."""
    traced: bool = False
    """As with --debug."""
    secure: bool = False
    """TLS comes before the greeting."""

    @property
    def even(self) -> bool:
        """Replies do not depend on the cuts: nothing is refused for having come too early."""
        return not (self.config.strict or self.config.starttls)

    @property
    def remembers(self) -> bool:
        """Who comes again may be answered otherwise."""
        tests = [test.key for rule in self.config.rules for test in rule.conditions]
        gates = [rule.limiter for rule in (*self.config.rules, *MODES[self.config.mode])]
        return any(gates) or "attempt" in tests

    @property
    def whole(self) -> bool:
        """Replies are whole: no fault cuts them."""
        return not any(rule.effect.fault for rule in self.config.rules)


PLAIN = ListenerConfig(hostname="mx.test", listener="127.0.0.1:25")

LOW = ClientLimits(soft_errors=3, errors=6, junk=5, recipients=2, messages=2)

RATES = Settings(
    public=True,
    soft_errors=2,
    max_errors=5,
    max_junk=4,
    max_recipients=3,
    max_messages=4,
    client_connection_rate=100,
    client_message_rate=2,
    client_recipient_rate=4,
    client_tls_rate=1,
)

USERS = {b"user": b"secret", b"other": b""}


def kind(
    name: str,
    *,
    words: tuple[bytes, ...] = (),
    rates: Settings | None = None,
    traced: bool = False,
    secure: bool = False,
    **values: object,
) -> Kind:
    config = replace(PLAIN, **values)  # type: ignore[arg-type]
    if rates is not None:
        config = replace(config, limits=client_limits(rates))
    return Kind(name, config, HEARD + words * 2, rates, traced, secure)


KINDS = (
    kind("small", message_size_limit=1000, words=FLOOD),
    kind("random", mode="random"),
    kind("bounce", mode="bounce", message_size_limit=60),
    kind("offline", mode="offline"),
    kind("unavailable", mode="unavailable"),
    kind("greylist", mode="greylist", words=TALK),
    kind("delay", delay=(0.5, 1.5)),
    kind("limits", message_size_limit=40, limits=LOW),
    kind("count", bare_newline="count"),
    kind("reject", bare_newline="reject"),
    kind("strict", strict=True, limits=LOW),
    kind("starttls", starttls=True, words=FLOOD),
    kind("auth", auth=True, auth_plaintext=True, words=SECRETS),
    kind("auth users", auth=True, auth_plaintext=True, passwords=USERS, words=SECRETS),
    kind("auth tls", auth=True, starttls=True, passwords=USERS, words=SECRETS),
    kind("auth strict", auth=True, auth_plaintext=True, strict=True, limits=LOW, words=SECRETS),
    kind("auth traced", auth=True, auth_plaintext=True, traced=True, words=SECRETS),
    kind("switch", dynamic_switch=True, words=WISHES),
    kind("switch late", dynamic_switch=True, delay=(0.1, 0.2), bare_newline="count", words=WISHES),
    kind("public", rates=RATES, words=FLOOD),
    kind("public rules", rates=RATES, rules=rules("replies"), words=TALK),
    kind("public strict", rates=RATES, strict=True, starttls=True, auth=True, words=SECRETS),
    *(kind(name, rules=rules(name), words=TALK) for name in RULES),
    *(kind(f"profile {name}", rules=profile(name), words=TALK) for name in profiles()),
    kind("rules and switch", rules=rules("headers"), dynamic_switch=True, mode="random", words=TALK),
    kind("rules over tls", rules=rules("headers") + rules("faults"), secure=True, words=TALK),
    kind("rules and tls", rules=rules("faults") + rules("headers"), starttls=True, words=TALK),
)


def mixed(dice: Random) -> Kind:
    """A kind that nobody has thought of."""
    pool = [rule for name in RULES for rule in rules(name)]
    rates = RATES if dice.random() < 0.3 else None
    return kind(
        "mixed",
        words=SECRETS[::3] + TALK[::2],
        rates=rates,
        mode=dice.choice([*MODES]),
        message_size_limit=dice.choice((0, 0, 40, 1000)),
        strict=dice.random() < 0.2,
        starttls=dice.random() < 0.2,
        delay=dice.choice((None, None, (0.0, 0.0), (0.5, 1.5))),
        bare_newline=dice.choice(("normalize", "normalize", "count", "reject")),
        dynamic_switch=dice.random() < 0.5,
        auth=dice.random() < 0.5,
        auth_plaintext=dice.random() < 0.7,
        passwords=dice.choice((None, USERS)),
        rules=tuple(dice.sample(pool, dice.randrange(5))),
        **({} if rates else {"limits": dice.choice((None, None, LOW))}),
    )
