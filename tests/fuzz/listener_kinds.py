"""The kinds of listeners that are fuzzed: their configurations, their rules, and the phrases sent to them."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import cache
from random import Random
from typing import NamedTuple

from blackhole.addresses import NetworkSet
from blackhole.net.admission import client_limits
from blackhole.rules.model import Rule
from blackhole.rules.modes import MODE_RULES
from blackhole.rules.scenario import load_rules, profiles
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import Settings
from blackhole.smtp.state import ClientLimits, ListenerConfig

PHRASES = (
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
    b"AUTH PLAIN AA==\r\n", b"BDAT 5 LAST\r\nhello",
    b"BDAT 7\r\nRSET\r\n\0BDAT 0 LAST\r\n", b"BDAT 40\r\n", b"BDAT 0\r\n", b"BDAT 6 FIRST\r\nQUIT\r\n",
    b"BDAT 99999999999999999999999\r\n", b"BDAT 9223372036854775807\r\n", b"STARTTLS\r\n",
    b"STARTTLS x\r\n", b"XYZZY\r\n", b"TURN\r\n", b"GET / HTTP/1.1\r\n", b"Host: x\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"PROXY TCP4 1.2.3.4 5.6.7.8 9 25\r\n", b"x" * 200, b"x" * 2046 + b"\r\n",
    b"x" * 2100 + b"\r\n", b"NOOP " + b"y" * 2041 + b"\r\n",
)  # fmt: skip
"""What every kind of listener is sent."""

MANY_COMMANDS = (b"NOOP\r\n" * 150,)
"""More commands than a session handles in one turn."""

EHLO = b"EHLO c.test\r\n"

BODIES = (
    b".\r\n", b"hello\r\n.\r\n", b"Subject: an invoice\r\n\r\nhello\r\n.\r\n", b"..\r\n.\n.x\r\n.\r\n",
    b"X-Blackhole-Mode: bounce\r\n\r\nhello\r\n.\r\n", b"x" * 1100 + b"\r\n.\r\n", b"\xff\0\r\n.\r\nQUIT\r\n",
)  # fmt: skip
"""What is mostly sent after DATA."""

WHOLE_MESSAGE = b"EHLO c.test\r\nMAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n%b\r\n.\r\n"
"""A session with a message, to be filled with sender, recipient and content."""


def b64(*words: bytes) -> bytes:
    """Return the words with NUL between them, in base64."""
    return base64.b64encode(b"\0".join(words))


AUTH_PHRASES = (
    EHLO, EHLO, b"AUTH PLAIN " + b64(b"", b"user", b"secret") + b"\r\n", b"AUTH PLAIN\r\n",
    b64(b"", b"user", b"secret") + b"\r\n", b"AUTH PLAIN " + b64(b"", b"user", b"wrong") + b"\r\n",
    b"AUTH PLAIN " + b64(b"", b"fail=1", b"") + b"\r\n", b"AUTH LOGIN\r\n", b64(b"user") + b"\r\n",
    b64(b"secret") + b"\r\n", b"AUTH LOGIN " + b64(b"user") + b"\r\n" + b64(b"secret") + b"\r\n",
    b"AUTH CRAM-MD5\r\n", b64(b"user " + b"0123456789abcdef" * 2) + b"\r\n", b"AUTH CRAM-MD5 AAAA\r\n",
    b"AUTH CRAM-MD5\r\n" + b64(b"user " + b"0123456789abcdef" * 2) + b"\r\n",
    b"AUTH XOAUTH2 " + b64(b"user=user\x01auth=Bearer secret\x01\x01") + b"\r\n", b"AUTH XOAUTH2\r\n",
    b"AUTH OAUTHBEARER " + b64(b"n,a=user,\x01auth=Bearer secret\x01\x01") + b"\r\n",
    b"AUTH OAUTHBEARER " + b64(b"n,a=fail=3D,\x01auth=Bearer x\x01\x01") + b"\r\n", b"AQ==\r\n",
    b"AUTH SCRAM-SHA-256 " + b64(b"n,,n=user,r=abc") + b"\r\n", b64(b"c=biws,r=abc,p=AA==") + b"\r\n",
    b"AUTH XOAUTH2 " + b64(b"user=fail=\x01auth=Bearer x\x01\x01") + b"\r\n", b"AUTH\r\n", b"AUTH =\r\n",
    b"AUTH SCRAM-SHA-256 AAAA\r\n", b"auth plain =\r\n", b"*\r\n", b"=\r\n", b"\xc3\xb1\r\n",
    b"AUTH PLAIN *\r\n", b"AUTH PLAIN " + b"A" * 12000 + b"\r\n", b"A" * 12288 + b"\r\n",
    b"A" * 12300 + b"\r\n",
)  # fmt: skip
"""For listeners with AUTH."""

LMTP_PHRASES = (
    b"LHLO c.test\r\n", b"LHLO\r\n",
    b"LHLO c.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<full@d.test>\r\nDATA\r\n",
    b"RCPT TO:<c@d.test>\r\n" * 150, b"RCPT TO:<%b@d.test>\r\n" % (b"x" * 60),
)  # fmt: skip
"""For listeners that speak LMTP."""

DIRECTIVE_PHRASES = (
    WHOLE_MESSAGE
    % (b"a@b.test", b"c@d.test", b"X-Blackhole-Mode: bounce\r\nX-Blackhole-Delay: 1,2\r\n\r\nhello"),
    b"X-Blackhole-Mode: random\r\n", b"x-blackhole-delay: 0.5\r\n", b"X-Blackhole-Delay: 9999999999999\r\n",
    b"X-Blackhole-Mode:\r\n bounce\r\n", b"X-Blackhole-Mode: x\r\nX-Blackhole-Delay: 2, 1\r\n",
    EHLO + b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", b"\r\n\r\n", b"a: b\r\n" * 1100,
)  # fmt: skip
"""For listeners with message directives."""

XCLIENT_PHRASES = (
    EHLO, b"XCLIENT ADDR=192.0.2.7 HELO=bad.test\r\n", b"XCLIENT ADDR=IPV6:2001:db8::1 LOGIN=us+65r\r\n",
    b"XCLIENT LOGIN=[UNAVAILABLE] ADDR=[unavailable]\r\n", b"xclient name=[TEMPUNAVAIL]\r\nMAIL FROM:<>\r\n",
    b"XCLIENT ADDR=\r\n", b"XCLIENT PORT=99999\r\n", b"XCLIENT HELO=\xff+00\r\n", b"XCLIENT\r\n",
    b"XFORWARD ADDR=192.0.2.8 SOURCE=LOCAL\r\n", b"XFORWARD IDENT=+2B PROTO=ESMTP\r\n", b"XFORWARD X\r\n",
    b"XCLIENT DESTADDR=192.0.2.1 DESTPORT=25 PROTO=SMTP\r\n" * 3,
)  # fmt: skip
"""For listeners whose client may name others."""

RULE_PHRASES = (
    *DIRECTIVE_PHRASES,
    *(WHOLE_MESSAGE % (sender, recipient, b"Subject: %b\r\n\r\nhello" % subject)
      for sender, recipient, subject in (
          (b"a@b.test", b"c@d.test", b"an invoice"), (b"", b"full@d.test", b"hello"),
          (b"spam@bad.test", b"drip@d.test", b"hello"), (b"a@b.test", b"delay-5@d.test", b"x"))),
    *(b"RCPT TO:<%b@d.test>\r\n" % name
      for name in (b"reply-421", b"reply-552", b"close", b"reset", b"stall", b"drip", b"half", b"full")),
    b"MAIL FROM:<x@bad.test> SIZE=60\r\n", b"HELO bad.test\r\n", b"EHLO {recipient}\r\n", EHLO, EHLO,
)  # fmt: skip
"""For listeners with rules."""

SCENARIOS = {
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
        phase = ["AUTH", "MAIL"]
        user = ["user", "fail=*"]
        attempt = "<= 1"
        reply = "535 5.7.8 Not you, {user}"
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
    "input faults": """
        [[rule]]
        phase = ["CONNECT", "MAIL"]
        chance = 0.2
        then = { window = 2000 }
        [[rule]]
        phase = ["EHLO", "RCPT", "DATA", "BDAT"]
        chance = 0.3
        reply = ["451 4.3.0 Not now", "421 4.3.2 Going down", "554 5.6.0 No"]
        then = { reply-after = 5 }
        [[rule]]
        phase = ["MAIL", "DATA", "BDAT"]
        chance = 0.3
        then = { read = 100 }
        [[rule]]
        phase = "RCPT"
        recipient = "reset@*"
        then = { reset-after = 7 }
        [[rule]]
        phase = "RCPT"
        recipient = "close@*"
        then = { close-after = 1 }
        [[rule]]
        phase = ["DATA", "BDAT"]
        chance = 0.3
        reply = "550 5.7.1 No"
        then = { reply-and-close-after = 20 }
        """,
    "session facts": """
        [[rule]]
        phase = "RCPT"
        not = { sender = "*@bad.test", size = "> 10" }
        extension = ["SIZE", "!CHUNKING"]
        chance = 0.4
        reply = ["450 4.2.1 Later", "550 5.1.1 No"]
        weights = [9, 1]
        [[rule]]
        phase = ["MAIL", "BDAT"]
        tls_version = ["1.2", "1.3"]
        reply = "454 4.7.0 Not under TLS"
        [[rule]]
        phase = ["MAIL", "EHLO"]
        sni = "*.test"
        reply = "450 4.7.0 Not for that name"
        [[rule]]
        phase = "STARTTLS"
        chance = 0.5
        tls_min = "1.2"
        tls_max = "1.3"
        tls_ciphers = "HIGH"
        client_cert = "ask"
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
    "limiters": """
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
    "conduct": """
        [[rule]]
        throttle = { messages = 2, per = "1m", by = "client", grows = 2, every = "5m", to = 9 }
        reply = "421 4.7.0 Too much for now"
        [[rule]]
        throttle = { refused = 2, per = "1m", by = "network", share = 0.1 }
        reply = "421 4.7.0 Too many unknown users"
        [[rule]]
        phase = "RCPT"
        recipient = "c@*"
        reply = "550 5.1.1 Unknown"
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
        tls_min = "1.1"
        tls_max = "1.2"
        tls_ciphers = "ALL:@SECLEVEL=0"
        client_cert = "ask"
        then = "no-close-notify"
        [[rule]]
        phase = "MAIL"
        tls_version = "< 1.3"
        extension = ["SMTPUTF8", "SIZE"]
        reply = ["450 4.3.0 Busy", "550 5.7.1 No"]
        weights = [3, 1]
        [[rule]]
        phase = "NOOP"
        sni = ["busy.*", "mx.test"]
        reply = "450 4.3.0 Busy"
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
"""Scenarios that contain every key of a rule, every fault and every limiter."""


@cache
def rules_of(name: str) -> tuple[Rule, ...]:
    """Return the rules of one of SCENARIOS."""
    return tuple(parse_rules(SCENARIOS[name], name))


def rules_of_profile(name: str) -> tuple[Rule, ...]:
    """Return the rules of a profile that comes with the program."""
    return load_rules((f"profile:{name}",))


class ListenerKind(NamedTuple):
    """A way to configure a listener."""

    name: str
    config: ListenerConfig
    rules: tuple[Rule, ...] = ()
    mode: str = "accept"
    phrases: tuple[bytes, ...] = PHRASES
    """What it is sent."""
    admission_settings: Settings | None = None
    """The settings of its limits per client, if it has any."""
    traced: bool = False
    """Whether it traces its lines, as with --debug."""
    secure: bool = False
    """Whether it uses implicit TLS."""

    @property
    def same_for_all_pieces(self) -> bool:
        """Whether replies do not depend on how the input is split, because pipelining is never refused."""
        return not (self.config.strict or self.config.starttls)

    @property
    def remembers_clients(self) -> bool:
        """Whether a client that returns may get other replies."""
        conditions = [condition.key for rule in self.rules for condition in rule.conditions]
        limiters = [rule.limiter for rule in (*self.rules, *MODE_RULES[self.mode])]
        return any(limiters) or "attempt" in conditions

    @property
    def sends_whole_replies(self) -> bool:
        """Whether no fault cuts off a reply."""
        return not any(rule.effect.fault for rule in self.rules)


BASE = ListenerConfig(hostname="mx.test")

LOW_LIMITS = ClientLimits(soft_errors=3, errors=6, junk=5, recipients=2, messages=2)

ADMISSION_SETTINGS = Settings(
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

PASSWORDS = {b"user": b"secret", b"other": b""}


def kind(
    name: str,
    *,
    phrases: tuple[bytes, ...] = (),
    admission_settings: Settings | None = None,
    traced: bool = False,
    secure: bool = False,
    rules: tuple[Rule, ...] = (),
    mode: str = "accept",
    **values: object,
) -> ListenerKind:
    """Return a kind of listener; `values` are fields of its ListenerConfig."""
    config = replace(BASE, **values)  # type: ignore[arg-type]
    if admission_settings is not None:
        config = replace(config, limits=client_limits(admission_settings))
    return ListenerKind(name, config, rules, mode, PHRASES + phrases * 2, admission_settings, traced, secure)


LISTENER_KINDS = (
    kind("small", message_size_limit=1000, phrases=MANY_COMMANDS),
    kind("random", mode="random"),
    kind("bounce", mode="bounce", message_size_limit=60),
    kind("offline", mode="offline"),
    kind("unavailable", mode="unavailable"),
    kind("greylist", mode="greylist", phrases=RULE_PHRASES),
    kind("delay", delay=(0.5, 1.5)),
    kind("limits", message_size_limit=40, limits=LOW_LIMITS),
    kind("count", bare_newline="count"),
    kind("reject", bare_newline="reject"),
    kind("strict", strict=True, limits=LOW_LIMITS),
    kind("starttls", starttls=True, phrases=MANY_COMMANDS),
    kind("lmtp", service="lmtp", phrases=LMTP_PHRASES),
    kind("auth", auth=True, auth_plaintext=True, phrases=AUTH_PHRASES),
    kind("auth users", auth=True, auth_plaintext=True, passwords=PASSWORDS, phrases=AUTH_PHRASES),
    kind("auth tls", auth=True, starttls=True, passwords=PASSWORDS, phrases=AUTH_PHRASES),
    kind("auth strict", auth=True, auth_plaintext=True, strict=True, limits=LOW_LIMITS, phrases=AUTH_PHRASES),
    kind(
        "auth required",
        auth=True,
        auth_plaintext=True,
        auth_required=True,
        rules=rules_of("replies"),
        phrases=AUTH_PHRASES,
    ),
    kind("auth traced", auth=True, auth_plaintext=True, traced=True, phrases=AUTH_PHRASES),
    kind(
        "xclient",
        xclient_from=NetworkSet(["192.0.2.0/24"]),
        auth=True,
        auth_required=True,
        auth_plaintext=True,
        rules=rules_of("replies") + rules_of("lists"),
        phrases=XCLIENT_PHRASES,
    ),
    kind("xclient strict", xclient_from=NetworkSet(["192.0.2.0/24"]), strict=True, phrases=XCLIENT_PHRASES),
    kind("switch", message_directives=True, phrases=DIRECTIVE_PHRASES),
    kind(
        "switch late",
        message_directives=True,
        delay=(0.1, 0.2),
        bare_newline="count",
        phrases=DIRECTIVE_PHRASES,
    ),
    kind("public", admission_settings=ADMISSION_SETTINGS, phrases=MANY_COMMANDS),
    kind(
        "public rules", admission_settings=ADMISSION_SETTINGS, rules=rules_of("replies"), phrases=RULE_PHRASES
    ),
    kind(
        "public strict",
        admission_settings=ADMISSION_SETTINGS,
        strict=True,
        starttls=True,
        auth=True,
        phrases=AUTH_PHRASES,
    ),
    *(kind(name, rules=rules_of(name), phrases=RULE_PHRASES) for name in SCENARIOS),
    *(kind(f"profile {name}", rules=rules_of_profile(name), phrases=RULE_PHRASES) for name in profiles()),
    kind(
        "rules and switch",
        rules=rules_of("headers"),
        message_directives=True,
        mode="random",
        phrases=RULE_PHRASES,
    ),
    kind("rules over tls", rules=rules_of("headers") + rules_of("faults"), secure=True, phrases=RULE_PHRASES),
    kind(
        "rules and tls", rules=rules_of("faults") + rules_of("headers"), starttls=True, phrases=RULE_PHRASES
    ),
)


def random_kind(source: Random) -> ListenerKind:
    """Return a kind of listener with random options and rules."""
    pool = [rule for name in SCENARIOS for rule in rules_of(name)]
    admission_settings = ADMISSION_SETTINGS if source.random() < 0.3 else None
    return kind(
        "mixed",
        phrases=AUTH_PHRASES[::3] + RULE_PHRASES[::2],
        admission_settings=admission_settings,
        mode=source.choice([*MODE_RULES]),
        message_size_limit=source.choice((0, 0, 40, 1000)),
        strict=source.random() < 0.2,
        starttls=source.random() < 0.2,
        delay=source.choice((None, None, (0.0, 0.0), (0.5, 1.5))),
        bare_newline=source.choice(("normalize", "normalize", "count", "reject")),
        message_directives=source.random() < 0.5,
        auth=source.random() < 0.5,
        auth_plaintext=source.random() < 0.7,
        passwords=source.choice((None, PASSWORDS)),
        rules=tuple(source.sample(pool, source.randrange(5))),
        limits=None if admission_settings else source.choice((None, None, LOW_LIMITS)),
    )
