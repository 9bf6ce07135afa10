"""Scenario files: what is a mistake, what rules decide, and that the same seed decides the same."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from blackhole.rules import scenario
from blackhole.rules.attempt_store import NULL_STORE
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.globs import GlobSet
from blackhole.rules.listener_rules import MAX_CLIENT_KINDS
from blackhole.rules.model import Condition, Rule, Window
from blackhole.rules.scenario_file import parse_rule, parse_rules
from blackhole.settings import OperatorError
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.header_section import FIELD_ROOM
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable
from blackhole.tls_menu import TLSParameters
from tests.engines import make_engine
from tests.remote_store import RemoteStore, with_lookups

pytestmark = pytest.mark.pure


def rules(text: str) -> tuple[Rule, ...]:
    return parse_rules(text, "test.toml")


def engine(
    text: str, mode: str = "accept", listener: str = "127.0.0.1:25", outside: RuleEnvironment | None = None
) -> SMTPEngine:
    environment = outside or RuleEnvironment(attempt_store=AttemptTable(sets=64))
    return make_engine(rules(text), mode, listener, environment, hostname="mx.test")


def greeted_session(of: SMTPEngine, client: str = "192.0.2.1") -> Session:
    session = of.session(client=client)
    session.greet()
    return session


def rcpt(session: Session, recipient: str) -> str:
    return session.receive(f"RCPT TO:<{recipient}>\r\n".encode()).decode().strip()


# Mistakes

REFUSE = '[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 Later"\n'
CLOSE = "[[rule]]\nreply = '421 4.7.0 No'\n"

MISTAKES = {
    "": "test.toml: no [[rule]] in the file",
    "[[rule]": "test.toml: Expected ']]' at the end of an array declaration (at line 1, column 7)",
    "rule = 1": "test.toml:1: rule: expected [[rule]] in double brackets",
    "[rule]\nphase = 'RCPT'": "test.toml: rule: expected [[rule]] in double brackets",
    "seeds = 7\n" + REFUSE: 'test.toml:1: unknown key "seeds" (did you mean seed?)',
    "seed = -1\n" + REFUSE: "test.toml:1: seed: expected a whole number from 0, not '-1'",
    REFUSE + "recipent = '*'\n": 'test.toml:4: rule 1: unknown key "recipent" (did you mean recipient?)',
    REFUSE
    + "by = 'client'\n": 'test.toml:4: rule 1: unknown key "by"; it belongs in greylist = { by = ... } or '
    "throttle = { by = ... }",
    REFUSE + "p99 = '2s'\n": 'unknown key "p99"; it belongs in delay = { p99 = ... }',
    REFUSE + "drip = 10\n": 'unknown key "drip"; it belongs in then = { drip = ... }',
    REFUSE + "every = '1h'\n": "it belongs in throttle = { every = ... } or [[window]]",
    REFUSE + "ramp = '1m'\n": 'unknown key "ramp"; it belongs in [[window]]',
    "[[window]]\nby = 'all'\n" + REFUSE: 'window 1: unknown key "by"',
    REFUSE + "regex = '(a+)+$'\n": 'test.toml:4: rule 1: unknown key "regex"; patterns are globs of * and ?, '
    "there are no regular expressions",
    REFUSE
    + "recipient = '/(a+)+$/'\n": "test.toml:4: rule 1: recipient: expected a glob of * and ?; there are no "
    "regular expressions, not '/(a+)+$/'",
    "[[rule]]\nreply = '450 4.2.1 Later'": "test.toml:1: rule 1: phase: missing; expected one of CONNECT, ",
    "[[rule]]\nphase = 'rcpt'\nreply = '450 4.2.1 Later'": "test.toml:2: rule 1: phase: expected one of ",
    "[[rule]]\nphase = 'RCPT TO'\nreply = '450 4.2.1 Later'": "(did you mean RCPT?)",
    "[[rule]]\nphase = 'RCPT'": "test.toml:1: rule 1: reply: missing; a rule needs one of reply, ",
    "[[rule]]\nphase = 'RCPT'\nreply = 'Later'": "test.toml:3: rule 1: reply: expected a reply with its ",
    "[[rule]]\nphase = 'RCPT'\nreply = '450'": "expected a reply with its code",
    "[[rule]]\nphase = 'RCPT'\nreply = '450 5.2.1 Later'": "rule 1: reply: 5.2.1 does not go with 450",
    "[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 L\u00e4ter'": "characters of ASCII",
    "[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 {name}'": "{name} is none of {client} {helo} ",
    "[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 {Client}'": "{Client} is none of {client} {helo} ",
    "[[rule]]\nphase = 'RCPT'\nreply = []": "expected at least one reply",
    "[[rule]]\nphase = 'RCPT'\nreply = ['250 2.1.5 OK', '450 4.2.1 Later']": "acceptances, not both",
    "[[rule]]\nphase = 'RCPT'\nreply = '354 Go on'": "rule 1: reply: 354 is the reply to DATA only",
    "[[rule]]\nphase = ['RCPT', 'MAIL']\nreply = '250 2.0.0 OK'": "250 cannot be right in several phases",
    REFUSE + "chance = 2\n": "test.toml:4: rule 1: chance: expected a probability from 0 to 1, not '2'",
    REFUSE + "chance = 'often'\n": "rule 1: chance: expected a number, not 'often'",
    REFUSE + "chance = nan\n": "rule 1: chance: expected a number, not 'nan'",
    REFUSE + "window = 'night'\n": 'test.toml:4: rule 1: window: unknown window "night"',
    REFUSE + "window = 'nigth'\n[[window]]\nname = 'night'\nfor = 60\n": "(did you mean night?)",
    "[[window]]\nname = 'night'\n" + REFUSE: "test.toml:1: window 1 (night): for: missing or empty",
    "[[window]]\nfor = 5\n" + REFUSE: "window 1: name: missing or empty",
    "[[window]]\nname = 'w'\nfor = 9\nevery = 5\n"
    + REFUSE: "test.toml:4: window 1 (w): every: shorter than for",
    "[[window]]\nname = 'w'\nfor = 9\nramp = 10\n" + REFUSE: "window 1 (w): ramp: longer than for",
    "[[window]]\nname = 'w'\nfor = '9 years'\n" + REFUSE: "window 1 (w): for: expected a time, as 90, ",
    "[[window]]\nname = 'w'\nfor = -9\n" + REFUSE: "window 1 (w): for: expected no time before 0",
    "[[window]]\nname = 'w'\nfor = 9\n[[window]]\nname = 'w'\nfor = 9\n"
    + REFUSE: 'test.toml:5: window 2 (w): name: window "w" is defined twice',
    REFUSE + "attempt = 'twice'\n": 'rule 1: attempt: expected a comparison, as "<= 2" or "> 10M", not ',
    REFUSE + "client = '192.0.2.256'\n": "rule 1: client: expected an address or a network, as 192.0.2",
    REFUSE + "client = []\n": "rule 1: client: expected at least one",
    REFUSE + "client = '!192.0.2.256'\n": "rule 1: client: expected an address or a network, as 192.0.2",
    REFUSE + "sender = '!'\n": "rule 1: sender: expected printable text",
    REFUSE + "not = 'sender'\n": "rule 1: not: expected a table of conditions, as { sender = ",
    REFUSE + "not = { }\n": "rule 1: not: expected a table of conditions, as { sender = ",
    REFUSE + "not = { sendr = '<>' }\n": 'not: unknown condition "sendr" (did you mean sender?)',
    REFUSE + "not = { size = 'big' }\n": "rule 1: not: size: expected a comparison, as ",
    REFUSE + "not = { sender = '!<>' }\n": 'rule 1: not: sender: with "!" in not; leave one of the two out',
    REFUSE + "not = { header = 'Subject: x' }\n": "test.toml:4: rule 1: not: not known at RCPT; known at .",
    REFUSE + "extension = 'PIPELINING'\n": "rule 1: extension: expected one of SIZE, 8BITMIME, ",
    REFUSE + "extension = 'SMTPUTF-8'\n": "(did you mean SMTPUTF8?)",
    REFUSE + "tls_version = 'SSLv3'\n": "rule 1: tls_version: expected one of TLSv1, TLSv1.1, TLSv1.2, ",
    REFUSE + "recipients = 'many'\n": "rule 1: recipients: expected a comparison",
    REFUSE + "weights = [1, 2]\n": "test.toml:4: rule 1: weights: 2 for 1 replies; each reply needs one",
    REFUSE + "weights = 5\n": "rule 1: weights: expected a list of numbers from 0, as [8, 1, 1]",
    REFUSE + "weights = [0, 0]\n": "rule 1: weights: expected a list of numbers from 0, as [8, 1, 1]",
    REFUSE + "weights = [2, -1]\n": "rule 1: weights: expected a list of numbers from 0, as [8, 1, 1]",
    "set = 5\n" + REFUSE: "test.toml:1: set: expected a table of variables",
    "[set]\nshare = [1]\n" + REFUSE: "set: share: expected a text, a number, or true or false",
    "[set]\n'a b' = 1\n" + REFUSE: "set: a b: expected a name of letters, digits, _ and -",
    "[set]\nshare = 2\n"
    + REFUSE
    + "chance = '$share'\n": "test.toml:6: rule 1: chance: expected a probability from 0 to 1, not "
    "'2', from $share",
    "[set]\nshare = 2\n"
    + REFUSE
    + "chance = '$shore'\n": "chance: unknown variable $shore; [set] has share (did you mean",
    "[set]\n" + REFUSE + "sender = 'a${b}'\n": "sender: unknown variable $b; [set] has none",
    REFUSE + "tls = 'yes'\n": "rule 1: tls: expected true or false, not 'yes'",
    REFUSE + "sender = ''\n": "rule 1: sender: expected printable text",
    REFUSE + "delay = -1\n": "rule 1: delay: expected no time before 0",
    REFUSE + "delay = 4000\n": "rule 1: delay: expected at most 3600 seconds",
    REFUSE + "delay = [5, 1]\n": "rule 1: delay: expected [MIN, MAX] with the lesser first",
    REFUSE + "delay = [5]\n": "rule 1: delay: expected [MIN, MAX]",
    REFUSE + "delay = {}\n": "rule 1: delay: expected { p50 = S, p90 = S, p99 = S } that rise",
    REFUSE
    + "delay = { p50 = 2, p90 = 1 }\n": "rule 1: delay: expected { p50 = S, p90 = S, p99 = S } that rise",
    REFUSE + "delay = { mean = 2 }\n": 'rule 1: delay: unknown key "mean", expected one of lognormal, p50',
    REFUSE + "delay = { lognormal = { median = 2 } }\n": "expected lognormal = { median = S, p99 = S }",
    REFUSE
    + "delay = { lognormal = { median = 2, p99 = 1 } }\n": "expected a median above 0 and a p99 above it",
    REFUSE + "then = 'stal'\n": "rule 1: then: expected one of close, reset, stall, ",
    REFUSE + "then = 'drip'\n": "rule 1: then: drip needs a number; then = { drip = 10 } is ten ",
    REFUSE + "then = 'read'\n": "rule 1: then: read needs a number; then = { read = 10 } is ten ",
    REFUSE + "then = { read = 0 }\n": "rule 1: then: expected read = octets a second, from 1 to 1073741824",
    REFUSE + "then = { window = 'x' }\n": "rule 1: then: expected window = octets, from 1 to 1073741824",
    REFUSE + "then = { read = 1, drip = 1 }\n": "rule 1: then: expected one of close, reset, stall, ",
    REFUSE + "then = { read = 1 }\n": "then: read needs a command that is accepted; leave reply out",
    REFUSE + "then = { reset-after = 1 }\n": "then: reset-after needs a command that is accepted; leave ",
    "[[rule]]\nphase = 'RCPT'\nthen = { reply-after = 9 }": "then: reply-after needs a reply to send in the ",
    "[[rule]]\nphase = 'RCPT'\nreply = '250 OK'\nthen = { reply-after = 9 }": "then: reply-after needs ",
    "[[rule]]\nphase = '.'\nthen = { read = 9 }": "then: read is possible at CONNECT, HELO, ",
    REFUSE + "then = { drip = 0 }\n": "rule 1: then: expected drip = octets a second, from 1 to 65536",
    REFUSE
    + "then = 'close-before-reply'\n": "rule 1: then: close-before-reply sends no reply; leave reply out, ",
    REFUSE + "hide = 'SIZE'\n": 'rule 1: hide: only with phase = "EHLO"',
    "[[rule]]\nphase = 'EHLO'\nhide = 'SIZE'\nreply = '250 mx.test'": "hide: not with reply, which replaces",
    "[[rule]]\nphase = 'EHLO'\nadd = '-'": "add: expected an EHLO keyword",
    "[[rule]]\nphase = 'MAIL'\nrecipient = '*'\ndelay = 1": "test.toml:3: rule 1: recipient: not known at ",
    "[[rule]]\nname = 'first'\nphase = 'MAIL'\nthen = 'stop'\n": "test.toml:4: rule 1 (first): then: ",
    REFUSE + "\n[[rule]]\nphase = 'MAIL'\n\nchance = 2\nthen = 'close'\n": "test.toml:8: rule 2: chance: ",
    "x = " + "[" * 2000: "test.toml: ",
    REFUSE + "when_unknown = 'accept'\n": "rule 1: when_unknown: only with one of attempt, greylist",
    REFUSE + "attempt = 1\nwhen_unknown = 'refuse'\n": "when_unknown: expected a reply with its code",
    REFUSE + "attempt = 1\nwhen_unknown = '250 2.1.5 OK'\n": 'when_unknown: expected "accept", or a refusal',
    REFUSE + "greylist = 5\n": "test.toml:4: rule 1: greylist: expected { min = ",
    REFUSE + "greylist = { least = 5 }\n": "rule 1: greylist: expected { min = ",
    REFUSE + "greylist = { min = '3d' }\n": "rule 1: greylist: expected a min that is less than max",
    REFUSE + "greylist = { min = -1 }\n": "rule 1: greylist: expected no time before 0",
    "[[rule]]\nphase = 'MAIL'\ngreylist = true\n": "rule 1: greylist: not known at MAIL; known at ",
    REFUSE + "greylist = true\nthrottle = { recipients = 1, per = 'day' }\n": "throttle: not with greylist",
    REFUSE + "throttle = 5\n": "rule 1: throttle: expected { WHAT = N, per = TIME, by = WHOSE } with one of ",
    REFUSE
    + "throttle = { messages = 1, bytes = 1 }\n": "throttle: expected { WHAT = N, per = TIME, by = WHOSE }",
    REFUSE
    + "throttle = { recipients = -1 }\n": "throttle: expected a whole number from 0, or one with its unit",
    REFUSE
    + "throttle = { recipients = true }\n": "throttle: expected a whole number from 0, or one with its unit",
    REFUSE + "throttle = { recipients = 1 }\n": "throttle: per: missing; expected one of second, minute, ",
    REFUSE + "throttle = { recipients = 1, per = 'week' }\n": "throttle: expected a time, as 90, ",
    REFUSE + "throttle = { recipients = 1, per = 0 }\n": "throttle: per: expected a time above 0, not '0'",
    REFUSE + "throttle = { recipients = 1, pro = 1 }\n": 'throttle: unknown key "pro", expected per, by, win',
    REFUSE
    + "throttle = { recipients = 1, per = 1, by = 'sendr' }\n": "throttle: by: expected one of client, ",
    REFUSE + "throttle = { recipients = 1, per = 1, by = [] }\n": "by: expected one or more, each once, and ",
    REFUSE
    + "throttle = { recipients = 1, per = 1, by = ['all', 'pair'] }\n": "by: expected one or more, each",
    REFUSE + "throttle = { recipients = 1, per = 1, by = [['pair']] }\n": "by: expected one of client, ",
    REFUSE
    + "throttle = { recipients = 1, per = 1, window = 'slide' }\n": "window: expected one of fixed, sliding",
    REFUSE
    + "throttle = { recipients = 1, per = 'connection', window = 'sliding' }\n": "window: not with per = con",
    REFUSE
    + "throttle = { recipients = '4G', per = 1, window = 'sliding' }\n": "window: slides with a limit of at ",
    REFUSE + "throttle = { recipients = 1, per = 1, burst = 0 }\n": "burst: expected a whole number from 1 ",
    REFUSE + "throttle = { recipients = 1, per = 'connection', burst = 1 }\n": "burst: needs a limit above 0",
    REFUSE + "throttle = { recipients = 0, per = 1, burst = 1 }\n": "burst: needs a limit above 0 and a peri",
    REFUSE
    + "throttle = { recipients = 1, per = 1, burst = 1, window = 'fixed' }\n": "burst: not with window; a ",
    CLOSE + "throttle = { concurrent = 1, window = 'sliding' }\n": "throttle: window: not with concurrent",
    "[[rule]]\nphase = 'MAIL'\ngreylist = { by = 'pair' }\n": "greylist: not known at MAIL; known at ",
    REFUSE + "throttle = { messages = 1, per = 1 }\n": "throttle: messages are counted at MAIL or DATA or .",
    CLOSE + "throttle = { concurrent = 1, per = 1 }\n": "throttle: per: not with concurrent",
    CLOSE + "throttle = { connections = 1, per = 'connection' }\n": "throttle: per: expected a time above 0",
    CLOSE
    + "phase = 'MAIL'\nthrottle = { messages = 1, per = 1, by = ['client', 'recipient-domain'] }\n": "by "
    "client and recipient-domain messages are counted at DATA or .",
    CLOSE + "throttle = { connections = 1, per = 1, by = 'sender-domain' }\n": "by sender-domain connections "
    "are counted at no phase",
    "[[rule]]\nthrottle = { connections = 1, per = 1 }\n": "rule 1: reply: missing; a rule needs one of ",
    REFUSE + "blocklist = 'zen.example.org'\n": "blocklist: not with reply; a blocklist rule",
    "[[rule]]\nblocklist = 'zen.example.org'\n": "blocklist: needs one of client, helo, sender, recipient",
    "[[rule]]\nblocklist = 'zen example'\nhelo = 'x'\n": "blocklist: expected the name of a list",
    "[[rule]]\nphase = '.'\nheader = 'invoice'\ndelay = 1\n": "header: expected a header field, as ",
    REFUSE + "header = 'Subject: x'\n": "rule 1: header: not known at RCPT; known at .",
    "[[rule]]\nphase = 'STARTTLS'\ncertificate = 'stolen'\n": "certificate: expected one of good, self-",
    "[[rule]]\nphase = 'STARTTLS'\ntls_min = '1.4'\n": "tls_min: expected one of 1.0, 1.1, 1.2, 1.3, not ",
    "[[rule]]\nphase = 'STARTTLS'\ntls_ciphers = 'a b'\n": "tls_ciphers: expected a cipher list of OpenSSL, ",
    "[[rule]]\nphase = 'STARTTLS'\nclient_cert = 'aks'\n": "not 'aks' (did you mean ask?)",
    "[[rule]]\nphase = 'EHLO'\ntls_max = '1.2'\n": 'tls_max: only with phase = "STARTTLS"',
    "[[rule]]\nphase = '*'\nthen = 'close-in-handshake'\n": 'close-in-handshake only with phase = "STARTTLS"',
    "[[rule]]\nphase = 'STARTTLS'\ntls_max = '1.2'\nreply = '454 4.7.0 No'\n": "reply: a refusal: there is ",
    "[[rule]]\nphase = 'STARTTLS'\nsni = 'a'\ntls_max = '1.2'\n": "sni: not known at STARTTLS; known at ",
    "[[rule]]\nphase = 'MAIL'\nreply = 'accept'\nthen = 'close'\n": "then: close replaces the command, ",
}
"""A file's text and (part of) the one line that is said."""


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: repr(text[-40:]))
def test_mistake_in_a_file_is_reported_in_one_line(text: str) -> None:
    with pytest.raises(OperatorError) as found:
        rules(text)
    assert MISTAKES[text] in str(found.value)
    assert "\n" not in str(found.value)
    assert found.value.code == 78


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("window", "w", "api: window: not in a single rule, which has no windows"),
        ("chance", 0.5, "api: chance: not in a single rule, which matches for certain"),
        ("greylist", True, "api: greylist: not in a single rule; put it into a scenario"),
    ],
)
def test_single_rule_has_neither_window_nor_chance_nor_limiter(key: str, value: object, error: str) -> None:
    block = {"phase": "RCPT", "reply": "450 4.2.1 Later"}
    assert parse_rule(block, "api").phases == {"RCPT"}
    with pytest.raises(OperatorError) as found:
        parse_rule({**block, key: value}, "api")
    assert str(found.value) == error


def test_error_without_a_known_line_names_the_rule() -> None:
    with pytest.raises(OperatorError) as found:
        rules("about = '''\n[[rule]]\n'''\n" + REFUSE + "chance = 2")
    assert str(found.value).startswith("test.toml: rule 1: chance: ")


def test_rules_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(REFUSE.replace("Later", f"Says {name}"))
    found = scenario.load_rules([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [rule.name for rule in found] == ["1", "2"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/at.all", "scenario /nowhere/at.all: No such file or directory"),
        ("profile:flakey", "scenario profile:flakey: no such profile; .* \\(did you mean flaky\\?\\)"),
        ("profile:../settings", "scenario profile:../settings: no such profile"),
    ],
)
def test_missing_file_or_profile_is_an_error(source: str, said: str) -> None:
    with pytest.raises(OperatorError) as found:
        scenario.load_rules([source])
    assert re.match(said, str(found.value))


def test_byte_order_mark_before_a_scenario_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(f"\N{BYTE ORDER MARK}{REFUSE}")
    assert [rule.name for rule in scenario.load_rules([str(path), str(path)])] == ["1", "2"]


def test_client_condition_matches_a_network_of_mapped_addresses() -> None:
    of = engine(REFUSE + 'client = "::ffff:192.0.2.77/120"\n')
    for client, reply in {"192.0.2.1": "450", "::ffff:192.0.2.1": "450", "192.0.3.1": "250"}.items():
        session = greeted_session(of, client)
        session.receive(b"MAIL FROM:<a@example.com>\r\n")
        assert rcpt(session, "b@example.com")[:3] == reply


def test_file_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(OperatorError, match="not UTF-8 text"):
        scenario.load_rules([str(tmp_path / "x")])


# Patterns


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("bob@example.com", ["bob@example.com", "BOB@Example.Com"], ["bob@example.comm", "xbob@example.com"]),
        ("*@example.com", ["bob@example.com", '"a@b"@example.com'], ["bob@sub.example.com", "example.com"]),
        ("*@*.example.com", ["bob@sub.example.com", "bob@a.b.example.com"], ["bob@example.com"]),
        ("reply-4??@*", ["reply-451@x", "REPLY-499@y.example"], ["reply-45@x", "reply-4511@x"]),
        ("*", ["", "bob", "bob@example.com"], []),
        ("*a*b*c", ["abc", "xaxbxc", "aabbcc"], ["acb", "abcx", "bac"]),
        ("bob@[192.0.2.1]", ["bob@[192.0.2.1]"], ["bob@1"]),
        ("<>", [""], ["x"]),
        ("b?b", ["bob", "b?b"], ["bb", "boob"]),
        ("b\u00f6b@*", ["b\u00f6b@x"], ["bob@x"]),
    ],
)  # fmt: skip
def test_glob_matches(glob: str, yes: list[str], no: list[str]) -> None:
    globs = GlobSet([glob if glob != "<>" else ""])
    assert [text for text in yes if not globs.match(text.encode())] == []
    assert [text for text in no if globs.match(text.encode())] == []


def test_no_glob_backtracks() -> None:
    """What makes a backtracking matcher run for years; a hundred times of it are done in no time."""
    globs = GlobSet(["*a" * 100 + "b"])
    began = time.process_time()
    for _ in range(100):
        assert not globs.match(b"a" * 2000)
    assert time.process_time() - began < 5


def test_client_condition_matches_networks() -> None:
    found = rules(REFUSE + "client = ['192.0.2.0/24', '2001:db8::/32', '198.51.100.7']")
    (test,) = found[0].conditions
    for client in ("192.0.2.200", "::ffff:192.0.2.1", "2001:db8::1%eth0", "198.51.100.7"):
        assert test.matches(RuleContext(client=client)), client
    for client in ("192.0.3.1", "2001:db9::1", "198.51.100.8", "", "/run/sink.sock"):
        assert not test.matches(RuleContext(client=client)), client


# Windows


@pytest.mark.parametrize(
    ("window", "shares"),
    [
        (Window("once", 60, 90), {0: 0, 59.9: 0, 60: 1, 149: 1, 150: 0, 1000: 0}),
        (Window("again", 60, 90, 600), {0: 0, 60: 1, 150: 0, 660: 1, 749: 1, 751: 0, 6060: 1}),
        (Window("ramp", 10, 100, 0, 50), {9: 0, 10: 0, 35: 0.5, 60: 1, 109: 1, 110: 0}),
    ],
)
def test_window_opens_and_closes(window: Window, shares: dict[float, float]) -> None:
    assert {at: window.share(at) for at in shares} == shares


def test_rule_applies_in_its_window_only() -> None:
    now = 0.0
    text = REFUSE + "window = 'outage'\n[[window]]\nname = 'outage'\nat = '1m'\nfor = '90s'\n"
    session = greeted_session(engine(text, outside=RuleEnvironment(clock=lambda: now)))
    heard = {}
    for now in (0.0, 59.0, 60.0, 149.0, 150.0):
        heard[now] = rcpt(session, "bob@example.com")[:3]
    assert heard == {0.0: "250", 59.0: "250", 60.0: "450", 149.0: "450", 150.0: "250"}


def test_ramp_raises_the_chance() -> None:
    now = 0.0
    text = REFUSE + "window = 'w'\n[[window]]\nname = 'w'\nfor = 1000\nramp = 1000\n"
    session = greeted_session(engine(text, outside=RuleEnvironment(clock=lambda: now)))
    refused = []
    for number in range(1000):
        now = float(number)
        refused.append(rcpt(session, f"{number}@example.com").startswith("450"))
    assert sum(refused[:250]) < 70 < 180 < sum(refused[750:])


# Chance

CHANCE = """
seed = 7
[[rule]]
name = "a third"
phase = "RCPT"
chance = 0.33
reply = ["450 4.2.1 One", "451 4.2.1 Two", "452 4.2.1 Three"]
"""


def outcomes(text: str, count: int = 300) -> list[str]:
    of = engine(text)
    return [rcpt(greeted_session(of), f"r{number}@example.com") for number in range(count)]


def test_same_seed_has_the_same_outcomes() -> None:
    assert outcomes(CHANCE) == outcomes(CHANCE)
    assert outcomes(CHANCE) != outcomes(CHANCE.replace("seed = 7", "seed = 8"))


def test_what_a_seed_gives_stays_the_same() -> None:
    heard = [reply[:3] for reply in outcomes(CHANCE, 24)]
    refused = {number: code for number, code in enumerate(heard) if code != "250"}
    assert list(refused) == [1, 15, 16, 19, 20, 22, 23]
    assert [*refused.values()] == ["451", "451", "450", "451", "452", "452", "452"]


def test_without_a_seed_the_random_source_of_the_session_draws() -> None:
    text = CHANCE.replace("seed = 7", "")
    assert outcomes(text) == outcomes(text), "the engines of these tests have the same random source"
    assert outcomes(text) != outcomes(CHANCE)


def test_draws_of_a_named_rule_do_not_depend_on_its_position() -> None:
    other = REFUSE + "recipient = 'nobody@example.net'\n"
    assert outcomes(CHANCE) == outcomes(CHANCE + other)


def test_chance_is_the_share_of_outcomes() -> None:
    drawn = Counter(reply[:3] for reply in outcomes(CHANCE, 3000))
    assert 1900 < drawn["250"] < 2120
    assert min(drawn[code] for code in ("450", "451", "452")) > 260


def test_retry_draws_again() -> None:
    session = greeted_session(engine(REFUSE + "chance = 0.5"))
    tries = [rcpt(session, "bob@example.com")[:3] for _ in range(64)]
    assert set(tries) == {"250", "450"}


def test_attempts_are_counted_for_each_envelope() -> None:
    of = engine(REFUSE + "attempt = '<= 2'")
    heard = []
    for sender in ("ann", "ann", "eve", "ann"):
        session = greeted_session(of)
        session.receive(f"MAIL FROM:<{sender}@example.com>\r\n".encode())
        heard.append(rcpt(session, "bob@example.com")[:3])
    assert heard == ["450", "450", "450", "250"]


def test_attempts_without_an_envelope_are_counted_for_the_client() -> None:
    of = engine("[[rule]]\nphase = 'CONNECT'\nattempt = 1\nreply = '421 4.3.2 Not yet'")
    heard = [of.session(client=client).greet()[:3] for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]
    assert heard == [b"421", b"421", b"220"]


# Delays


def delays(delay: str) -> list[float]:
    of = engine(f"[[rule]]\nphase = 'RCPT'\ndelay = {delay}")
    found = []
    for number in range(2000):
        session = greeted_session(of)
        assert rcpt(session, f"r{number}@example.com") == ""
        assert session.next_action is NextAction.SLEEP
        found.append(session.wait)
    return sorted(found)


def test_uniform_delay() -> None:
    found = delays("[1, 3]")
    assert 1 <= found[0] < 1.1 < 2.9 < found[-1] <= 3
    assert 1.9 < found[1000] < 2.1


def test_lognormal_delay() -> None:
    found = delays("{ lognormal = { median = 0.2, p99 = 5 } }")
    assert 0.16 < found[1000] < 0.25
    assert 3 < found[1980] < 9


def test_delay_by_percentiles() -> None:
    found = delays("{ p50 = 1, p90 = 2, p99 = 10 }")
    assert 0.9 < found[1000] < 1.1
    assert 1.6 < found[1760] < 2.1
    assert 7 < found[1985] <= found[-1] <= 10


# Listeners and clients


def test_listener_condition() -> None:
    text = REFUSE + "listener = 2526"
    assert rcpt(greeted_session(engine(text, listener="127.0.0.1:2526")), "bob@example.com")[:3] == "450"
    assert rcpt(greeted_session(engine(text, listener="127.0.0.1:2525")), "bob@example.com")[:3] == "250"


def test_client_condition() -> None:
    of = engine(
        REFUSE + "client = '192.0.2.0/24'\n" + REFUSE.replace("450", "451") + "client = '2001:db8::/32'"
    )
    heard = {
        client: rcpt(greeted_session(of, client), "b@x")[:3] for client in ("192.0.2.9", "2001:db8::1", "::1")
    }
    assert heard == {"192.0.2.9": "450", "2001:db8::1": "451", "::1": "250"}


def test_tls_condition_matches_from_the_handshake_on() -> None:
    session = greeted_session(engine(REFUSE + "tls = true"))
    assert rcpt(session, "bob@example.com")[:3] == "250"
    session.secured()
    assert rcpt(session, "bob@example.com")[:3] == "450"


def test_number_of_kept_tables_is_limited() -> None:
    """Three hundred clients, each with a rule of its own; the tables of some hundred are kept."""
    addresses = [f"192.0.{n // 256}.{n % 256}" for n in range(300)]
    of = engine("".join(REFUSE + f"client = '{address}'\n" for address in addresses))
    for address in addresses:
        assert rcpt(greeted_session(of, address), "bob@example.com")[:3] == "450"
    assert rcpt(greeted_session(of, "198.51.100.1"), "bob@example.com")[:3] == "250"
    assert len(of.policy.rules._tables) <= MAX_CLIENT_KINDS < 300


# TLS from the first octet


@pytest.mark.parametrize(
    ("rule", "next_action", "shown"),
    [
        ("certificate = 'expired'", NextAction.READ, "expired"),
        ("then = 'stall'", NextAction.HANG, ""),
        ("then = 'reset'", NextAction.ABORT, ""),
        ("then = 'close'\ntls = true", NextAction.READ, ""),
    ],
)
def test_rules_at_starttls_apply_to_implicit_tls(rule: str, next_action: NextAction, shown: str) -> None:
    text = f"[[rule]]\nphase = 'STARTTLS'\n{rule}\n"
    for more, memory in (("", NULL_STORE), ("attempt = 1", RemoteStore())):
        session = engine(text + more, outside=RuleEnvironment(attempt_store=memory)).session()
        session.check_implicit_tls()
        assert with_lookups(session, b"") == b""
        assert (session.next_action, session.handshake.certificate) == (next_action, shown)


def test_a_rule_says_how_the_handshake_is_done() -> None:
    text = (
        "[[rule]]\nphase = 'STARTTLS'\ncertificate = 'expired'\ntls_min = '1.0'\ntls_max = '1.1'\n"
        "tls_ciphers = 'ALL:@SECLEVEL=0'\nclient_cert = 'ask'\nthen = 'no-close-notify'\n"
    )
    wanted = TLSParameters("expired", "1.0", "1.1", "ALL:@SECLEVEL=0", "ask", "no-close-notify")
    session = greeted_session(make_engine(parse_rules(text, "test"), starttls=True))
    assert session.receive(b"STARTTLS\r\n") == b"220 2.0.0 Ready to start TLS\r\n"
    assert (session.next_action, session.handshake) == (NextAction.START_TLS, wanted)
    session.secured(b"mx.test", b"ann@example.com")
    assert (session.handshake, session.client_identity) == (TLSParameters(), b"ann@example.com")


def test_client_that_sends_during_a_delayed_reply_is_answered_after_it() -> None:
    session = greeted_session(engine("[[rule]]\nphase = 'NOOP'\ndelay = 5\n"))
    assert session.receive(b"NOOP\r\n") == b""
    assert session.next_action is NextAction.SLEEP
    assert session.client_sent_early(b"") == b""
    assert session.resume().startswith(b"250 ")
    assert rcpt(session, "bob@b").startswith("250 ")


def test_sessions_without_rules_ask_no_policy() -> None:
    session = make_engine().session()
    session.check_implicit_tls()
    assert session.next_action is NextAction.READ


# What it costs


def test_index_spares_asking_a_hundred_rules() -> None:
    """Counted here is what takes time: conditions looked at."""
    asked: Counter[str] = Counter()

    def counted(test: Condition) -> Condition:
        def holds(context: RuleContext) -> bool:
            asked[test.text] += 1
            return test.matches(context)

        return test._replace(matches=holds)

    text = "".join(REFUSE + f"recipient = '*@d{n}.example'\n" for n in range(100))
    text += "".join(REFUSE + f"recipient = ['n{n}-*', '*@*.s{n}.test']\n" for n in range(10))
    text += "".join(REFUSE + f"recipient = '*?part{n}-*'\n" for n in range(50))
    text += "".join(REFUSE + f"sender = 's{n}@*'\n" for n in range(50))
    text += REFUSE + "recipient = 'vip@d7.example'\n" + REFUSE + "helo = '*a*'\n"
    watched = tuple(replace(rule, conditions=tuple(map(counted, rule.conditions))) for rule in rules(text))
    session = greeted_session(make_engine(rules=watched))
    asked.clear()
    heard = [rcpt(session, f"{name}.example")[:3] for name in ("vip@d7", "bob@d7", "bob@d100")]
    assert heard == ["450", "450", "250"]
    assert asked == {"*@d7.example": 2, "*a*": 1}
    asked.clear()
    assert rcpt(session, "x-part17-@y.test")[:3] == "450"
    assert asked == {"*?part17-*": 1}
    asked.clear()
    session.receive(b"MAIL FROM:<S23@z.test>\r\n")
    assert rcpt(session, "x-part1") == "450 4.2.1 Later"
    assert asked == {"s23@*": 1}
    asked.clear()
    assert rcpt(session, "n7-x@y.test")[:3] == "450"
    assert rcpt(session, "x@a.b.s7.test")[:3] == "450"
    assert asked == {"n7-* or *@*.s7.test": 2}


# The header section


def test_header_conditions_see_the_beginning_of_a_header_section() -> None:
    """And it is forgotten with its message."""
    of = engine("[[rule]]\nphase = '.'\nheader = 'X-Last: *'\nreply = '550 5.7.1 No'")
    for filler, code in (
        (b"A: b\r\n" * 900, b"550"),
        (b"A: b\r\n" * 1000, b"250"),
        (b"A: " + b"b" * 60000 + b"\r\n", b"550"),
        (b"A: " + b"b" * 66000 + b"\r\n", b"250"),
    ):
        session = greeted_session(of)
        session.receive(b"DATA\r\n")
        text = filler + b"X-Last: here\r\n\r\n" + b"x" * 100000 + b"\r\n.\r\n"
        out = b"".join(session.receive(text[start : start + 4000]) for start in range(0, len(text), 4000))
        assert out[:3] == code
        assert session.policy.context.header == ()
        session.receive(b"DATA\r\n")
        assert session.receive(text)[:3] == code, "all at once"


@pytest.mark.parametrize(
    "others, kept",
    [
        (b"Subject: x\r\n", b"Subject: x\r\nX-Last: y\r\n\r\n"),
        (b"Subject: " + b"x" * FIELD_ROOM + b"\r\n", b"X-Last: y\r\n\r\n"),
    ],
    ids=["short", "long"],
)
def test_session_keeps_a_short_header_section_or_the_fields_that_rules_look_at(
    others: bytes, kept: bytes
) -> None:
    session = greeted_session(engine("[[rule]]\nphase = '.'\nheader = 'X-Last: *'\nreply = '550 5.7.1 No'"))
    session.receive(b"DATA\r\n" + others + b"X-Last: y\r\n\r\n")
    assert session.body is not None
    header = session.body.header
    for _ in range(16):
        session.receive(b"x" * 65536)
    assert (header if isinstance(header, bytes) else getattr(header, "text", b"")) == kept


def test_rules_know_the_version_of_tls_and_that_the_client_has_authenticated() -> None:
    found = rules(
        """
        [[rule]]
        phase = "MAIL"
        tls_version = "< 1.3"
        reply = "530 5.7.0 Use TLS 1.3"
        [[rule]]
        phase = "MAIL"
        extension = "AUTH"
        reply = "250 2.1.0 Good to know you"
        """
    )
    session = make_engine(rules=found, auth=True, auth_plaintext=True).session()
    session.tls_version = "TLSv1.2"
    session.receive(b"EHLO me.test\r\n")
    assert session.receive(b"MAIL FROM:<ann@a>\r\n") == b"530 5.7.0 Use TLS 1.3\r\n"
    session.tls_version = "TLSv1.3"
    assert session.receive(b"MAIL FROM:<ann@a>\r\n") == b"250 2.1.0 Sender OK\r\n"
    session.receive(b"RSET\r\nAUTH PLAIN AGFubgB4\r\n")
    assert session.receive(b"MAIL FROM:<ann@a>\r\n") == b"250 2.1.0 Good to know you\r\n"
