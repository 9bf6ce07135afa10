"""The header section of a message: what is kept of it does not depend on how it arrives."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.message_identity import IDENTITY_FIELDS, message_identity
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.abridged_fields import ABRIDGED_FIELD, ABRIDGED_ROOM
from blackhole.smtp.header_section import (
    ANY_NAME,
    FIELD_ROOM,
    LINE_ROOM,
    MAX_HEADER,
    MAX_HEADER_LINES,
    CollectedHeader,
    HeaderCollector,
    fields,
    shortened,
)
from blackhole.smtp.message_body import ChunkedBody, MessageHeader
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import make_engine

pytestmark = pytest.mark.pure

NAMES = IDENTITY_FIELDS | {b"subject", b"x-tag"}

ANY = frozenset((ANY_NAME,))

LONG = b"Subject: " + b"y" * LINE_ROOM

LINES = st.sampled_from(
    (
        b"Subject: a test",
        b"SUBJECT : again",
        b"X-Tag:",
        b"To: bob@example.com",
        b" folded",
        b"\tfolded: too",
        b"Message-ID: <1@a.example>",
        b"resent-message-id:",
        b"Subj\xc3\xa9ct: odd",
        b"no field",
        b": no name",
        b".",
        b"",
        b"\r",
        b"X-Long: " + b"x" * LINE_ROOM,
        b"x" * LINE_ROOM + b": a long name",
        LONG,
    )
)
ENDINGS = st.sampled_from((b"\r\n", b"\n"))
MESSAGES = st.lists(st.tuples(LINES, ENDINGS).map(b"".join), max_size=9).map(b"".join)
SIZES = st.sampled_from((1, 3, 7, 100, 5000))


def collected(message: bytes, size: int, names: frozenset[bytes] = NAMES) -> CollectedHeader:
    """Return what is kept of a message that arrives in pieces of this size."""
    collector = HeaderCollector(names)
    for start in range(0, len(message), size):
        collector.feed(message[start : start + size])
    return collector.text


def name_of(field: bytes) -> bytes:
    return field.partition(b": ")[0].lower()


@example(b"Subject: a\r\n\r\nSubject: b\r\n", 1)
@example(b"body\r\nSubject: b\r\n\r\nx", 1)
@given(MESSAGES.filter(lambda message: message.count(LONG) <= 3), SIZES)
def test_fields_that_are_wanted_are_kept_however_a_message_arrives(message: bytes, size: int) -> None:
    wanted = [field for field in fields(message) if name_of(field) in NAMES or not name_of(field).isascii()]
    assert fields(collected(message, size)) == wanted
    assert bare(fields(collected(message, size, ANY))) == abridged(message)


def abridged(message: bytes) -> list[bytes]:
    """Return what a rule sees of the fields where the glob has a wildcard in the name, as documented."""
    room, found = ABRIDGED_ROOM, []
    for field in fields(message[:MAX_HEADER]):
        left = min(room, ABRIDGED_FIELD)
        if field.index(b":") + len(b": ") <= left:
            found.append(field[:left])
            room -= len(field[:left])
    return bare(found)


def bare(found: list[bytes]) -> list[bytes]:
    """Return fields without the blanks at which they may have been cut off."""
    return [field.rstrip() for field in found]


Repeated = tuple[bytes, int]
"""Octets, and how often they stand there: hypothesis does not like to show long messages."""


def repeated(*counts: Repeated) -> st.SearchStrategy[Repeated]:
    return st.sampled_from(counts)


NAMES_OF_FIELDS = repeated(
    *((b"X-A", 1), (b"", 1), (b"Message-ID", 1), (b"Subject", 1), (b"Subj\xc3t", 1)),
    *((b"N", ABRIDGED_FIELD - 2), (b"N", 520), (b" ", 1), (b"\t", 400)),
)
VALUES = repeated(
    *((b"", 1), (b" ", 1), (b"\t a", 1), (b"b", 250), (b"b", ABRIDGED_FIELD - 6), (b"c", 1100), (b"\r", 1)),
)
BLANKS = st.tuples(st.just(b" "), st.integers(0, 600))
FIELDS = st.tuples(
    st.tuples(NAMES_OF_FIELDS, repeated((b":", 1), (b" :", 1), (b"", 1)), VALUES, BLANKS, VALUES),
    ENDINGS,
    st.sampled_from((1, 1, 20)),
)
WIDE_MESSAGES = st.lists(FIELDS, max_size=9)
CUTS = st.lists(st.one_of(st.integers(1, 40), st.sampled_from((1, 2, 512, 513, 1024, 2048))), max_size=30)


@example([(((b"Subject:", 1), (b"x", 4000)), b"\n", 1), (((b"X-A: b", 1),), b"\n\n", 1)], [1024] * 5)
@example([(((b"n", LINE_ROOM), (b"\xff: a", 1)), b"\n", 1), (((b"X-A: b", 1),), b"\n\n", 1)], [600])
@example([(((b"X:", 1), (b"y", ABRIDGED_FIELD - 2)), b"\n\n", 1)], [1])
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(WIDE_MESSAGES, CUTS)
def test_fields_that_are_kept_do_not_depend_on_where_a_message_is_cut(
    lines: list[tuple[tuple[Repeated, ...], bytes, int]], cuts: list[int]
) -> None:
    """With a wildcard in the name or not, and if it comes as a whole."""
    message = b"".join(
        (b"".join(text * count for text, count in parts) + ending) * times for parts, ending, times in lines
    )
    pieces, rest = [], message
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    for names in (NAMES, ANY, ANY | IDENTITY_FIELDS):
        whole, small_pieces, cut_up = (
            HeaderCollector(names),
            collected(message, 7, names),
            HeaderCollector(names),
        )
        whole.feed(message)
        for piece in (*pieces, rest):
            cut_up.feed(piece)
        kept = whole.text
        assert fields(kept) == fields(small_pieces) == fields(cut_up.text)
        assert kept.digest == small_pieces.digest
        if names >= ANY:
            assert bare(fields(kept)) == bare(fields(shortened(message, names)))
    assert bare(fields(collected(message, 100, ANY))) == abridged(message)


def header_of(message: bytes, size: int, names: frozenset[bytes] = NAMES) -> MessageHeader:
    """Return the header section of a message that arrives in pieces of this size."""
    body = ChunkedBody(None, False, names, False)
    body.left = len(message)
    for start in range(0, len(message), size):
        body.feed(message[start : start + size], 0)
    return body.final_header()


@example(b"Message-ID: <1@a>\r\nMessage-ID: <2@a>\r\n\r\n", 7)
@example(b"\r\nSubject: not a field\r\n\r\n", 1)
@given(MESSAGES, SIZES)
def test_header_section_that_is_kept_says_what_the_whole_message_says(message: bytes, size: int) -> None:
    header = header_of(message, size)
    if isinstance(header, bytes):
        assert header == message[: len(header)]
        assert message_identity(header) == message_identity(message)
        for names in (NAMES, ANY):
            assert fields(shortened(header, names)) == fields(shortened(message, names))


@pytest.mark.parametrize("size", [1, 1000, 5000])
@pytest.mark.parametrize(
    ("message", "is_kept"),
    [
        (b"Subject: x\r\n\r\n", True),
        (b"Subject: x\r\n\r", False),
        (b"X: ".ljust(FIELD_ROOM - 4, b"x") + b"\r\n\r\nbody", True),
        (b"X: ".ljust(FIELD_ROOM - 3, b"x") + b"\r\n\r\nbody", False),
    ],
    ids=["whole", "without an end", "long", "too long"],
)
def test_short_header_section_is_kept_as_it_comes(message: bytes, size: int, is_kept: bool) -> None:
    header = header_of(message, size)
    if is_kept:
        assert header == message.removesuffix(b"body")
    else:
        assert isinstance(header, HeaderCollector)
        assert header.text.digest == collected(message, size).digest


@example(b"no field\r\nSubject: x\r\n\r\nbody", 1)
@given(MESSAGES, SIZES)
def test_identity_of_a_message_does_not_depend_on_how_it_arrives(message: bytes, size: int) -> None:
    """Except that in pieces, a Message-ID behind a line that is no field is not seen."""
    whole, name = message_identity(message), message_identity(collected(message, size))
    assert name == whole or (whole[1] and any(map(is_no_field, message.split(b"\n"))))


def is_no_field(line: bytes) -> bool:
    return line not in (b"", b"\r") and b":" not in line and line[:1] not in (b" ", b"\t")


def test_at_most_so_many_lines_are_fields() -> None:
    lines = b"X-Tag: y\r\n" * (MAX_HEADER_LINES + 5)
    assert len(fields(lines)) == MAX_HEADER_LINES
    assert len(fields(collected(b"To: x\r\n" * (MAX_HEADER_LINES - 1) + lines, 10))) == 1


def test_of_the_fields_of_one_name_the_first_octets_are_kept() -> None:
    message = b"X-Tag: %b\r\nSubject: short\r\nX-Tag: too late\r\n\r\n" % (b"x" * FIELD_ROOM)
    for size in (1, 100, len(message)):
        first, second = fields(collected(message, size))
        assert (first, second) == (b"X-Tag: ".ljust(FIELD_ROOM, b"x"), b"Subject: short")


def test_of_fields_of_any_name_the_first_octets_are_kept() -> None:
    long, folded = b"X-Long: %b" % (b"x" * 900), b"X-Folded:\r\n  \t%b\r\n\tb" % (b"a" * 200)
    message = b"\r\n".join(
        (long, folded, b"%b: y" % (b"N" * ABRIDGED_FIELD), *[long] * 20, b"X: 1", b"", b"")
    )
    found = fields(collected(message, 50, ANY))
    assert found[:2] == [long[:ABRIDGED_FIELD], b"X-Folded:  %b b" % (b"a" * 200)]
    assert found[2:-1] == [long[:ABRIDGED_FIELD]] * 14  # the name of the third does not fit
    assert len(b"".join(found)) == ABRIDGED_ROOM


def test_rule_with_a_wildcard_in_the_name_sees_the_same_however_a_message_arrives() -> None:
    rules = parse_rules('[[rule]]\nphase = "."\nheader = "X-*: *end"\nreply = "554 5.7.1 No"\n', "test")
    engine = make_engine(rules=rules)
    last = ABRIDGED_FIELD - len(b"X-A: ")
    for value, code in ((b"end".rjust(last, b"x"), b"554"), (b"end".rjust(last + 1, b"x"), b"250")):
        for size in (1, 513, 5000):
            session = engine.session()
            session.greet()
            message = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n"
            assert b"\r\n354 " in session.receive(b"EHLO x\r\n" + message)
            text = b"X-A: %b\r\n\r\nHello\r\n.\r\n" % value
            replies = [session.receive(text[start : start + size]) for start in range(0, len(text), size)]
            assert b"".join(replies)[:3] == code


@pytest.mark.parametrize(
    "line", [b"X: y\r\n", b":\n", b"X: %b\r\n" % (b"y" * 3000), b"X: y\n" + b" \n" * 500, b"x"]
)
def test_what_is_kept_of_fields_of_any_name_is_bounded(line: bytes) -> None:
    assert peak_memory((line * (MAX_HEADER // len(line) + 1))[:MAX_HEADER], ANY) < 2 * ABRIDGED_ROOM


@pytest.mark.parametrize(
    ("line", "most"),
    [
        (b"To: bob@example.com\r\n", 2048),
        (b"x", 2048),
        (b"To: bob" + b"x" * 2000 + b"\r\n", 2048),
        (b" folded\r\n", 2048),
        (b"no field\r\n", 2048),
        (b"Message-ID: <x@y>\r\n", 12 * 1024),
        (b"Subject: " + b"x" * 900 + b"\r\n", 2048 + FIELD_ROOM),
    ],
)
def test_what_is_kept_of_a_header_section_is_bounded(line: bytes, most: int) -> None:
    """64 KiB arrive in pieces, without an end."""
    assert peak_memory((line * (MAX_HEADER // len(line) + 1))[:MAX_HEADER], NAMES) < most


def peak_memory(message: bytes, names: frozenset[bytes]) -> int:
    """Return the most octets of memory that are in use while a message arrives in pieces."""
    pieces = [message[start : start + 500] for start in range(0, len(message), 500)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        collector = HeaderCollector(names)
        peak = 0
        for piece in pieces:
            collector.feed(piece)
            peak = max(peak, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    return peak


def test_sessions_with_rules_that_refuse_keep_little_of_a_header_section() -> None:
    """They know a message again, and obey its directives."""
    environment = RuleEnvironment(outcome_store=OutcomeTable(sets=1))
    engine = make_engine(mode="random", environment=environment)
    line = b"X-Filler: " + b"x" * 60 + b"\r\n"
    grown = []
    for _ in range(2):  # what the first round allocates may belong to all sessions
        sessions = [engine.session() for _ in range(20)]
        for session in sessions:
            session.greet()
            session.receive(b"DATA\r\n")
        tracemalloc.start()
        try:
            for session in sessions:
                session.receive(b"Message-ID: <1@a.example>\r\n" + line * 400)
                session.receive(line * 400)
            grown.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert grown[1] / 20 < 2048


def test_end_of_a_message_may_be_the_middle_of_its_header_section() -> None:
    """Where 64 KiB of it have come, or a line that is no field."""
    message = (b"To: ".ljust(98, b"x") + b"\r\n") * (MAX_HEADER // 100) + b"Subject: " + b"y" * 100
    assert collected(message, 1000) == b"Subject: ".ljust(MAX_HEADER % 100, b"y") + b"\r\n\r\n"
    assert collected(b"Subject: x\r\nno field\r\nmore", 5) == b"Subject: x\r\n-\r\n\r\n"
