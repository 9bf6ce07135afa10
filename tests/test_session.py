"""Every transcript against a session without a socket, whole and in pieces: replies do not show the cuts."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blackhole import options
from blackhole.addresses import NetworkSet
from blackhole.net.listener_setup import listener_config
from blackhole.rules import scenario
from blackhole.rules.attempt_store import AttemptStore
from blackhole.rules.context import RuleContext
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.model import Rule
from blackhole.rules.scenario import Scenario
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.commands import HTTP_VERBS
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.replies import BOUNCES, NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.state import KEPT_OCTETS, ClientLimits, ListenerConfig
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.attempts import AttemptTable
from blackhole.store.outcome_table import OutcomeTable
from tests.conftest import Certificate
from tests.engines import VIOLATION_NAMES, make_engine
from tests.remote_store import RemoteStore, with_lookups
from tests.transcript import (
    CONNECTION_VIOLATIONS,
    PIPELINING_VIOLATIONS,
    Mismatch,
    Transcript,
    all_transcripts,
    bless,
    play,
    printable,
)

pytestmark = pytest.mark.pure

in_all_cuts = pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="whole"),
        pytest.param(7, id="sevens", marks=pytest.mark.without_coverage),
        pytest.param(1, id="ones", marks=pytest.mark.without_coverage),
    ],
)
"""The sizes of the pieces that a session receives; 0 leaves the data whole."""


class SessionPeer:
    """A session without a socket. Delays are simulated: they are counted and take no time."""

    simulates_time = True

    def __init__(self, engine: SMTPEngine, secure: bool, size: int) -> None:
        self.engine = engine
        # The real servers of the transcripts have clients on this machine too.
        self.session = engine.session(secure, "127.0.0.1")
        self.size = size
        """The size of the pieces that the session receives; 0 leaves the data whole."""
        self.waited = 0.0
        self.lines: list[tuple[str, float]] = []
        self.part_of_line = b""
        if not secure:
            self.receive(with_lookups(self.session, self.session.greet()))

    def receive(self, out: bytes) -> None:
        while True:
            *lines, self.part_of_line = (self.part_of_line + out).split(b"\n")
            self.lines += [(printable(line + b"\n"), self.waited) for line in lines]
            if self.session.next_action is NextAction.LIMIT_INPUT:
                assert self.session.input_fault is not None
                self.session.input_limited(self.session.input_fault.window)
            if self.session.next_action is NextAction.CHANGE_CLIENT:
                self.session = self.engine.session_after(self.session)
                out = with_lookups(self.session, self.session.greet_named_client())
                continue
            if self.session.next_action is not NextAction.SLEEP:
                return
            self.waited += self.session.wait
            out = with_lookups(self.session, self.session.resume())

    def send(self, data: list[bytes]) -> None:
        self.waited = 0.0
        joined = b"".join(data)
        size = self.size or len(joined)
        for start in range(0, len(joined), size):
            if self.session.next_action not in (NextAction.READ, NextAction.READ_SLOWLY):
                return
            self.receive(with_lookups(self.session, self.session.receive(joined[start : start + size])))

    def read_line(self) -> tuple[str, float] | None:
        return self.lines.pop(0) if self.lines else None

    def read_octets(self, size: int) -> str:
        octets, self.part_of_line = self.part_of_line[:size], self.part_of_line[size:]
        return printable(octets)

    def is_closed(self) -> bool:
        return not self.lines and not self.part_of_line and self.session.next_action is NextAction.CLOSE

    def is_reset(self) -> bool:
        return not self.lines and not self.part_of_line and self.session.next_action is NextAction.ABORT

    def is_silent(self) -> bool:
        return not self.lines and not self.part_of_line and self.session.next_action is NextAction.HANG

    def start_tls(self) -> None:
        if self.session.secure:
            self.receive(self.session.greet())
        elif self.session.next_action is NextAction.START_TLS:
            self.session.secured()
        else:
            raise Mismatch("the server does not start a TLS handshake")


def session_peer(
    transcript: Transcript,
    certificate: Certificate,
    size: int,
    memory: AttemptStore | None = None,
    fast_path: bool = True,
    recorder: Recorder | None = None,
) -> SessionPeer:
    settings = options.parse(transcript.argv(certificate.cert, certificate.key), {}).settings
    listener = next(listener for listener in settings.listeners if listener.tls is transcript.implicit_tls)
    active = ActiveScenario(Scenario(scenario.load_rules(settings.scenario, settings.set)))
    outside = RuleEnvironment(
        attempt_store=memory or AttemptTable(sets=64), outcome_store=OutcomeTable(sets=64)
    )
    config = replace(listener_config(settings, listener), fast_path=fast_path)
    engine = make_engine(
        active.rules, listener.mode, str(listener), outside, config=config, recorder=recorder
    )
    return SessionPeer(engine, transcript.implicit_tls, size)


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "general path"])
@in_all_cuts
@pytest.mark.parametrize("transcript", all_transcripts(), ids=str)
def test_replies_do_not_depend_on_segmentation(
    transcript: Transcript, size: int, fast_path: bool, certificate: Certificate, pytestconfig: pytest.Config
) -> None:
    if transcript.whole_segments:
        size = 0
    if pytestconfig.getoption("bless") and not size:
        bless(transcript, session_peer(transcript, certificate, size))
    else:
        play(transcript, session_peer(transcript, certificate, size, fast_path=fast_path))


@in_all_cuts
@pytest.mark.parametrize(
    "transcript", [one for one in all_transcripts() if one.scenario or one.options], ids=str
)
def test_replies_do_not_depend_on_the_kind_of_attempt_store(
    transcript: Transcript, size: int, certificate: Certificate
) -> None:
    size = 0 if transcript.whole_segments else size
    here, there = (session_peer(transcript, certificate, size, memory) for memory in (None, RemoteStore()))
    for peer in (here, there):
        play(transcript, peer)
    assert accusations(there.session) == accusations(here.session)


def accusations(session: Session) -> list[str]:
    """The rules that were broken, in alphabetical order."""
    return sorted(VIOLATION_NAMES[event] for event in session.counted_events if event in VIOLATION_NAMES)


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "general path"])
@in_all_cuts
@pytest.mark.parametrize(
    "transcript", [one for one in all_transcripts() if one.violations is not None], ids=str
)
def test_violations_do_not_depend_on_segmentation(
    transcript: Transcript, size: int, fast_path: bool, certificate: Certificate
) -> None:
    if transcript.whole_segments:
        size = 0
    peer = session_peer(transcript, certificate, size, fast_path=fast_path)
    play(transcript, peer)
    assert transcript.violations is not None
    unseen = CONNECTION_VIOLATIONS | PIPELINING_VIOLATIONS if size else CONNECTION_VIOLATIONS
    wanted = sorted(rule for rule in transcript.violations if rule not in unseen)
    assert [rule for rule in accusations(peer.session) if rule not in unseen] == wanted


def conversation(mode: str = "accept", **more: object) -> Session:
    """A greeted session of a listener with these settings."""
    session = make_engine(hostname="mx.test", mode=mode, **more).session()  # type: ignore[arg-type]
    session.greet()
    return session


@pytest.mark.parametrize("verb", HTTP_VERBS)
def test_http_request_closes_the_connection(verb: str) -> None:
    session = conversation()
    said = f"{verb} / HTTP/1.1\r\nHost: mx.test\r\n\r\nHELO client.test\r\n"
    assert session.receive(said.encode()) == b"221 2.7.0 This is an SMTP server. Goodbye\r\n"
    assert session.next_action is NextAction.CLOSE


def draws(mode: str, messages: int) -> list[bytes]:
    """How as many messages end, each in a session of its own, as a refusal may close it."""
    engine = make_engine(mode=mode)
    replies = []
    for _ in range(messages):
        session = engine.session()
        session.greet()
        replies.append(session.receive(b"DATA\r\n.\r\n").splitlines()[1])
    return replies


def test_replies_to_a_pipelined_group_are_returned_together() -> None:
    """RFC 2920 3.2: one write for a group."""
    group = b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nRCPT TO:<eve@x.test>\r\nDATA\r\n"
    codes = [line[:3] for line in conversation().receive(group).splitlines()]
    assert codes == [b"250", b"250", b"250", b"354"]


def test_bounce_mode_draws_every_bounce_reply() -> None:
    drawn = Counter(int(reply[:3]) for reply in draws("bounce", 2000))
    assert set(drawn) == {reply.code for reply in BOUNCES}
    # Evenly: 125 of each are expected, and the seed is fixed.
    assert min(drawn.values()) > 80


def test_random_mode_accepts_half_of_the_messages() -> None:
    drawn = Counter(int(reply[:3]) for reply in draws("random", 2000))
    assert 900 < drawn[250] < 1100
    assert set(drawn) == {250, *(reply.code for reply in BOUNCES)}


def test_accept_mode_never_refuses() -> None:
    assert {reply[:3] for reply in draws("accept", 200)} == {b"250"}


def test_delay_is_drawn_from_its_range() -> None:
    session = conversation(delay=(0.1, 0.3))
    waits = []
    for _ in range(200):
        assert session.receive(b"NOOP\r\n") == b""
        assert session.next_action is NextAction.SLEEP
        waits.append(session.wait)
        assert session.resume() == b"250 2.0.0 OK\r\n"
    assert 0.1 <= min(waits) < 0.12 < 0.28 < max(waits) <= 0.3


def test_input_during_a_delay_is_answered_after_it() -> None:
    session = conversation(delay=(1.0, 1.0))
    assert session.receive(b"HELO client.test\r\nNO") == b""
    assert session.resume() == b"250 mx.test\r\n"
    assert session.receive(b"OP\r\n") == b""
    assert session.resume() == b"250 2.0.0 OK\r\n"
    assert session.next_action is NextAction.READ


def test_session_yields_after_many_commands_in_one_chunk() -> None:
    session = conversation()
    out = session.receive(1000 * b"NOOP\r\n")
    turns = 0
    while session.next_action is NextAction.SLEEP:
        assert session.wait == 0
        turns += 1
        out += session.resume()
    assert turns > 3
    assert out == 1000 * b"250 2.0.0 OK\r\n"


def test_transaction_has_an_id_until_it_is_reset() -> None:
    session = conversation()
    first = session.id
    session.receive(b"MAIL FROM:<ann@example.com>\r\n")
    assert session.id == first
    session.receive(b"RSET\r\n")
    second = session.id
    assert second != first
    out = session.receive(b"DATA\r\n.\r\n")
    assert out.endswith(b"queued as %010X\r\n" % second)
    assert session.id not in (first, second)


def test_session_keeps_nothing_of_a_body() -> None:
    """Nor of a line too long: a session is as small after a megabyte as before."""
    session = conversation()
    session.receive(b"DATA\r\n")
    for _ in range(16):
        session.receive(65536 * b"x")
    other = conversation()
    other.receive(60000 * b"x")
    for one in (session, other):
        assert max(len(held) for held in gc.get_referents(one) if isinstance(held, bytes)) <= KEPT_OCTETS


def test_trace_has_every_line_received_and_sent() -> None:
    seen = []
    engine = make_engine(hostname="mx.test", trace=lambda session, way, line: seen.append((way, line)))
    session = engine.session()
    session.greet()
    session.receive(b"HELO client.test\r\nDA")
    session.receive(b"TA\r\nHello\r\n\xff\r\n.\r\nQUIT\r\n")
    assert seen[-3][1].startswith(b"250 2.0.0 OK: queued as ")
    del seen[-3]
    assert seen == [
        ("SEND", b"220 mx.test ESMTP Blackhole"),
        ("RECV", b"HELO client.test"),
        ("SEND", b"250 mx.test"),
        ("RECV", b"DATA"),
        ("SEND", b"354 Start mail input; end with <CRLF>.<CRLF>"),
        ("RECV", b"Hello"),
        ("RECV", b"\xff"),
        ("RECV", b"."),
        ("RECV", b"QUIT"),
        ("SEND", b"221 2.0.0 Goodbye"),
    ]


def test_trace_has_the_greeting_of_the_client_that_xclient_names() -> None:
    seen = []
    engine = make_engine(
        hostname="mx.test",
        xclient_from=NetworkSet(["192.0.2.1"]),
        trace=lambda session, way, line: seen.append((session, line)),
    )
    session = engine.session(client="192.0.2.1")
    session.greet()
    assert session.receive(b"XCLIENT ADDR=192.0.2.7\r\nNOOP\r\n") == b""
    named = engine.session_after(session)
    assert named.greet_named_client() == b"220 mx.test ESMTP Blackhole\r\n250 2.0.0 OK\r\n"
    assert [line for one, line in seen if one is named] == [
        b"220 mx.test ESMTP Blackhole",
        b"NOOP",
        b"250 2.0.0 OK",
    ]


@settings(deadline=None, max_examples=300)
@given(
    body=st.lists(
        st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"x", 50 * b".", 5000 * b"x"]), max_size=40
    ).map(b"".join),
    cut=st.integers(0, 100000),
)
def test_body_ends_at_the_first_end_of_message(body: bytes, cut: int) -> None:
    """Compared with the plainest way to find it, on bodies long and short, with few dots and many."""
    text = body + b"\r\n.\r\n"
    cut %= (b"\r\n" + text).index(b"\r\n.\r\n") + 3
    session = conversation()
    session.receive(b"DATA\r\n")
    assert not cut or session.receive(text[:cut]) == b""
    assert session.receive(text[cut:]).startswith(b"250 2.0.0 OK: queued as ")


WORDS = [
    b"HELO client.test\r\n",
    b"EHLO client.test\r\n",
    b"ehlo\n",
    b"MAIL FROM:<ann@example.com>\r\n",
    b"MAIL FROM: ann@example.com SIZE=5\r\n",
    b"MAIL FROM:<a\xc3\xb1b@example.com> SMTPUTF8\r\n",
    b"MAIL FROM:<ann@example.com> SIZE=99999\r\n",
    b"RCPT TO:<bob@example.com>\r\n",
    b"RCPT TO:<b\xc3\xb6b@example.com>\r\n",
    b"RCPT TO:<bob@example.com> FUTURE\r\n",
    b"RCPT\r\n",
    b"DATA\r\n",
    b"data\n",
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"..\r\n",
    b"Subject: hello\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b"\0",
    b"\xff\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY bob\r\n",
    b"HELP\r\n",
    b"XYZZY\r\n",
    b"STARTTLS\r\n",
    b"QUIT\r\n",
    b"GET / HTTP/1.1\r\n",
    2050 * b"x",
    b"x" * 200 + b"\r\n",
]
"""What a client may say, in any order and cut anywhere."""


MISCHIEF = """
[[rule]]
phase = "."
header = "Subject: *"
reply = "550 5.7.1 No subjects"

[[rule]]
phase = "RCPT"
sender = "ann@*"
recipient = "b?b@*"
reply = "450 4.2.1 Later"
then = { drip = 200 }

[[rule]]
phase = "."
then = "half-reply"

[[rule]]
phase = ["RSET", "HELP"]
delay = [1, 2]

[[rule]]
phase = "VRFY"
then = "stall"

[[rule]]
phase = "NOOP"
helo = "client.test"
then = "reset"

[[rule]]
phase = "DATA"
reply = "354 Say it"
then = { drip = 50 }

[[rule]]
phase = "CONNECT"
delay = 1
"""
"""A bit of all that rules can do."""


MEMORABLE = """
[[rule]]
throttle = { messages = 3, per = "connection" }
reply = "450 4.7.1 Enough"

[[rule]]
throttle = { recipients = 2, per = "hour" }
reply = "450 4.5.3 Slow down"

[[rule]]
phase = ["RCPT", "DATA"]
greylist = { min = 0 }

[[rule]]
phase = ["EHLO", "RSET", "STARTTLS", "."]
chance = 0.5
delay = 1

[[rule]]
phase = "other"
attempt = "> 1"
reply = "421 4.7.0 Enough"

[[rule]]
throttle = { concurrent = 1 }
reply = "421 4.7.0 Full"
"""
"""A bit of all that has to be remembered."""


def heard(engine: SMTPEngine, pieces: list[bytes]) -> tuple[bytes, NextAction, int]:
    """All that a new session answers to the pieces, how it ends, and at what stage it is left."""
    return held(engine.session(), pieces)


def held(session: Session, pieces: list[bytes]) -> tuple[bytes, NextAction, int]:
    """The same of one that is at hand."""
    out = with_lookups(session, session.greet())
    while session.next_action is NextAction.SLEEP:
        out += with_lookups(session, session.resume())
    for piece in pieces:
        out += with_lookups(session, session.receive(piece))
        while session.next_action is NextAction.SLEEP:
            out += with_lookups(session, session.resume())
        if session.single_event:
            session.counted_events.append(session.single_event)
            session.single_event = 0
        if session.next_action is not NextAction.READ:
            break
    return re.sub(rb"queued as [0-9A-F]{10}", b"queued", out), session.next_action, session.stage


@settings(deadline=None, max_examples=300)
@given(
    said=st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join),
    cuts=st.lists(st.integers(1, 200), max_size=30),
    delay=st.sampled_from([None, (0.5, 1.5)]),
    rules=st.sampled_from(["", MISCHIEF, MEMORABLE]).map(lambda text: parse_rules(text, "") if text else ()),
    memory=st.sampled_from([AttemptTable, RemoteStore]),
)
def test_no_conversation_depends_on_segmentation(
    said: bytes,
    cuts: list[int],
    delay: tuple[float, float] | None,
    rules: tuple[Rule, ...],
    memory: Callable[[], AttemptStore],
) -> None:
    config = ListenerConfig(hostname="mx.test", message_size_limit=1000, delay=delay)
    pieces, start = [], 0
    for cut in cuts:
        pieces.append(said[start : start + cut])
        start += cut
    pieces = [piece for piece in (*pieces, said[start:]) if piece]
    cut, whole = (
        heard(make_engine(rules, environment=RuleEnvironment(attempt_store=one), config=config), parts)
        for one, parts in ((memory(), pieces), (AttemptTable(sets=64), [said] if said else []))
    )
    assert cut == whole


@settings(deadline=None, max_examples=200)
@given(
    pieces=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(b"".join), max_size=8),
    delay=st.sampled_from([None, (0.5, 1.5)]),
)
def test_no_conversation_depends_on_the_kind_of_attempt_store(
    pieces: list[bytes], delay: tuple[float, float] | None
) -> None:
    """Nor does what is counted: of what, and in which order."""
    config = ListenerConfig(hostname="mx.test", delay=delay, starttls=True)
    rules = parse_rules(MEMORABLE, "")
    here, there = (
        make_engine(rules, environment=RuleEnvironment(attempt_store=memory), config=config).session()
        for memory in (AttemptTable(sets=64), RemoteStore())
    )
    assert held(here, pieces) == held(there, pieces)
    assert here.counted_events == there.counted_events


SELECTIVE = """
[[rule]]
phase = "RCPT"
recipient = ["*@later.example", "*@*.later.example"]
reply = "450 4.2.1 Later"

[[rule]]
phase = "RCPT"
recipient = "*-nobody-*"
reply = "550 5.1.1 Nobody"

[[rule]]
phase = "RCPT"
recipient = ["carl@example.com", "dora@example.com"]
sender = "eve@*"
reply = "550 5.7.1 Not from her"

[[rule]]
phase = "RCPT"
recipient = "*-slow-*"
delay = 1

[[rule]]
phase = "RCPT"
recipient = "then@*"
window = "then"
reply = "450 4.2.1 Later"

[[window]]
name = "then"
at = 60
for = 60

[[rule]]
phase = "MAIL"
sender = "mallory@*"
reply = "550 5.7.1 Not you"

[[rule]]
phase = "DATA"
helo = "bad.*"
reply = "554 5.7.1 Not here"

[[rule]]
phase = "."
recipient = "dora@*"
then = "half-reply"

[[rule]]
phase = "."
recipient = "ed@*"
reply = "451 4.3.0 Later"

[[rule]]
phase = "."
size = "> 400"
reply = "552 5.3.4 Too large"

[[rule]]
phase = "RCPT"
recipient = "*@first.example"
attempt = 1
reply = "451 4.7.1 Once more"

[[rule]]
phase = ["MAIL", "."]
sender = "flaky@*"
chance = 0.5
reply = "451 4.3.0 Once more"

[[rule]]
phase = "QUIT"
helo = "*.slow.example"
delay = 1
"""
"""Rules that most of what is said below has nothing to do with."""

HEADED = """
[[rule]]
phase = "."
header = ["Subject: no name", "Message-Id: <2@*"]
reply = "550 5.7.1 No"
"""
"""And one that looks into each message."""

PEOPLE = [
    b"bob@example.com",
    b"carl@example.com",
    b"dora@example.com",
    b"ed@example.com",
    b"ann@later.example",
    b"ann@much.later.example",
    b"a-nobody-z@example.com",
    b"a-slow-z@example.com",
    b"then@example.com",
    b"ann@first.example",
]

LETTERS = [
    b"Message-ID: <1@client>\r\nSubject: a\r\n\r\nHello\r\n.\r\n",
    b"Subject: a\r\nMessage-Id:\r\n <2@client>\r\n\r\nHello\r\n.\r\n",
    b"message-id : <3@client>\n\nMessage-ID: <4@client>\r\n\r\nHello\r\n.\r\n",
    b"Subject: no name\r\n\r\nHello\r\n.\r\n",
    b"\r\nHello\r\n.\r\n",
    b"Hello\r\n.\r\n",
    b"Message-ID: <5@client>\r\n\r\n" + 9 * b"Forty octets and two more behind those.\r\n" + b".\r\n",
    b"Message-ID: <6@client>\r\n\r\n" + 30 * b"Forty octets and two more behind those.\r\n" + b".\r\n",
]

CHUNKS = st.one_of(
    st.sampled_from(
        [
            b"EHLO client.test\r\n",
            b"EHLO bad.test\r\n",
            b"HELO a.slow.example\r\n",
            b"RSET\r\n",
            b"DATA\r\n",
            b"RCPT TO:<bob@example.com> NOTIFY=NEVER\r\n",
        ]
    ),
    st.sampled_from([b"ann", b"eve", b"mallory", b"flaky"]).map(b"MAIL FROM:<%s@example.com>\r\n".__mod__),
    st.sampled_from(PEOPLE).map(b"RCPT TO:<%s>\r\n".__mod__),
    st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=3).map(
        lambda people: (
            b"MAIL FROM:<eve@example.com>\r\n%sDATA\r\n" % b"".join(map(b"RCPT TO:<%s>\r\n".__mod__, people))
        )
    ),
    st.sampled_from(LETTERS),
    st.tuples(st.sampled_from(PEOPLE), st.sampled_from(LETTERS)).map(
        lambda both: b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<%s>\r\nDATA\r\n\n%s" % both
    ),
)
"""What a client says at once: mostly what the fast path knows. Behind a line feed alone comes another."""


GROUP_AND_REFUSED_MAIL = [
    b"EHLO client.test\r\n",
    b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n",
    LETTERS[0],
    b"MAIL FROM:<mallory@example.com>\r\n",
    b"DATA\r\n",
]
"""After a pipelined group, DATA behind a refused MAIL is no violation (RFC 2920 3.1)."""


@settings(deadline=None, max_examples=400)
@example(GROUP_AND_REFUSED_MAIL, 0, "")
@given(st.lists(CHUNKS, min_size=2, max_size=14), st.sampled_from([0, 1000]), st.sampled_from(["", HEADED]))
def test_fast_path_and_general_path_reply_and_count_alike(said: list[bytes], limit: int, more: str) -> None:
    """The same replies and the same events, the outcomes of messages included."""
    rules = parse_rules(SELECTIVE + more, "")
    pieces = [piece for chunk in said for piece in chunk.replace(b"\r\n\n", b"\r\n\0").split(b"\0")]
    short, long = (
        make_engine(
            rules,
            environment=RuleEnvironment(
                attempt_store=AttemptTable(sets=64), outcome_store=OutcomeTable(sets=64)
            ),
            hostname="mx.test",
            message_size_limit=limit,
            fast_path=fast_path,
        )
        for fast_path in (True, False)
    )
    for _ in range(3):  # what was refused comes again
        assert outcome(short, pieces) == outcome(long, pieces)


def test_rule_that_refuses_nothing_tracks_no_retries() -> None:
    text = "[[rule]]\nphase = '.'\nrecipient = 'vip@*'\nreply = '250 2.0.0 At your service'\n"
    session = make_engine(rules=parse_rules(text, "")).session()
    said = []
    for who in (b"bob", b"vip"):
        for line in (b"MAIL FROM:<ann@a.test>", b"RCPT TO:<%s@b.test>" % who, b"DATA", b"Hello\r\n."):
            said.append(session.receive(line + b"\r\n"))
    assert said[3].startswith(b"250 2.0.0 OK: queued as ")
    assert said[7] == b"250 2.0.0 At your service\r\n"


def test_rule_changes_a_reply_within_a_pipelined_group() -> None:
    text = "[[rule]]\nphase = 'RCPT'\nrecipient = 'vip@*'\nreply = '250 2.1.5 At your service'\n"
    session = make_engine(rules=parse_rules(text, "")).session()
    session.receive(b"EHLO client.test\r\n")
    for who, answer in ((b"bob", b"250 2.1.5 Recipient OK"), (b"vip", b"250 2.1.5 At your service")):
        group = b"MAIL FROM:<ann@a.test>\r\nRCPT TO:<%s@b.test>\r\nDATA\r\n" % who
        assert session.receive(group).splitlines()[1] == answer
        session.receive(b"Hello\r\n.\r\n")


@pytest.mark.parametrize(("recipients", "refused"), [(2, []), (3, [b"452"])])
def test_client_limits_hold_in_a_pipelined_group_with_rules(recipients: int, refused: list[bytes]) -> None:
    """In a pipelined group too, which no rule has a word in."""
    made = parse_rules(REFUSE_NOBODY, "")
    session = make_engine(rules=made, limits=ClientLimits(recipients=2)).session()
    session.receive(b"EHLO client.test\r\n")
    group = b"MAIL FROM:<ann@a.test>\r\n" + recipients * b"RCPT TO:<bob@b.test>\r\n" + b"DATA\r\n"
    codes = [line[:3] for line in session.receive(group).splitlines()]
    assert codes == [b"250", b"250", b"250", *refused, b"354"]


REFUSE_NOBODY = "[[rule]]\nphase = 'RCPT'\nrecipient = 'nobody@*'\nreply = '550 5.1.1 Nobody'\n"


def outcome(engine: SMTPEngine, pieces: list[bytes]) -> tuple[bytes, Counter[int], NextAction]:
    """All that a session says to these pieces, what is counted, and how it ends."""
    session = engine.session(client="192.0.2.1")
    counted: Counter[int] = Counter()
    said = []
    for piece in pieces:
        if session.next_action is NextAction.READ:
            said.append(session.receive(piece))
        while session.next_action is NextAction.SLEEP:
            said.append(session.resume())
        if said[-1]:
            counted.update([session.single_event] if session.single_event else [])
            counted.update(session.counted_events)
            session.counted_events = []
    return re.sub(rb"queued as [0-9A-F]{10}", b"queued", b"".join(said)), counted, session.next_action


@pytest.mark.parametrize("cuts", [1, 2, 3, 4])
@pytest.mark.parametrize("body", [b"", b"Hi\r\n", b"\r\n", b"\n.\r\n.\n\r\n"])
def test_end_of_message_may_be_split_anywhere(cuts: int, body: bytes) -> None:
    text = b"DATA\r\n" + body + b".\r\nNOOP\r\n"
    engine = make_engine()
    for places in combinations(range(1, len(text)), cuts):
        edges = (0, *places, len(text))
        pieces = [text[start:end] for start, end in pairwise(edges)]
        codes = [line[:3] for line in heard(engine, pieces)[0].splitlines()]
        assert codes == [b"220", b"354", b"250", b"250"]


def test_helo_name_that_ends_with_a_digit_and_is_no_address_is_no_violation() -> None:
    session = make_engine().session()
    assert session.receive(b"EHLO mx.host1\r\n").startswith(b"250")
    assert session.counted_events == []


def test_command_without_an_argument_leaves_the_context_of_rules_as_it_is() -> None:
    context = RuleContext("127.0.0.1:25", "192.0.2.1")
    context.update("MAIL", b"ann@a.example", 1)
    context.update("DATA")
    assert (context.sender, context.size) == (b"ann@a.example", 1)
