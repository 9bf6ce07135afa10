"""The verdicts on senders: a guilty and a barely innocent one for each, and what they do not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from tests.engines import VIOLATION_NAMES, make_engine
from tests.verdict_player import NEVER_MATCHES

pytestmark = pytest.mark.pure

EHLO = b"EHLO c.test\r\n"
HELO = b"HELO c.test\r\n"
MAIL = b"MAIL FROM:<a@b.test>\r\n"
RCPT = b"RCPT TO:<c@d.test>\r\n"
DATA = b"DATA\r\n"
QUIT = b"QUIT\r\n"
BODY = b"Subject: x\r\n\r\nHello\r\n.\r\n"
END_OF_GROUP = (DATA, b"NOOP\r\n", b"VRFY a\r\n", b"DATA now\r\n", b"AUTH PLAIN\r\n", EHLO)
IN_GROUP = (
    *(MAIL, RCPT, b"RSET\r\n", b"HELP\r\n", b"XYZ\r\n", b"BOGUS\r\n"),
    *(b"MAIL FROM:<a@b.test> FUTURE=1\r\n", b"RCPT TO:\r\n", b"MAIL FROM:<a@b.test> SIZE=5\r\n"),
)


def verdicts(session: Session) -> list[str]:
    """Return the violations of a session that were not counted yet, in alphabetical order."""
    found = sorted(VIOLATION_NAMES[event] for event in session.counted_events if event in VIOLATION_NAMES)
    if session.after_421 is not None and session.after_421.talked:
        found.append("talk-after-421")
    return found


def greeted(rules: str = "", **values: Any) -> Session:
    """Return a greeted session of a listener with this scenario and configuration."""
    session = make_engine(parse_rules(rules, "test") if rules else (), hostname="mx.test", **values).session()
    session.greet()
    while session.next_action is NextAction.SLEEP:
        session.resume()
    return session


def hear(session: Session, data: bytes, more_is_there: bool = False) -> bytes:
    """Send a piece, and wait for what it is answered with. `more_is_there`: the next piece has come too."""
    out = session.receive(data)
    while session.next_action is NextAction.SLEEP:
        part = session.resume()
        out += session.client_sent_early(part) if more_is_there else part
    return out


def say(session: Session, *turns: bytes) -> list[str]:
    """Send each turn when the one before is answered; return the verdicts."""
    for turn in turns:
        if session.after_421 is not None:
            session.after_421.feed(turn)
        elif session.next_action is NextAction.READ:
            hear(session, turn)
    return verdicts(session)


class Conversation:
    """A client that waits where it has to, and breaks other rules."""

    def __init__(self, hello: bytes, groups: list[list[bytes]], ends: list[bytes]) -> None:
        self.turns = [hello]
        for group, end in zip(groups, ends, strict=True):
            if hello is EHLO:
                self.turns.append(b"".join(group) + end)
            else:
                self.turns += [*group, end]

    def hold(self, session: Session, cut: Callable[[bytes], list[bytes]], prompt: bool) -> list[str]:
        """Hold the conversation in pieces. `prompt`: the next piece is there before the reply leaves."""
        for turn in self.turns:
            heard = self.send(session, cut(turn), prompt)
            if heard.endswith(b"<CRLF>.<CRLF>\r\n"):
                heard = self.send(session, cut(BODY), prompt)
            if session.next_action is not NextAction.READ:
                break
        return verdicts(session)

    @staticmethod
    def send(session: Session, pieces: list[bytes], prompt: bool) -> bytes:
        heard = b""
        for number, piece in enumerate(pieces, 1):
            if session.next_action is NextAction.READ:
                heard += hear(session, piece, prompt and number < len(pieces))
        return heard


def whole(turn: bytes) -> list[bytes]:
    return [turn]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([EHLO, HELO]),
    st.lists(
        st.tuples(st.lists(st.sampled_from(IN_GROUP), max_size=4), st.sampled_from(END_OF_GROUP)), max_size=5
    ),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["", NEVER_MATCHES]),
    st.booleans(),
    st.sampled_from([None, (1.0, 1.0)]),
    st.booleans(),
)
def test_verdicts_do_not_depend_on_cuts_delays_rules_that_never_match_or_the_path(
    hello: bytes,
    parts: list[tuple[list[bytes], bytes]],
    sizes: list[int],
    prompt: bool,
    rules: str,
    fast_path: bool,
    delay: tuple[float, float] | None,
    strict: bool,
) -> None:
    conversation = Conversation(hello, [group for group, _ in parts], [end for _, end in parts])

    def cut(turn: bytes) -> list[bytes]:
        pieces, position, number = [], 0, 0
        while position < len(turn):
            size = sizes[number % len(sizes)]
            pieces.append(turn[position : position + size])
            position, number = position + size, number + 1
        return pieces

    plain = conversation.hold(greeted(strict=strict), whole, False)
    other = greeted(rules, strict=strict, fast_path=fast_path, delay=delay)
    assert conversation.hold(other, cut, prompt) == plain


REFUSES_MAIL = "[[rule]]\nphase = 'MAIL'\nreply = '451 4.3.0 Later'\n"
REFUSES_RCPT = "[[rule]]\nphase = 'RCPT'\nreply = '550 5.1.1 No'\n"
REFUSES_DATA = "[[rule]]\nphase = 'DATA'\nreply = '451 4.3.0 Later'\n"
CLOSES_AT_RCPT = "[[rule]]\nphase = 'RCPT'\nreply = '421 4.3.2 Bye'\n"
CLOSES_AT_DATA = "[[rule]]\nphase = 'DATA'\nreply = '421 4.3.2 Bye'\n"
HIDES_PIPELINING = "[[rule]]\nphase = 'EHLO'\nhide = 'PIPELINING'\n"
GROUP = MAIL + RCPT + DATA
SIZED = b"MAIL FROM:<a@b.test> SIZE=%d\r\n"
LINE = 70 * b"x" + b"\r\n"
END = b"\r\n.\r\n"

CASES: dict[str, tuple[str, tuple[bytes, ...], str]] = {
    # Refusals that are still on their way (RFC 2920 3.1).
    "RCPT and DATA on their way behind a refused MAIL": (REFUSES_MAIL, (EHLO, MAIL, RCPT, DATA, QUIT), ""),
    "RCPT behind a refused MAIL, seen": (REFUSES_MAIL, (HELO, MAIL, RCPT, QUIT), "wrong-order"),
    "RCPT behind a refused MAIL and NOOP": (
        REFUSES_MAIL, (EHLO, MAIL, b"NOOP\r\n", RCPT, QUIT), "wrong-order",
    ),
    "DATA on its way behind a refused RCPT": (REFUSES_RCPT, (EHLO, MAIL, RCPT, DATA, QUIT), ""),
    "DATA behind a refused RCPT, seen": (REFUSES_RCPT, (HELO, MAIL, RCPT, DATA, QUIT), "no-recipient"),
    "DATA again behind a refused RCPT": (
        REFUSES_RCPT, (EHLO, MAIL + RCPT + DATA, DATA, QUIT), "no-recipient",
    ),
    "RCPT on its way behind a refused MAIL, PIPELINING hidden": (
        REFUSES_MAIL + HIDES_PIPELINING, (EHLO, MAIL, RCPT, QUIT), "wrong-order",
    ),
    "RCPT after RSET behind a refused MAIL": (
        REFUSES_MAIL, (EHLO, MAIL, b"RSET\r\n", RCPT, QUIT), "wrong-order",
    ),
    "DATA after RSET behind a refused MAIL": (
        REFUSES_MAIL, (EHLO, MAIL, b"RSET\r\n", DATA, QUIT), "wrong-order",
    ),
    "second MAIL after a group": ("", (EHLO, GROUP, BODY, MAIL, MAIL, QUIT), "wrong-order"),
    # DATA refused.
    "message behind a refused DATA": (REFUSES_DATA, (EHLO, GROUP, BODY), "body-after-refusal"),
    "message of many lines behind a refused DATA": (
        REFUSES_DATA, (EHLO, GROUP, b"one\r\ntwo\r\n", QUIT), "body-after-refusal",
    ),
    "RSET behind a refused DATA": (REFUSES_DATA, (EHLO, GROUP, b"RSET\r\n", QUIT), ""),
    "private verb behind a refused DATA": (REFUSES_DATA, (EHLO, GROUP, b"XYZ\r\n", QUIT), ""),
    # 421.
    "group on its way behind 421": (CLOSES_AT_RCPT, (EHLO, MAIL, RCPT, RCPT, DATA, QUIT), ""),
    "group in one segment with its 421": (CLOSES_AT_RCPT, (EHLO, MAIL + RCPT + DATA, QUIT), ""),
    "command behind a group with 421": (CLOSES_AT_RCPT, (EHLO, GROUP, MAIL), "talk-after-421"),
    "command behind 421 after HELO": (CLOSES_AT_RCPT, (HELO, MAIL, RCPT, RCPT), "talk-after-421"),
    "command behind 421 to DATA": (CLOSES_AT_DATA, (EHLO, GROUP, MAIL), "talk-after-421"),
    "QUIT in two segments behind 421": (CLOSES_AT_DATA, (EHLO, GROUP, b"QU", b"it\r\n", b"more"), ""),
    "unfinished word behind 421": (CLOSES_AT_DATA, (EHLO, GROUP, b"NO"), "talk-after-421"),
    "other word behind 421": (CLOSES_AT_DATA, (EHLO, GROUP, b"QU", b"X\r\n"), "talk-after-421"),
    # Offers.
    "parameter that a rule added": (
        "[[rule]]\nphase = 'EHLO'\nadd = 'DELIVERBY 240'\n",
        (EHLO, b"MAIL FROM:<a@b.test> BY=120;R\r\n", QUIT), "",
    ),
    "parameter of an unknown extension that a rule added": (
        "[[rule]]\nphase = 'EHLO'\nadd = 'XNEW'\n", (EHLO, b"MAIL FROM:<a@b.test> NEW=1\r\n", QUIT), "",
    ),
    "parameter that nobody offered": (
        "", (EHLO, b"MAIL FROM:<a@b.test> BY=120;R\r\n", QUIT), "unknown-parameter",
    ),
    "parameter that a rule hid": (
        "[[rule]]\nphase = 'EHLO'\nhide = 'DSN'\n",
        (EHLO, b"MAIL FROM:<a@b.test> RET=HDRS\r\n", QUIT), "unknown-parameter",
    ),
    "parameter after HELO": ("", (HELO, b"MAIL FROM:<a@b.test> SIZE=99\r\n", QUIT), "unknown-parameter"),
    "body that a rule added": (
        "[[rule]]\nphase = 'EHLO'\nadd = 'BINARYMIME'\n",
        (EHLO, b"MAIL FROM:<a@b.test> BODY=BINARYMIME\r\n", QUIT), "",
    ),
    "body that nobody offered": (
        "", (EHLO, b"MAIL FROM:<a@b.test> BODY=BINARYMIME\r\n", QUIT), "unknown-parameter",
    ),
    "verb that a rule added": (
        "[[rule]]\nphase = 'EHLO'\nadd = 'ETRN'\n", (EHLO, b"ETRN b.test\r\n", QUIT), "",
    ),
    "verb that nobody offered": ("", (EHLO, b"ETRN b.test\r\n", QUIT), "unknown-command"),
    "verb under a rule that covers it": (NEVER_MATCHES, (EHLO, b"BOGUS\r\n", QUIT), "unknown-command"),
    "chunk behind BDAT that a rule offered": (
        "[[rule]]\nphase = 'EHLO'\nadd = 'CHUNKING'\n", (EHLO, MAIL + RCPT + b"BDAT 2 LAST\r\nab"), "",
    ),
    "size that a rule offered": (
        "[[rule]]\nphase = 'EHLO'\nhide = 'SIZE'\nadd = 'SIZE 10'\n",
        (EHLO, GROUP, BODY, QUIT), "size-over-limit",
    ),
    # Sizes, lines and octets.
    "size of 1024 too much": ("", (EHLO, SIZED % (len(BODY) - 3 + 1024) + RCPT + DATA, BODY, QUIT), ""),
    "size of 1025 too much": (
        "", (EHLO, SIZED % (len(BODY) - 3 + 1025) + RCPT + DATA, BODY, QUIT), "size-wrong",
    ),
    "size of 0 that was declared": (
        "", (EHLO, SIZED % 0 + RCPT + DATA, 100 * LINE + b".\r\n", QUIT), "size-wrong",
    ),
    "no size declared": ("", (EHLO, GROUP, 100 * LINE + b".\r\n", QUIT), ""),
    "998 octets behind a doubled dot": ("", (EHLO, GROUP, b".." + 997 * b"x" + END, QUIT), ""),
    "999 octets behind a doubled dot": ("", (EHLO, GROUP, b".." + 998 * b"x" + END, QUIT), "long-line"),
    "998 octets behind a doubled dot in pieces": (
        "", (EHLO, GROUP, b"a\r\n.", b"." + 500 * b"x", 497 * b"x" + END, QUIT), "",
    ),
    "999 octets behind a doubled dot in pieces": (
        "", (EHLO, GROUP, b"a\r\n.", b"." + 500 * b"x", 498 * b"x" + END, QUIT), "long-line",
    ),
    "path of 256 octets": ("", (EHLO, b"MAIL FROM:<%s@b.test>\r\n" % (247 * b"x"), QUIT), ""),
    "path of 257 octets": ("", (EHLO, b"MAIL FROM:<%s@b.test>\r\n" % (248 * b"x"), QUIT), "long-path"),
    "octets that are no UTF-8": ("", (EHLO, b"MAIL FROM:<\xff@b.test>\r\n", QUIT), "utf8-undeclared"),
    "octets that are no UTF-8 with SMTPUTF8": (
        "", (EHLO, b"MAIL FROM:<\xff@b.test> SMTPUTF8\r\n", QUIT), "syntax",
    ),
    "recipient that is no UTF-8 with SMTPUTF8": (
        "", (EHLO, b"MAIL FROM:<a@b.test> SMTPUTF8\r\n", b"RCPT TO:<\xff@b.test>\r\n", QUIT), "syntax",
    ),
    # Pipelining.
    "HELP in a group": ("", (EHLO, b"HELP\r\n" + MAIL, QUIT), ""),
    "NOOP in a group": ("", (EHLO, b"NOOP\r\n" + MAIL, QUIT), "pipelined-behind-last"),
}  # fmt: skip


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "general path"])
@pytest.mark.parametrize("delay", [None, (1.0, 1.0)], ids=["at once", "delayed"])
@pytest.mark.parametrize("case", CASES)
def test_guilty_and_barely_innocent_senders(
    case: str, delay: tuple[float, float] | None, fast_path: bool
) -> None:
    rules, turns, wanted = CASES[case]
    found = say(greeted(rules, delay=delay, fast_path=fast_path), *turns)
    assert found == ([wanted] if wanted else [])


def authenticating(secure: bool, *turns: bytes, **values: Any) -> list[str]:
    """Return the verdicts on a client of a listener with AUTH and STARTTLS."""
    session = make_engine(auth=True, starttls=True, **values).session(secure)
    session.greet()
    return say(session, *turns)


PLAIN = b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n"


@pytest.mark.parametrize(
    ("secure", "turns", "wanted"),
    [
        (True, (EHLO, PLAIN, QUIT), []),
        (False, (EHLO, PLAIN, QUIT), ["unknown-command"]),
        (True, (EHLO, PLAIN, PLAIN, QUIT), ["wrong-order"]),
        (True, (EHLO, b"AUTH PLAIN =\r\n", PLAIN, QUIT), []),
        (True, (EHLO, b"AUTH GSSAPI\r\n", QUIT), ["unknown-command"]),
        (True, (EHLO, MAIL, PLAIN, QUIT), ["wrong-order"]),
        (True, (HELO, PLAIN, QUIT), ["unknown-command"]),
        (False, (EHLO, b"STARTTLS\r\n"), []),
        (False, (HELO, b"STARTTLS\r\n"), ["unknown-command"]),
        (True, (EHLO, b"STARTTLS\r\n", QUIT), ["unknown-command"]),
    ],
)
def test_auth_and_starttls_are_for_those_to_whom_they_were_offered(
    secure: bool, turns: tuple[bytes, ...], wanted: list[str]
) -> None:
    assert authenticating(secure, *turns) == wanted


def test_input_before_a_delayed_reply_counts_as_pipelining_where_it_was_not_offered() -> None:
    session = greeted(delay=(1.0, 1.0))
    hear(session, HELO)
    hear(session, MAIL, more_is_there=True)
    assert verdicts(session) == ["unoffered-pipelining"]


def test_input_before_a_delayed_reply_to_starttls_is_counted() -> None:
    session = greeted(delay=(1.0, 1.0), starttls=True)
    hear(session, EHLO)
    assert hear(session, b"STARTTLS\r\n", more_is_there=True)[:3] == b"554"
    assert verdicts(session) == ["talk-behind-starttls"]


def test_input_during_a_look_up_is_behind_no_command_yet() -> None:
    session = greeted(delay=(1.0, 1.0))
    hear(session, EHLO)
    assert session.client_sent_early(b"") == b""
    assert session.client_sent_early(b"") == b""
    assert verdicts(session) == ["unoffered-pipelining"]


@pytest.mark.parametrize("bare_newline", ["normalize", "count", "reject"])
def test_bare_lf_is_counted_in_a_message_that_never_ends(bare_newline: str) -> None:
    session = greeted(bare_newline=bare_newline)
    assert say(session, EHLO, GROUP, b"Hello\n", b".\n") == ["bare-lf"]


def test_bare_lf_is_counted_once_in_a_message_that_ends() -> None:
    session = greeted(bare_newline="count")
    assert say(session, EHLO, GROUP, b"one\ntwo\n", b"three\n.\r\n", b"\r\n.\r\n", QUIT) == ["bare-lf"]


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    "address", [b"a b@x.test", b"@x.test", b"a..b@x.test", b"ann@-x.test", b"ann@x..org", b"a@b@x"]
)
def test_address_that_rfc_5321_does_not_know_is_taken_and_counted(address: bytes, fast_path: bool) -> None:
    session = greeted(fast_path=fast_path)
    hear(session, EHLO)
    assert hear(session, b"MAIL FROM:<%s>\r\n" % address)[:3] == b"250"
    assert verdicts(session) == ["syntax"]
