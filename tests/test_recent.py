"""The records of the last transactions: the ring in shared memory, and what readers make of it."""

from __future__ import annotations

import marshal
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.metrics import recent_lines
from blackhole.metrics.transaction_reader import TransactionFilter, TransactionReader
from blackhole.metrics.transactions import Transaction
from blackhole.rules.globs import GlobSet
from blackhole.settings import MAX_RECENT, OperatorError
from blackhole.smtp.plain_values import MAX_DEPTH, read_value
from blackhole.smtp.transaction_record import (
    ENDED_BY_MESSAGE,
    MARSHAL_VERSION,
    MAX_RECORD,
    NOBODY,
    FastExchange,
    TransactionRecord,
    encode_addendum,
    encode_introduction,
    read_record,
)
from blackhole.smtp.wanted_fields import WantedFieldReader, WantedFields, name_and_value
from blackhole.store.recent import (
    COUNT,
    LENGTH_BITS,
    MAP_CELLS,
    OCTETS_EACH,
    RESERVED,
    RESERVED_AT_ONCE,
    SECTION_HEAD,
    RecentRecords,
    recent_records,
    ring_entries,
    ring_octets,
    section_cells,
)


def octets_of(records: RecentRecords) -> list[bytes]:
    return [one.octets for stream in records.streams({}) for one in stream]


# The ring.


def test_ring_keeps_the_newest_records() -> None:
    records = RecentRecords(rows=1, kept=10)
    append = records.writer(0).append
    assert [append(b"%d" % number) for number in range(100)] == [*range(100)]
    assert octets_of(records) == [
        b"%d" % number for number in range(80, 100)
    ]  # an entry for each addendum too
    assert records.total == 100


def test_large_records_displace_more_of_the_older_ones() -> None:
    records = RecentRecords(rows=1, kept=100)
    append = records.writer(0).append
    for number in range(300):
        append(bytes((number % 256,)) * (OCTETS_EACH * 2))
    found = octets_of(records)
    assert 50 - 1 <= len(found) <= 50 + RESERVED_AT_ONCE // (OCTETS_EACH * 2)
    assert [octets[0] for octets in found] == [number % 256 for number in range(300 - len(found), 300)]


@given(st.lists(st.integers(0, MAX_RECORD), max_size=200))
def test_what_is_read_is_what_was_written(sizes: list[int]) -> None:
    records = RecentRecords(rows=1, kept=16)
    append = records.writer(0).append
    written = [bytes((number % 251,)) * size for number, size in enumerate(sizes)]
    for octets in written:
        append(octets)
    found = octets_of(records)
    assert found == written[len(written) - len(found) :]
    room = ring_octets(16) - RESERVED_AT_ONCE - MAX_RECORD
    assert sum(map(len, written[-len(found) - 1 :])) > room or len(found) >= min(32, len(written))


def test_section_is_continued_by_the_next_process() -> None:
    records = RecentRecords(rows=2, kept=10)
    records.writer(1).append(b"first")
    assert records.writer(1).append(b"second") == 1
    assert octets_of(records) == [b"first", b"second"]


def test_memory_is_bounded_and_taken_as_it_is_needed() -> None:
    assert section_cells(MAX_RECENT) * 8 < 11 << 20
    records = RecentRecords(rows=64, kept=MAX_RECENT)
    path = next(
        f"/proc/self/fd/{entry}"
        for entry in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{entry}")
        and os.readlink(f"/proc/self/fd/{entry}").startswith("/memfd:blackhole.store.recent")
    )
    assert os.stat(path).st_blocks * 512 < 64 << 10
    append = records.writer(5).append
    for _ in range(3 * MAX_RECENT):
        append(b"x" * 600)
    assert os.stat(path).st_blocks * 512 < 11 << 20


def test_record_that_is_overwritten_while_it_is_read_is_not_returned() -> None:
    records = RecentRecords(rows=1, kept=10)
    append = records.writer(0).append
    written = {bytes((value,)) * 700 for value in range(256)}
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            append(bytes((value % 256,)) * 700)
            value += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert written.issuperset(octets_of(records))
    finally:
        stop.set()
        writer.join()


def cells_of(records: RecentRecords) -> memoryview:
    return records._cells


@pytest.mark.parametrize("cell", [COUNT, RESERVED, SECTION_HEAD, SECTION_HEAD + 1])
@pytest.mark.parametrize("value", [0, 1, 7, 1 << 20, (1 << 64) - 1])
def test_reader_survives_what_a_broken_worker_writes(cell: int, value: int) -> None:
    records = RecentRecords(rows=1, kept=10)
    records.writer(0).append(b"one")
    records.writer(0).append(b"two")
    cells_of(records)[MAP_CELLS + cell] = value
    assert all(len(octets) < 1 << LENGTH_BITS for octets in octets_of(records))
    assert records.record(0, 1 << 30) is None
    assert records.record(7, 0) is None


@pytest.mark.parametrize("cell", [COUNT, RESERVED, SECTION_HEAD, SECTION_HEAD + 1])
@pytest.mark.parametrize("value", [0, 1, 7, 1 << 20, (1 << 64) - 1])
def test_next_worker_goes_on_whatever_a_broken_one_has_written(cell: int, value: int) -> None:
    records = RecentRecords(rows=1, kept=10)
    records.writer(0).append(b"one")
    records.writer(0).append(b"two")
    cells_of(records)[MAP_CELLS + cell] = value
    append = records.writer(0).append
    numbers = [append(octets) for octets in (b"three", b"four")]
    assert [records.record(0, number) for number in numbers] == [
        (0, numbers[0], b"three"),
        (0, numbers[1], b"four"),
    ]


def test_record_that_does_not_fit_the_ring_is_not_returned() -> None:
    records = RecentRecords(rows=1, kept=10)
    records.writer(0).append(b"one")
    position = ring_octets(10) - 1
    cells_of(records)[MAP_CELLS + SECTION_HEAD] = position << LENGTH_BITS | 2
    assert octets_of(records) == []


def test_each_record_lies_in_what_an_earlier_one_has_reserved() -> None:
    """So a reader needs no checksum, in whatever order a processor shows it what was written."""
    records = RecentRecords(rows=1, kept=10)
    append, random = records.writer(0).append, Random(7)
    cells = cells_of(records)[MAP_CELLS:]
    append(b"first")
    for _ in range(3000):
        reserved = cells[RESERVED]
        number = append(bytes(random.choice((0, 1, 400, MAX_RECORD - 1, MAX_RECORD))))
        position, length = divmod(cells[SECTION_HEAD + number % ring_entries(10)], 1 << LENGTH_BITS)
        assert position + length <= reserved <= cells[RESERVED]


def test_server_without_records_says_how_to_keep_them() -> None:
    with pytest.raises(OperatorError, match="--recent 1000"):
        recent_records(os.getppid())


def test_map_of_another_program_is_not_read() -> None:
    records = RecentRecords(rows=1, kept=10)
    cells_of(records)[1] = MAX_RECENT + 1
    assert RecentRecords.of(os.getpid()) is None
    cells_of(records)[1] = 10
    assert RecentRecords.of(os.getpid()) is not None


# Records.


def record(
    time: float, sender: bytes = b"a@x.test", recipient: bytes = b"b@x.test", code: int = 250
) -> bytes:
    one = TransactionRecord()
    exchanges: list[FastExchange] = [
        (time, b"MAIL FROM:<%b>\r\n" % sender, b"250 2.1.0 Sender OK\r\n"),
        (time, b"RCPT TO:<%b>\r\n" % recipient, b"250 2.1.5 Recipient OK\r\n"),
        (time, b"DATA\r\n", b"354 Go on\r\n"),
        (time, b"", b"%d Done\r\n" % code),
    ]
    for exchange in exchanges:
        one.add(exchange)
    one.fields = [b"SUBJECT:x\r\n y", b"subject:z"]
    introduction = encode_introduction(b"127.0.0.1:25", b"Subject", b"192.0.2.1", b"c.test", b"")
    return one.encode(ENDED_BY_MESSAGE, 1, 100, introduction)


def introduced(*values: object) -> bytes:
    return marshal.dumps(values, MARSHAL_VERSION)


@pytest.mark.parametrize(
    "value",
    [
        1,
        (1, 2),
        (0, 1, 1, 0, NOBODY, [], [], [], [], 1),
        (0, 1, 1, 0, introduced(b"", b"", b"", b""), [], [], [], []),
        (9, 1, 1, 0, NOBODY, [], [], [], []),
        (0, -1, 1, 0, NOBODY, [], [], [], []),
        (0, 1, 1.5, 0, NOBODY, [], [], [], []),
        (0, 1, 1, 0, introduced(b"", 1, b"", b"", b""), [], [], [], []),
        (0, 1, 1, 0, NOBODY, [1], [], [], []),
        (0, 1, 1, 0, NOBODY, [(1.0, b"")], [], [], []),
        (0, 1, 1, 0, NOBODY, [(1, b"", b"")], [], [], []),
        (0, 1, 1, 0, NOBODY, [(1e300, b"", b"")], [], [], []),
        (0, 1, 1, 0, NOBODY, [(float("nan"), b"", b"")], [], [], []),
        (0, 1, 1, 0, NOBODY, [(1.0, 99, b"", b"", b"")], [], [], []),
        (0, 1, 1, 0, NOBODY, [], [(1.0, 1, b"", 2, b"")], [], []),
        (0, 1, 1, 0, NOBODY, [], [], [1], []),
        (0, 1, 1, 0, NOBODY, [], [], [], [(b"", b"")]),
        (0, 1, 1, 0, 5, [], [], [], []),
        (0, 1, 1, 0, (b"",) * 5, [], [], [], []),
        (0, 1, 1, 0, b"", [], [], [], []),
        (0, 1, 1, 0, NOBODY, 5, [], [], []),
        [[[[[[1]]]]]],
        None,
        "text",
        1 << 200,
    ],
)
def test_record_that_no_session_has_written_is_not_read(value: object) -> None:
    assert read_record(marshal.dumps(value, MARSHAL_VERSION)) is None


def test_record_that_is_cut_off_or_too_long_is_not_read() -> None:
    octets = record(1.0)
    assert read_record(octets) is not None
    assert all(read_record(octets[:end]) is None for end in range(len(octets)))
    assert read_record(octets + b"N") is None
    assert read_record(b"s\xff\xff\xff\xff") is None
    assert read_record(b"I" + bytes(8)) is None


VALUES = st.recursive(
    st.integers(-(2**31), 2**63 - 1).filter(lambda number: number >= 0 or number >= -(2**31))
    | st.floats(allow_nan=False)
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def depth(value: object) -> int:
    return 1 + max(map(depth, value), default=0) if isinstance(value, list | tuple) else 0


@given(VALUES)
def test_plain_values_are_read_as_marshal_reads_them(value: object) -> None:
    octets = marshal.dumps(value, MARSHAL_VERSION)
    if depth(value) <= MAX_DEPTH:
        assert read_value(octets) == value
    else:
        with pytest.raises(ValueError, match="no plain value"):
            read_value(octets)


@given(st.binary(max_size=64))
def test_any_octets_are_a_plain_value_or_an_error(octets: bytes) -> None:
    with suppress(ValueError):
        read_value(octets)


# Fields.

HEADERS = [
    (b"Subject: a\r\nX: y\r\n\r\nbody", [(b"subject", b"a")]),
    (b"X: y\r\nsubject : a\r\n\r\nbody", [(b"subject", b"a")]),
    (b"X-Subject: no\r\nSubjects: no\r\n\r\nSubject: no\r\n", []),
    (b"Subject:a\r\n\tb\r\n c\r\nX: y\r\n\r\n", [(b"subject", b"a b c")]),
    (b"Message-Id: <1@x>\r\nSUBJECT:\r\n\r\n", [(b"message-id", b"<1@x>"), (b"subject", b"")]),
    (b"X: y\nSubject: lf\n\nbody\r\n", [(b"subject", b"lf")]),
    (b"no header section\r\nSubject: no\r\n", None),
    (b".\r\n", []),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("message", "wanted"), HEADERS)
def test_wanted_fields_of_a_message_in_pieces(
    message: bytes, wanted: list[tuple[bytes, bytes]] | None, size: int
) -> None:
    reader = WantedFieldReader(WantedFields(("Subject", "Message-ID")))
    for start in range(0, len(message), size):
        reader.feed(message[start : start + size])
    assert [*map(name_and_value, reader.fields())] == (wanted or [])


@pytest.mark.parametrize(("message", "wanted"), HEADERS)
def test_wanted_fields_of_a_whole_message(message: bytes, wanted: list[tuple[bytes, bytes]] | None) -> None:
    if wanted is None:
        return
    found = WantedFields(("Subject", "Message-ID")).find(message)
    joined = [*map(name_and_value, found)]
    assert joined == wanted


def test_no_field_is_kept_where_none_is_wanted() -> None:
    reader = WantedFieldReader(WantedFields(()))
    reader.feed(b"Subject: a\r\n\r\n")
    assert reader.fields() == []
    assert WantedFields(()).find(b"Subject: a\r\n\r\n") == []


def test_fields_are_bounded() -> None:
    wanted = WantedFields(("Subject",))
    hostile = b"Subject: " + b"x" * 60000 + b"\r\n" + b"Subject: y\r\n" * 5000 + b"\r\n"
    assert sum(map(len, wanted.find(hostile))) < 2000
    reader = WantedFieldReader(wanted)
    for piece in (b"Subject: ", *(b"x" * 100,) * 400, b"\r\n", *(b" yyyyyyyyyyy\r\n",) * 900, b"\r\n"):
        reader.feed(piece)
    assert [len(value) for _, value in map(name_and_value, reader.fields())] == [256]
    reader = WantedFieldReader(wanted)
    reader.feed(b"Subject: a\r\n" + b" b\r\n" * 900 + b"X: y\r\n" * 900 + b"\r\n")
    assert len(reader.fields()[0]) < 512


# Readers.

RULES = {7: "a rule"}


@pytest.fixture
def records() -> RecentRecords:
    return RecentRecords(rows=3, kept=10)


@pytest.fixture
def reader(records: RecentRecords) -> TransactionReader:
    return TransactionReader(records, lambda: RULES)


def times(transactions: list[Transaction]) -> list[float]:
    return [one.time for one in transactions]


def test_transactions_of_all_workers_come_in_the_order_of_their_ends() -> None:
    records = RecentRecords(rows=2, kept=10)
    for time in range(1, 9):
        records.writer(time % 2).append(record(float(time)))
    reader = TransactionReader(records, dict)
    assert times(reader.newest(100).transactions) == times(reader.since({}, 100).transactions)
    assert times(reader.newest(3).transactions) == [6.0, 7.0, 8.0]
    assert times(reader.since({}, 3).transactions) == [1.0, 2.0, 3.0]


def test_transactions_of_a_worker_keep_their_order_when_the_clock_is_set_back(
    records: RecentRecords, reader: TransactionReader
) -> None:
    for time in (5.0, 9.0, 7.0):
        records.writer(0).append(record(time))
    assert times(reader.newest(10).transactions) == [5.0, 9.0, 7.0]
    assert times(reader.since({}, 10).transactions) == [5.0, 9.0, 7.0]


def test_cursor_goes_on_where_the_last_answer_ended(
    records: RecentRecords, reader: TransactionReader
) -> None:
    found = reader.newest(10)
    for time in range(1, 8):
        records.writer(time % 3).append(record(float(time)))
    seen: list[float] = []
    more = True
    while more:
        transactions, cursor, more = reader.since(found.cursor, 2)
        cursor = reader.read_cursor(reader.cursor_text(cursor))
        found = found._replace(cursor=cursor)
        seen += times(transactions)
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert reader.since(found.cursor, 10) == ([], found.cursor, False)


def test_cursor_of_another_server_is_before_all_records(
    records: RecentRecords, reader: TransactionReader
) -> None:
    records.writer(0).append(record(1.0))
    other = TransactionReader(RecentRecords(rows=1, kept=10), dict)
    assert reader.read_cursor(other.cursor_text({0: 7})) == {}
    for text in ("", "zz", "1.2", "1.2-3-4", "1.-1-2", "x" * 100):
        with pytest.raises(ValueError, match="cursor"):
            reader.read_cursor(text)


def test_newest_are_never_more_than_are_to_be_kept(records: RecentRecords, reader: TransactionReader) -> None:
    for time in range(100):
        records.writer(time % 3).append(record(float(time)))
    assert times(reader.newest(100).transactions) == [float(time) for time in range(90, 100)]


def test_addendum_belongs_to_an_earlier_record(records: RecentRecords, reader: TransactionReader) -> None:
    append = records.writer(1).append
    number = append(record(1.0))
    before = reader.newest(10)
    append(encode_addendum(number, "no-quit", b""))
    append(encode_addendum(number, "talk-after-421", b"NOOP"))
    append(encode_addendum(99, "no-quit", b""))  # of a record that is not kept any more
    append(encode_addendum(2, "no-quit", b""))  # of an addendum
    append(b"\0")  # of nobody
    for found in (reader.newest(10), reader.since({}, 10), reader.since(before.cursor, 10)):
        (one,) = found.transactions
        assert [violation.name for violation in one.violations] == ["no-quit", "talk-after-421"]
    assert reader.since(reader.records.end(), 10).transactions == []


def test_addendum_is_found_beside_newer_records_of_others(
    records: RecentRecords, reader: TransactionReader
) -> None:
    records.writer(0).append(record(2.0))
    number = records.writer(1).append(record(1.0))
    records.writer(1).append(encode_addendum(number, "no-quit", b""))
    assert [len(one.violations) for one in reader.newest(2).transactions] == [1, 0]
    assert [one.time for one in reader.newest(1).transactions] == [2.0]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (TransactionFilter(), [1.0, 2.0, 3.0]),
        (TransactionFilter(recipient=GlobSet(["bob@*"])), [2.0]),
        (TransactionFilter(recipient=GlobSet(["BOB@x.test"])), [2.0]),
        (TransactionFilter(sender=GlobSet(["eve@*"])), [3.0]),
        (TransactionFilter(client=GlobSet(["192.0.2.1"])), [1.0, 2.0, 3.0]),
        (TransactionFilter(client=GlobSet(["192.0.2.2"])), []),
        (TransactionFilter(outcome="rejected"), [3.0]),
        (TransactionFilter(after=1.5), [2.0, 3.0]),
    ],
)
def test_filter(
    records: RecentRecords, reader: TransactionReader, wanted: TransactionFilter, found: list[float]
) -> None:
    append = records.writer(0).append
    append(record(1.0))
    append(record(2.0, recipient=b"bob@x.test"))
    append(record(3.0, sender=b"eve@x.test", code=550))
    assert times(reader.newest(10, wanted).transactions) == found
    assert times(reader.since({}, 10, wanted).transactions) == found


def test_octets_of_an_answer_are_bounded(records: RecentRecords, reader: TransactionReader) -> None:
    for time in range(9):
        records.writer(0).append(record(float(time)))
    size = len(record(1.0))
    assert len(reader.since({}, 100, max_octets=3 * size).transactions) == 3
    turns = reader.newest_in_turns(100, max_octets=3 * size)
    with pytest.raises(StopIteration) as ended:
        next(turns)
    assert len(ended.value.value.transactions) == 3


def test_others_have_their_turn_while_many_records_are_read() -> None:
    records = RecentRecords(rows=1, kept=2000)
    for time in range(1500):
        records.writer(0).append(record(float(time)))
    reader = TransactionReader(records, dict)
    nobody = TransactionFilter(recipient=GlobSet(["nobody@*"]))
    assert sum(1 for _ in reader.newest_in_turns(10, nobody)) == 15
    first = reader.since({}, 10, nobody)
    assert (first.transactions, first.more) == ([], True)
    assert not reader.since(first.cursor, 10, nobody).more


# Lines.


@pytest.fixture
def one(records: RecentRecords, reader: TransactionReader) -> Iterator[Transaction]:
    records.writer(0).append(record(1.0))
    yield reader.newest(1).transactions[0]


def test_summary_is_a_line(one: Transaction) -> None:
    time = recent_lines.clock_time(1.0)
    assert recent_lines.summary(one) == (
        f'{time} 192.0.2.1 accepted: <a@x.test> to <b@x.test>; 100 octets; 250 Done; Subject "x y"'
    )


def test_terminal_gets_no_control_character() -> None:
    records = RecentRecords(rows=1, kept=10)
    hostile = b"\x1b[2J\x07\xc2\x9b\xff\x7f@x.test"
    octets = record(1.0, hostile, hostile)
    records.writer(0).append(octets.replace(b"c.test", b"\x1b\x1b\x1b\x1b\x1b\x1b"))
    (one,) = TransactionReader(records, dict).newest(1).transactions
    for text in (recent_lines.summary(one), recent_lines.conversation(one), recent_lines.json_line(one)):
        assert all(" " <= letter <= "~" or letter == "\n" for letter in text)
    assert "\\x1b[2J\\x07\\x9b\\xff\\x7f@x.test" in recent_lines.summary(one)


def test_subject_is_decoded_or_left_as_it_is(one: Transaction) -> None:
    from dataclasses import replace

    for text, shown in (
        ("=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        ("=?nonsense?q?x?=", "=?nonsense?q?x?="),
        ("=?utf-8?b?x?=", "=?utf-8?b?x?="),
        ("=?utf-8?q?=FF?=", "=?utf-8?q?=FF?="),
        ("hello", "hello"),
    ):
        assert replace(one, fields={"SUBJECT": text}).subject == shown
    assert replace(one, fields={}).subject == ""
