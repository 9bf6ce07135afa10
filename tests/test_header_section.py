"""The header section of a message: what is kept of it does not depend on how it arrives."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.message_identity import IDENTITY_FIELDS, message_identity
from blackhole.smtp.header_section import (
    ANY_NAME,
    FIELD_ROOM,
    LINE_ROOM,
    MAX_HEADER,
    MAX_HEADER_LINES,
    PLAIN_OCTETS,
    PLAIN_SECTION,
    CollectedHeader,
    HeaderCollector,
    fields,
)
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import make_engine

pytestmark = pytest.mark.pure

NAMES = IDENTITY_FIELDS | {b"subject", b"x-tag"}

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
    assert fields(collected(message, size, frozenset((ANY_NAME,)))) == fields(message)


@example(b"Subject : a\r\nresent-message-id:b\nTo:\r\n\nbody")
@example(b"Message-ID: <1@a>\r\nMessage-ID: <2@a>\r\n\r\n")
@given(MESSAGES)
def test_plain_header_section_that_arrives_at_once_is_kept_as_in_pieces(message: bytes) -> None:
    for names in (NAMES, frozenset((ANY_NAME,))):
        whole, pieces = collected(message, 5000, names), collected(message, 1, names)
        if PLAIN_SECTION(message, 0, PLAIN_OCTETS):
            assert (whole, whole.digest) == (pieces, pieces.digest)


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
    message = (line * (MAX_HEADER // len(line) + 1))[:MAX_HEADER]
    pieces = [message[start : start + 500] for start in range(0, len(message), 500)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        collector = HeaderCollector(NAMES)
        peak = 0
        for piece in pieces:
            collector.feed(piece)
            peak = max(peak, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert peak < most


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
