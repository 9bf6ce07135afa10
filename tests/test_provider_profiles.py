"""The profiles of providers: what a bounce parser makes of their refusals, and whom their limits meet."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from blackhole.rules import scenario
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Template
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.limiters import ConcurrencyLimit, RateLimit
from blackhole.rules.model import Rule
from blackhole.rules.unreachable import find_mistakes
from blackhole.smtp.replies import Reply
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from tests.engines import make_engine
from tests.external_programs import find_program, missing
from tests.senders import FOLDER

pytestmark = pytest.mark.pure

PERL_MODULES: Final = Path(os.environ.get("BLACKHOLE_TEST_SENDERS", FOLDER)) / "usr/share/perl5"

HOSTS: Final = {
    "gmail": "gmail-smtp-in.l.google.com",
    "microsoft": "example-com.mail.protection.outlook.com",
    "yahoo": "mta5.am0.yahoodns.net",
    "icloud": "mx01.mail.icloud.com",
    "orange": "smtp-in.orange.fr",
    "gmx": "mx00.gmx.net",
    "proofpoint": "mx0a-00000000.pphosted.com",
    "mimecast": "us-smtp-inbound-1.mimecast.com",
    "barracuda": "d00000a.ess.barracudanetworks.com",
    "comcast": "mx1h1.comcast.net",
    "qq": "mx1.qq.com",
}
"""Profile of a provider -> the name of its host, by which a bounce parser knows whose words to look for."""

GENERAL: Final = ("big", "blocklist", "full", "greylist", "outage")
"""Other profiles with refusals, which no provider in particular is behind."""

CLIENT: Final = "192.0.2.1"


def rules_of(profile: str) -> tuple[Rule, ...]:
    return scenario.load_rules([f"profile:{profile}"])


def text_of(reply: Reply | Template) -> str:
    """Return a reply in one line, as a bounce message shows it."""
    if isinstance(reply, Template):
        context = RuleContext(client=CLIENT)
        context.recipient = b"bob@example.com"
        reply = reply.fill(context)
    return " ".join(filter(None, (str(reply.code), reply.enhanced, *reply.lines)))


def refusals(rules: tuple[Rule, ...]) -> Iterator[str]:
    for rule in rules:
        yield from (text_of(reply) for reply in rule.effect.replies if reply.code >= 400)


class RefusalReason(NamedTuple):
    """What a comment in a profile says of the reply behind it."""

    meant: str
    """The reason that a bounce parser is to find."""
    found: str
    """The one that Sisimai finds."""
    why: str
    """Why it finds another one; empty where it is the same."""


COMMENT: Final = re.compile(
    r"^ *# means: (\w+)(?:; Sisimai says (\w+): (.+))?\n"
    r' *(?:(?:reply = )?"[45][^"]+"|(?:blocklist|greylist) = )',
    re.MULTILINE,
)
"""A comment, and the reply behind it, or what has a reply of its own."""


def meanings(profile: str) -> list[RefusalReason]:
    """Return what a profile says of its refusals, in their order."""
    text = scenario.read_source(f"profile:{profile}").text
    return [RefusalReason(meant, found or meant, why) for meant, found, why in COMMENT.findall(text)]


REPORT: Final = """\
From MAILER-DAEMON Thu Jan  1 00:00:00 2026
From: MAILER-DAEMON@client.test
To: ann@client.test
Subject: Undelivered Mail Returned to Sender
Date: Thu, 01 Jan 2026 00:00:00 +0000
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

Not delivered.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; client.test

Final-Recipient: rfc822; {number}@example.com
Action: failed
Status: {status}
Remote-MTA: dns; {host}
Diagnostic-Code: smtp; {reply}

--b
Content-Type: message/rfc822

From: ann@client.test
To: {number}@example.com
Subject: a test

--b--

"""
"""A report of a refusal (RFC 3464), in an mbox."""

CLASSIFY: Final = 'print $_->recipient->user, " ", $_->reason, "\\n" for @{Sisimai->make(shift) || []}'


def classify(replies: list[str], host: str, folder: Path) -> list[str]:
    """Return the reasons that Sisimai finds for the replies of a host."""
    reports = [
        REPORT.format(
            number=number,
            host=host,
            reply=reply,
            status=match[0] if (match := re.search(r"\b[45](\.\d+){2}\b", reply)) else f"{reply[0]}.0.0",
        )
        for number, reply in enumerate(replies)
    ]
    mailbox = folder / "mailbox"
    mailbox.write_text("".join(reports))
    done = subprocess.run(
        ["perl", f"-I{PERL_MODULES}", "-MSisimai", "-e", CLASSIFY, mailbox],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    reasons = dict(line.split() for line in done.stdout.splitlines())
    return [reasons.get(str(number), "") for number in range(len(replies))]


@pytest.mark.skipif(
    not (PERL_MODULES / "Sisimai.pm").exists(), reason="Sisimai is missing: make .venv/.senders unpacks it"
)
@pytest.mark.skipif(find_program("perl") is None, reason=missing("perl"))
@pytest.mark.parametrize("profile", [*HOSTS, *GENERAL])
def test_bounce_parser_finds_the_reason_that_a_refusal_was_meant_to_have(
    profile: str, tmp_path: Path
) -> None:
    replies, host = list(refusals(rules_of(profile))), HOSTS.get(profile, "mx.example.com")
    said = dict(zip(replies, (meaning.found for meaning in meanings(profile)), strict=True))
    assert dict(zip(replies, classify(replies, host, tmp_path), strict=True)) == said


@pytest.mark.parametrize("profile", [*HOSTS, *GENERAL])
def test_each_refusal_of_a_profile_has_a_reason(profile: str) -> None:
    assert len(meanings(profile)) == len(list(refusals(rules_of(profile)))) > 0
    assert all(one.why or one.meant == one.found for one in meanings(profile))
    assert profile in GENERAL or "userunknown" in {one.meant for one in meanings(profile)}


def test_profiles_without_reasons_refuse_nothing_or_what_an_address_asks_for() -> None:
    """The words in an address choose the replies of a trigger pack."""
    triggers = {"badsmtp", "kumomta", "ses", "triggers"}
    others = {*scenario.profiles()} - {*HOSTS, *GENERAL, *triggers, "internet"}
    assert others == {"flaky"}
    assert list(refusals(rules_of("flaky"))) == []


@pytest.mark.parametrize("profile", HOSTS)
def test_profile_of_a_provider_says_what_it_is_modelled_on(profile: str) -> None:
    source = scenario.read_source(f"profile:{profile}")
    assert re.match(r"# Modelled on .*, by what was public in \w+ 20\d\d; not the official ", source.text)
    assert list(find_mistakes(rules_of(profile), [":25"], False)) == []


# Limits


class PacedSender:
    """A sender of one client, at a pace of its own, and a clock that is set by hand.

    It gives up what is refused, and connects again after a 421. Without a recipient it never sends twice to
    the same one.
    """

    def __init__(self, rules: tuple[Rule, ...], domain: str = "example.com", recipient: str = "") -> None:
        self.now = 0.0
        self.domain = domain
        self.recipient = recipient
        self.limits = [rule for rule in rules if isinstance(rule.limiter, RateLimit | ConcurrencyLimit)]
        environment = RuleEnvironment(lambda: self.now, AttemptTable(sets=4096))
        self.engine = make_engine(hostname="mx.test", rules=rules, environment=environment)
        self.sent = 0
        self.refused: set[str] = set()
        self.rate_refusals: set[str] = set()
        self._texts = {text_of(reply): rule.name for rule in self.limits for reply in rule.effect.replies}

    def limit_of(self, name: str) -> Rule:
        (rule,) = (rule for rule in self.limits if rule.name == name)
        return rule

    def connect(self) -> tuple[Session, bool]:
        session = self.engine.session(client=CLIENT)
        return session, self._accepts(session.greet())

    def send(self, session: Session) -> bool:
        """Send one message; return whether the connection is still of use."""
        self.sent += 1
        recipient = f"{self.recipient or self.sent}@{self.domain}"
        for line in (
            "MAIL FROM:<ann@client.test>",
            f"RCPT TO:<{recipient}>",
            "DATA",
            "Subject: a test\r\n\r\nx\r\n.",
        ):
            reply = session.receive(f"{line}\r\n".encode())
            if not self._accepts(reply):
                return reply[:3] not in (b"421", b"")
        return True

    def _accepts(self, reply: bytes) -> bool:
        lines = reply.decode().splitlines()
        text = " ".join([lines[0][:3], *(line[4:] for line in lines)]) if lines else ""
        text = text.replace(f"{self.recipient or self.sent}@{self.domain}", "bob@example.com")
        if text in self._texts:
            self.rate_refusals.add(self._texts[text])
        if not lines:
            self.rate_refusals |= {one.name for one in self.limits if one.effect.fault}
        elif text[0] not in "23":
            self.refused.add(text.replace("bob@example.com", ""))
        return text[:1] in ("2", "3")

    def open_at_once(self, times: int) -> None:
        """Open `times` as many connections at once as are allowed, and send a message on each."""
        limiter = self.limit_of("connections at once").limiter
        assert isinstance(limiter, ConcurrencyLimit)
        sessions = [self.connect() for _ in range(times * limiter.limit)]
        for session, is_greeted in sessions:
            if is_greeted:
                self.send(session)
            session.closed()

    def send_in_connections(self, messages: int, in_each: int, pause: float) -> None:
        """Send messages one after another, some of them in each connection."""
        while messages > 0:
            session, is_of_use = self.connect()
            for _ in range(min(in_each, messages)):
                messages -= 1
                is_of_use = is_of_use and self.send(session)
                self.now += pause
            session.closed()

    def fill_connections(self, times: int, pause: float) -> None:
        limiter = self.limit_of("messages of a connection").limiter
        assert isinstance(limiter, RateLimit)
        for _ in range(10):  # Chance too closes connections.
            if "messages of a connection" not in self.rate_refusals:
                self.send_in_connections(times * limiter.limit, times * limiter.limit, pause)


def recipient_for(limiter: RateLimit) -> str:
    """Return the recipient that a limit is met with; empty where each message has another."""
    return "bob" if {"recipient", "pair"}.intersection(limiter.by) else ""


def rate_limits(rules: tuple[Rule, ...]) -> list[RateLimit]:
    """Return the limits of rules for a period."""
    limiters = [rule.limiter for rule in rules]
    return [one for one in limiters if isinstance(one, RateLimit) and one.period]


def messages_of_a_connection(rules: tuple[Rule, ...]) -> int:
    """Return how many messages a connection may send."""
    limiters = [rule.limiter for rule in rules]
    return min((one.limit for one in limiters if isinstance(one, RateLimit) and not one.period), default=20)


@pytest.mark.without_coverage
@pytest.mark.parametrize("recipient", ["", "bob"], ids=["many recipients", "one recipient"])
@pytest.mark.parametrize("profile", HOSTS)
def test_sender_that_keeps_to_the_limits_of_a_provider_is_never_deferred_for_rate(
    profile: str, recipient: str
) -> None:
    rules = rules_of(profile)
    sender = PacedSender(rules, recipient=recipient)
    limits = rate_limits(rules)
    pause = max((one.period / one.limit for one in limits), default=0.1)
    in_each = messages_of_a_connection(rules)
    for _ in range(3):
        sender.open_at_once(1)
        sender.now += max((one.period for one in limits), default=0)
    messages = max((one.limit for one in limits), default=3 * in_each)
    sender.send_in_connections(min(messages, 2000), in_each, pause)
    assert sender.rate_refusals == set()


@pytest.mark.without_coverage
@pytest.mark.parametrize("profile", HOSTS)
def test_sender_at_twice_the_limits_of_a_provider_is_deferred_for_each(profile: str) -> None:
    rules = rules_of(profile)
    names = {rule.name for rule in PacedSender(rules).limits}
    sender = PacedSender(rules)
    sender.open_at_once(2)
    if "messages of a connection" in names:
        sender.now += 1e6
        sender.fill_connections(2, max((one.period / one.limit for one in rate_limits(rules)), default=0.1))
    met = sender.rate_refusals
    for rule in sender.limits:
        limiter = rule.limiter
        if isinstance(limiter, RateLimit) and limiter.period:
            for times in (1, 2):
                pause = limiter.period / limiter.limit
                alone = PacedSender(
                    tuple(one for one in rules if one is rule or not one.limiter),
                    recipient=recipient_for(limiter),
                )
                alone.send_in_connections(
                    times * (limiter.limit + limiter.burst + 1),
                    messages_of_a_connection(rules),
                    pause * 1.0001 if times == 1 else pause / 2,
                )
                assert alone.rate_refusals == (set() if times == 1 else {rule.name})
            met |= alone.rate_refusals
    assert met == names


@pytest.mark.parametrize("profile", (*HOSTS, "internet"))
def test_shares_of_a_provider_can_be_set(profile: str) -> None:
    source = scenario.read_source(f"profile:{profile}")
    deferral = "gmail_deferral" if profile == "internet" else "deferral"
    assert next(iter(source.variables)) == deferral
    for share in ("0", "1"):
        given = dict.fromkeys(source.variables, "0") | {deferral: share}
        rules = scenario.parse_sources([source.with_variables(given)])
        sender = PacedSender(tuple(rule for rule in rules if not rule.limiter), "gmail.test")
        sender.send_in_connections(30, 4, 60)
        assert (sender.refused != set()) is (share == "1"), sender.refused
    assert len(source.variables) == len(set(re.findall(r'chance = "\$(\w+)"', source.text)))


def test_orange_takes_a_hundred_recipients_of_a_message() -> None:
    sender = PacedSender(rules_of("orange"))
    session, _ = sender.connect()
    session.receive(b"MAIL FROM:<ann@client.test>\r\n")
    codes = [session.receive(b"RCPT TO:<%d@orange.test>\r\n" % number)[:3] for number in range(130)]
    accepted = codes.count(b"250")
    assert accepted == 100
    assert codes[-1] == b"452"


# All providers at once


SMALL_LIMITS: Final = [
    (rule, rule.limiter)
    for rule in rules_of("internet")
    if isinstance(rule.limiter, RateLimit) and rule.limiter.limit <= 300
]
"""Limits that a test reaches soon, and their rules."""


def replies_to(domain: str, messages: int = 300) -> set[str]:
    """Return what profile:internet refuses with, sent to recipients in a domain."""
    sender = PacedSender(rules_of("internet"), domain)
    sender.send_in_connections(messages, 4, 60)
    return sender.refused


@pytest.mark.parametrize("profile", HOSTS)
def test_internet_has_the_refusals_of_a_provider_for_its_recipients_alone(profile: str) -> None:
    own = set(refusals(rules_of(profile)))
    for domain in (f"{profile}.test", f"mail.{profile}.test"):
        heard = replies_to(domain)
        assert heard
        assert heard <= {text.replace("bob@example.com", "") for text in own}


def test_each_refusal_of_internet_is_one_that_a_bounce_parser_was_asked_about() -> None:
    asked = {text for profile in HOSTS for text in refusals(rules_of(profile))}
    assert {*refusals(rules_of("internet"))} <= asked


def test_internet_accepts_all_mail_for_other_domains() -> None:
    assert replies_to("example.com") == replies_to("notgmail.test") == set()


@pytest.mark.parametrize("number", range(len(SMALL_LIMITS)), ids=[rule.name for rule, _ in SMALL_LIMITS])
def test_internet_has_the_limits_of_a_provider_for_messages(number: int) -> None:
    rule, limiter = SMALL_LIMITS[number]
    rules = tuple(one for one in rules_of("internet") if one.name == rule.name or not one.limiter)
    met = []
    for times in (1, 2):
        sender = PacedSender(rules, f"{rule.name.partition(':')[0]}.test", recipient_for(limiter))
        pause = limiter.period / limiter.limit / times
        for _ in range(1 if limiter.period else 10):
            in_each = 4 if limiter.period else times * limiter.limit
            sender.send_in_connections(times * (limiter.limit + limiter.burst), in_each, pause)
        met.append(sender.rate_refusals)
    assert met == [set(), {rule.name}]


def test_limits_of_a_provider_do_not_count_mail_for_another() -> None:
    sender = PacedSender(tuple(rule for rule in rules_of("internet") if rule.limiter))
    session, _ = sender.connect()
    for sender.domain in ["gmail.test", "yahoo.test", "comcast.test"] * 20:
        assert sender.send(session)
    sender.domain = "yahoo.test"
    assert not sender.send(session)


# Greetings


@pytest.mark.parametrize("profile", HOSTS)
def test_provider_has_a_greeting_and_keywords_of_its_own(profile: str) -> None:
    rules = {rule.name: rule for rule in rules_of(profile)}
    session = make_engine(hostname="mx.test", rules=(rules["greeting"], rules["extensions"])).session()
    assert [session.greet().decode().rstrip()] == [text_of(one) for one in rules["greeting"].effect.replies]
    _, *lines = session.receive(b"EHLO client.test\r\n").decode().splitlines()
    offered = [line[4:] for line in lines]
    effect = rules["extensions"].effect
    assert {*effect.add} <= {*offered}
    assert {line.split()[0] for line in offered if line not in effect.add}.isdisjoint(effect.hide)
