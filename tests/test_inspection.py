"""What is inspected more closely: names, lines of messages, and what a sample says of the whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.metrics.samples import SampledCount, wilson_interval
from blackhole.smtp.offending_line import SHOWN_BEFORE, SHOWN_OCTETS, offending_line
from blackhole.smtp.session import Session
from blackhole.smtp.state import KEPT_OCTETS
from blackhole.smtp.violations import IN_MESSAGES, VIOLATIONS
from tests.engines import EVENT_NUMBERS, VIOLATION_NAMES, make_engine

pytestmark = pytest.mark.pure

ENVELOPE = b"EHLO c.test\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"


def session_after(*data: bytes, fast_path: bool = True, **values: str) -> Session:
    """Return a session that was sent this, each line of commands by itself."""
    session = make_engine(fast_path=fast_path, **values).session()
    session.greet()
    for chunk in data:
        session.receive(chunk)
    return session


def names_of(session: Session) -> Counter[str]:
    return Counter(VIOLATION_NAMES[event] for event in session.counted_events if event in VIOLATION_NAMES)


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "general path"])
@pytest.mark.parametrize(
    ("name", "violation"),
    [
        (b"mx.test", ""),
        (b"a.b-c.test", ""),
        (b"[192.0.2.1]", ""),
        (b"[IPv6:2001:db8::1]", ""),
        (b"laptop", "hello-name"),
        (b"localhost", "hello-name"),
        (b"x", "hello-name"),
        (b"host.1", ""),
        (b"192.0.2.1", "hello-literal"),
        (b"2001:db8::1", "hello-literal"),
        (b"::1", "hello-literal"),
        (b"[2001:db8::1]", "hello-literal"),
        (b"[999.0.2.1]", "hello-literal"),
        (b"[mx.test]", "hello-literal"),
        (b"[", "hello-literal"),
    ],
)
def test_name_in_ehlo(name: bytes, violation: str, fast_path: bool) -> None:
    session = session_after(b"EHLO %s\r\n" % name, fast_path=fast_path)
    assert names_of(session) == ({violation: 1} if violation else {})
    if violation:
        assert session.violation_contexts[violation].line.rstrip() == b"EHLO %s" % name


LINES = {
    "bare-lf": (b"Subject: x\r\nlonely\nnext\r\n", b"lonely\n"),
    "bare-cr": (b"Subject: x\r\nold\rmac\r\n", b"old\rmac\r\n"),
    "nul": (b"a\r\nzero\0\r\nb\r\n", b"zero\0\r\n"),
    "8bit-undeclared": (b"a\r\nf\xc3\xbcnf\r\nb\r\n", b"f\xc3\xbcnf\r\n"),
    "unstuffed-dot": (b"a\r\n.hidden\r\n", b".hidden\r\n"),
    "long-line": (b"a\r\n" + 999 * b"l" + b"\r\n", SHOWN_OCTETS * b"l"),
}


def test_each_rule_on_messages_has_a_case() -> None:
    assert LINES.keys() == {rule.name for rule in VIOLATIONS if rule.sampled_in == IN_MESSAGES}


@pytest.mark.parametrize("violation", LINES)
def test_message_shows_the_line_that_is_wrong(violation: str) -> None:
    body, line = LINES[violation]
    session = session_after(*ENVELOPE, body + b".\r\n")
    assert names_of(session) == {violation: 1}
    assert session.violation_contexts[violation] == (".", line, "")


@given(st.sampled_from(sorted(LINES)), st.integers(1, 40))
def test_piece_of_a_message_shows_some_of_the_line(violation: str, size: int) -> None:
    body = LINES[violation][0]
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    session = session_after(*ENVELOPE, *pieces, b".\r\n")
    assert names_of(session) == {violation: 1}
    shown = session.violation_contexts[violation].line
    assert 0 < len(shown) <= SHOWN_OCTETS + SHOWN_BEFORE
    assert shown in b"\r\n" + body or violation == "long-line"


def test_line_is_shown_from_shortly_before_what_is_wrong() -> None:
    shown = offending_line("bare-lf", 500 * b"x" + b"\ny", b"\r\n")
    assert shown == b"..." + SHOWN_BEFORE * b"x" + b"\n"


def test_bare_lf_that_is_searched_for_in_all_messages_is_counted() -> None:
    session = session_after(*ENVELOPE, b"one\ntwo\r\n.\r\n", bare_newline="count", inspect="off")
    assert session.counted_events.count(EVENT_NUMBERS.violation("bare-lf")) == 1
    assert session.violation_contexts["bare-lf"] == (".", b"one\n", "")


@pytest.mark.parametrize("lines", [[b"AUTH PLAIN c2VjcmV0\r\n"], [b"AUTH LOGIN\r\n", b"c2VjcmV0\r\n"]])
@pytest.mark.parametrize(
    "more", [b"c2VjcmV0\r\n", b"c2VjcmV0\n", b"c2Vj\xffcmV0\r\n", 3000 * b"c2VjcmV0" + b"\r\n"]
)
def test_no_offence_shows_a_secret(lines: list[bytes], more: bytes) -> None:
    for offered in (False, True):
        session = make_engine(auth=offered, auth_plaintext=offered).session()
        session.greet()
        for line in (b"EHLO c.test\r\n", *lines, more):
            session.receive(line)
        assert session.violation_contexts or offered
        assert not any(
            b"c2Vj" in violation_context.line for violation_context in session.violation_contexts.values()
        )


def test_offence_is_kept_without_most_of_a_long_line() -> None:
    session = session_after(b"EHLO c.test\r\n", b"MAIL FROM:<" + 1500 * b"a" + b"@b.test>\r\n")
    assert {len(violation_context.line) for violation_context in session.violation_contexts.values()} == {
        KEPT_OCTETS
    }


# What a sample says of the whole.


@pytest.mark.parametrize(
    ("found", "inspected", "low", "high"),
    [
        (0, 10, 0.0, 0.278),
        (1, 10, 0.018, 0.404),
        (5, 10, 0.237, 0.763),
        (10, 10, 0.722, 1.0),
        (50, 100, 0.404, 0.596),
    ],
)
def test_wilson_interval_has_the_values_of_the_tables(
    found: int, inspected: int, low: float, high: float
) -> None:
    assert wilson_interval(found, inspected) == pytest.approx((low, high), abs=0.0006)


@given(st.data())
def test_estimate_lies_in_its_interval_and_contradicts_nothing_that_was_seen(data: st.DataObject) -> None:
    of = data.draw(st.integers(1, 1000))
    inspected = data.draw(st.integers(1, of))
    found = data.draw(st.integers(0, inspected))
    count = SampledCount(found, inspected, of, "messages")
    low, high = count.interval
    assert found <= low <= count.estimate <= high <= of - (inspected - found)
    assert (low, high) == (found, found) or not count.is_complete


def test_nothing_is_known_where_nothing_was_inspected() -> None:
    count = SampledCount(0, 0, 64, "sessions")
    assert (count.estimate, count.interval, count.is_complete) == (0, (0, 64), False)
