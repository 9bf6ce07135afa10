"""What is wrong with the content of messages: each rule, from the fields of a message to its parts."""

from __future__ import annotations

import datetime
import email.policy
from collections import Counter
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.messages import field_syntax, message_checks, signature_tags
from blackhole.messages.message_checks import CheckedMessage, check_message
from blackhole.messages.mime_structure import MAX_DELIMITERS, MAX_PART_NESTING, MAX_PARTS, decoded_octets
from blackhole.providers import PROVIDERS
from blackhole.smtp.content_inspection import KEPT_CONTENT, ContentInspector
from blackhole.smtp.inspection import CONTENT_COST, CONTENT_OCTETS_PER_SECOND, MAX_CONTENTS, InspectionPlan
from blackhole.smtp.session import Session
from blackhole.smtp.violations import (
    IN_CONTENTS,
    IN_HEADERS,
    IN_SIGNATURES,
    OF_CONTENT,
    VIOLATIONS,
)
from tests.engines import EVENT_NUMBERS, VIOLATION_NAMES, make_engine
from tests.message_cases import CASES, HTML, NESTED, message, multipart, part

pytestmark = pytest.mark.pure


def test_every_rule_on_contents_has_cases() -> None:
    rules = [rule.name for rule in VIOLATIONS if rule.sampled_in in (IN_HEADERS, IN_CONTENTS)]
    assert list(CASES) == rules


@pytest.mark.parametrize("rule", CASES)
def test_guilty_message_is_accused_and_a_barely_innocent_one_is_not(rule: str) -> None:
    guilty, innocent = CASES[rule]
    for text in guilty:
        assert rule in [fault.violation for fault in check_message(text, True).faults], text
    for text in innocent:
        assert rule not in [fault.violation for fault in check_message(text, True).faults], text


@pytest.mark.parametrize("text", [message(), multipart(NESTED)])
def test_message_without_a_fault_is_not_accused(text: bytes) -> None:
    assert check_message(text, True) == CheckedMessage((), True, True)


def test_rule_stands_once_in_what_is_found() -> None:
    text = message(Date=None, From="a", SUBJECT="a", subject="b", TO="c@d.test")
    found = Counter(fault.violation for fault in check_message(text, True).faults)
    assert set(found.values()) == {1}
    assert found.keys() == {"no-date", "bad-from", "repeated-field"}


def test_no_detail_shows_what_the_message_says() -> None:
    for guilty, _ in CASES.values():
        for text in guilty:
            for fault in check_message(text, True).faults:
                assert fault.detail.isascii()
                assert "test" not in fault.detail
                assert len(fault.detail) < 80


def test_header_section_may_be_utf8_with_smtputf8() -> None:
    assert not check_message(message(Subject="ä"), True, smtputf8=True).faults
    (fault,) = check_message(message(Subject="\udcff"), True, smtputf8=True).faults
    assert fault.violation == "8bit-header"


def test_part_of_a_message_is_judged_by_its_header_section_alone() -> None:
    text = multipart(NESTED.replace("--x--", "ä"), "multipart/mixed; boundary=x")
    assert check_message(text, False) == CheckedMessage((), True, False)
    assert check_message(text[:40], False) == CheckedMessage((), False, False)
    long = part("7bit", "x" * HTML, "text/html")
    assert [fault.violation for fault in check_message(long, False).faults] == ["html-clipped"]


@pytest.mark.parametrize(
    "body",
    [
        "--x\r\n" * (MAX_PARTS + 2),
        "--xy\r\n" * (MAX_DELIMITERS + 1),
        "--x\r\nContent-Type: message/rfc822\r\n\r\n"
        + "Content-Type: message/rfc822\r\n\r\n" * MAX_PART_NESTING,
        "--x\r\n" + "a: b\r\n" * 3000,
    ],
)
def test_message_with_too_many_parts_is_not_judged_by_them(body: str) -> None:
    assert check_message(multipart(body), True) == CheckedMessage((), True, False)


def test_header_section_with_too_many_lines_is_not_judged() -> None:
    assert check_message(b"a: b\r\n" * 3000, True) == CheckedMessage((), False, False)


def test_message_without_a_body_is_judged() -> None:
    text = message().partition(b"\r\n\r\n")[0]
    assert check_message(text, True) == CheckedMessage((), True, True)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_any_octets_can_be_checked(text: bytes, is_whole: bool, smtputf8: bool) -> None:
    found = check_message(text, is_whole, smtputf8)
    assert {fault.violation for fault in found.faults} <= CASES.keys()
    assert found.has_header or not found.is_whole


TOKENS = [
    "Content-Type: multipart/x; boundary=b\r\n",
    "\r\n",
    "--b",
    "--b--\r\n",
    "--b\r\n",
    "a: b\r\n",
    "ä",
    " ",
    "From: a@b.c\r\n",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=20), st.booleans())
def test_any_structure_can_be_checked(tokens: list[str], is_whole: bool) -> None:
    found = check_message("".join(tokens).encode(), is_whole)
    assert {fault.violation for fault in found.faults} <= CASES.keys()


@pytest.mark.parametrize(
    ("encoding", "kind"), [("7bit", "a"), ("base64", "b"), ("quoted-printable", "c"), ("8bit", "d")]
)
def test_size_of_an_encoded_part_is_that_of_the_decoded_one(encoding: str, kind: str) -> None:
    mail = EmailMessage(policy=email.policy.SMTP)
    text = "=" + "Hello = you\n" * 500
    mail.set_content(text, cte=encoding)
    body = mail.as_bytes().partition(b"\r\n\r\n")[2]
    assert decoded_octets(body, encoding.encode()) == pytest.approx(len(text), rel=0.1)


def test_messages_of_the_email_library_are_not_accused() -> None:
    for number in range(60):
        mail = EmailMessage(policy=email.policy.SMTP)
        mail["From"] = Address("Ann. B" if number % 2 else "Änn, B (x)", "ann", "a.test")
        mail["To"] = "bob@b.test"
        mail["Date"] = formatdate(number * 10_000_000, localtime=bool(number % 3))
        mail["Message-ID"] = make_msgid(domain="a.test")
        mail["Subject"] = "ä long subject " * number
        mail.set_content("Hello ä\n" * number)
        if number % 2:
            mail.add_alternative("<p>Hello ä</p>\n" * number, subtype="html")
        if number % 3:
            mail.add_attachment(
                b"\0\xff" * number, maintype="application", subtype="pdf", filename="ä ; b.pdf"
            )
        if number % 5 == 0:
            outer = EmailMessage(policy=email.policy.SMTP)
            for name in ("From", "Date", "Message-ID"):
                outer[name] = mail[name]
            outer.set_content("See below.\n")
            outer.add_attachment(mail)
            mail = outer
        found = [fault.violation for fault in check_message(mail.as_bytes(), True).faults]
        assert found == ["no-dkim-signature", "no-list-unsubscribe"], mail.as_bytes()


def test_calendar_has_the_days_of_the_gregorian_one() -> None:
    day = datetime.date(1999, 12, 25)
    for _ in range(3000):
        day += datetime.timedelta(days=1)
        assert field_syntax.weekday_of(day.day, day.month, day.year) == day.weekday()
        assert 1 <= day.day <= field_syntax.days_of(day.month, day.year)
    assert [field_syntax.days_of(2, year) for year in (1900, 2000, 2024, 2026)] == [28, 29, 29, 28]
    assert sum(field_syntax.days_of(month, 2026) for month in range(1, 13)) == 365


def test_tags_may_be_absent_where_a_signature_is_not_well_formed() -> None:
    assert signature_tags.signed_fields({}) == [b""]
    assert message_checks.is_utf8(b"a")


# In a session.

ENVELOPE = b"EHLO c.test\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"


def rules_of(session: Session) -> Counter[str]:
    return Counter(VIOLATION_NAMES[event] for event in session.counted_events if event in VIOLATION_NAMES)


def inspections_of(session: Session) -> dict[str, int]:
    return {what: session.counted_events.count(EVENT_NUMBERS.inspection(what)) for what in OF_CONTENT}


def session_after(*data: bytes, **values: object) -> Session:
    session = make_engine(**({"inspect_content": True} | values)).session()
    session.greet()
    for chunk in data:
        session.receive(chunk)
    return session


def cut(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)] if size else [text]


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("fast_path", [False, True])
def test_content_is_inspected_however_it_arrives(size: int, chunking: bool, fast_path: bool) -> None:
    text = multipart(NESTED.replace("plain", ".dot\r\n.\r\n..\r\n"))[1:]  # without the F of From
    if chunking:
        half = len(text) // 2
        data = b"BDAT %d\r\n%b" % (half, text[:half]), b"BDAT %d LAST\r\n%b" % (len(text) - half, text[half:])
        command = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
        pieces = [command, *cut(data[0], size), *cut(data[1], size)]
    else:
        stuffed = text.replace(b"\r\n.", b"\r\n..")
        pieces = [ENVELOPE[1], *cut(stuffed + b".\r\n", size)]
    session = session_after(ENVELOPE[0], *pieces, fast_path=fast_path)
    assert rules_of(session) == {"no-from": 1}
    assert inspections_of(session) == {IN_HEADERS: 1, IN_CONTENTS: 1, IN_SIGNATURES: 0}
    assert session.violation_contexts["no-from"] == (".", b"", "")
    assert session.messages == 1


def test_doubled_dots_are_undone() -> None:
    inspector = ContentInspector(False)
    inspector.inspect(b"..a\r\n...\r\nb.\r\n.\r\n", b"\r\n")
    assert inspector.content(14, True) == b".a\r\n..\r\nb.\r\n"
    assert inspector.content(14, False) == b"..a\r\n...\r\nb.\r\n"


def test_lines_are_inspected_as_far_as_the_content_is() -> None:
    text = message("Hello\r\n" * 2000 + "x" * 1500 + "\r\n")
    assert rules_of(session_after(*ENVELOPE, text + b".\r\n")) == {"long-line": 1}
    assert not rules_of(session_after(*ENVELOPE, text + b".\r\n", inspect_content=False))


def test_no_more_than_a_bounded_part_of_a_message_is_kept() -> None:
    session = session_after(*ENVELOPE, message(Date=None))
    kept = []
    for _ in range(64):
        session.receive(b"Hello, this is a line.\r\n" * 3000)
        assert session.body is not None
        assert isinstance(session.body.inspector, ContentInspector)
        kept.append(len(session.body.inspector.content(1 << 40, False)))
    assert kept[-1] == KEPT_CONTENT
    session.receive(b".\r\n")
    assert rules_of(session) == {"no-date": 1}
    assert inspections_of(session) == {IN_HEADERS: 1, IN_CONTENTS: 0, IN_SIGNATURES: 0}


def test_header_section_longer_than_what_is_kept_is_not_judged() -> None:
    session = session_after(*ENVELOPE, b"X: " + 300 * (900 * b"x" + b"\r\n ") + b"\r\n\r\n.\r\n")
    assert not rules_of(session)
    assert not any(inspections_of(session).values())


def test_content_is_not_inspected_unless_the_operator_asks_for_it() -> None:
    for values in ({"inspect_content": False}, {"inspect": "off"}):
        session = session_after(*ENVELOPE, b"Hello\r\n.\r\n", **values)
        assert not rules_of(session)
        assert not any(inspections_of(session).values())
        assert session.body is None or session.body.inspector is None


def test_binary_message_is_not_inspected() -> None:
    session = session_after(
        b"EHLO c.test\r\n",
        b"MAIL FROM:<a@b.test> BODY=BINARYMIME\r\nRCPT TO:<c@d.test>\r\nBDAT 5 LAST\r\nHello",
        extensions=frozenset(("BINARYMIME", "CHUNKING", "8BITMIME", "PIPELINING")),
    )
    assert session.messages == 1
    assert not any(inspections_of(session).values())


def test_message_that_is_cut_off_is_not_judged() -> None:
    session = session_after(*ENVELOPE, message(Date=None))
    session.closed()
    assert not rules_of(session)


# How much is inspected.


def test_content_in_a_sample_is_bounded_by_its_octets() -> None:
    plan = InspectionPlan("sample")
    taken = 0
    while plan.takes_content():
        taken += 1
    assert taken == CONTENT_OCTETS_PER_SECOND // CONTENT_COST
    plan.refill()
    assert plan.takes_content()
    plan.content_inspected(CONTENT_OCTETS_PER_SECOND)
    assert not plan.takes_content()


@pytest.mark.parametrize("how", ["all", "sample"])
def test_content_of_a_few_messages_is_kept_at_a_time(how: str) -> None:
    engine = make_engine(inspect=how, inspect_content=True)
    sessions = []
    for _ in range(MAX_CONTENTS[how] + 5):
        session = engine.session()
        session.greet()
        for chunk in (*ENVELOPE, b"Hello"):
            session.receive(chunk)
        sessions.append(session)
    kept = [
        session.body is not None and isinstance(session.body.inspector, ContentInspector)
        for session in sessions
    ]
    assert kept == [True] * MAX_CONTENTS[how] + [False] * 5
    sessions.clear()
    del session
    assert len(engine.inspection.contents) == 0


# The table.


def test_providers_have_names_and_dates() -> None:
    for rule in VIOLATIONS:
        assert set(rule.providers) <= PROVIDERS.keys()
        assert (rule.level == "provider") == (not rule.rfc)
        assert rule.rfc or rule.providers
    for provider in PROVIDERS.values():
        assert len(provider.date) == 10
