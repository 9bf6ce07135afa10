"""A transaction record: what is remembered of one transaction, and its form in octets.

Records are kept only where the operator asks for them. A record has the exchanges of the transaction (a
command and its reply) and marks (violations, fields of the header section), never a body. It is bounded
whatever a client sends: of many exchanges the first and the last are kept.

A record is written for every message and read for few. So a session keeps what it has, in the pieces in which
it has it, and a reader takes the pieces apart. `marshal` writes them in a third of a microsecond, `struct` in
three.
"""

from __future__ import annotations

from collections.abc import Sequence
from marshal import dumps
from typing import Any, Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.plain_values import read_value
from blackhole.smtp.state import PHASES

MAX_FIRST: Final = 20
"""Exchanges that are kept from the beginning of a record."""

MAX_LAST: Final = 4
"""Exchanges that are kept from its end, where there are more."""

MAX_PRELUDE: Final = 8
"""Exchanges that are kept from before the transaction."""

MAX_GROUP: Final = 1024
"""Octets of a pipelined group that is kept as one exchange."""

MAX_RECORDED_COMMAND: Final = 320
"""Octets of a command that are kept: MAIL with the longest address and some parameters."""

MAX_RECORDED_REPLY: Final = 512
"""Octets of a reply that are kept."""

MAX_OFFENDING_LINE: Final = 80
"""Octets of a line that breaks a rule that are kept."""

MAX_MARKS: Final = 32
"""Marks of a record."""

MAX_RECIPIENTS: Final = 10
"""Recipients that are kept of a transaction with many."""

MAX_RECORD: Final = 16384
"""Octets of a record."""

FROM_VERB: Final = len(PHASES)
"""In place of a phase: one or more whole command lines, whose verbs tell their phases."""

NO_PHASE: Final = FROM_VERB + 1
"""In place of a phase: a reply that answers no command, such as 421 after a timeout."""

PHASE_NUMBERS: Final = {phase: number for number, phase in enumerate(PHASES)}

VIOLATION_KIND: Final = b"V"
RECIPIENT_KIND: Final = b"R"
NAMESPACE_KIND: Final = b"N"
"""The first octets of marks: a violation, a RCPT command that is in no exchange, and the namespace."""

ENDED_BY_MESSAGE: Final = 0
ENDED_BY_COMMAND: Final = 1
ENDED_BY_CLOSE: Final = 2
ADDENDUM: Final = 3
"""How a transaction ended: with the reply to a message, with RSET or another command in its place, with the
connection. ADDENDUM is no transaction: its marks belong to an earlier record, whose number is in `size`."""

UsualExchange = tuple[float, bytes]
"""What the fast path answers in transactions: the time, and MAIL, RCPT and DATA with their usual replies."""

FastExchange = tuple[float, bytes, bytes]
"""What else it has answered: the time, what the client sent, and the replies. No octets of the client stand
for a whole message."""

RecordedExchange = tuple[float, int, bytes, bytes, bytes]
"""Any other exchange: time of the reply, number of the phase, what the client sent, the reply, and the note:
the rule that decided, and behind a NUL the fault of the reply."""

AnyExchange = UsualExchange | FastExchange | RecordedExchange

USUAL_REPLIES: Final = {
    b"MAIL": replies.SENDER_OK.wire,
    b"RCPT": replies.RECIPIENT_OK.wire,
    b"DATA": replies.START_INPUT.wire,
}
"""The replies of the fast path to the commands of a transaction."""

ENVELOPE_VERBS: Final = (*USUAL_REPLIES,)

LATEST_TIME: Final = 1e11
"""Seconds since 1970: more than any clock shows."""

MARSHAL_VERSION: Final = 2
"""The version of the format, without references between values."""


def encode_introduction(listener: bytes, wanted: bytes, client: bytes, helo: bytes, tls: bytes) -> bytes:
    """Return what the records of a connection have in common: the address of the listener, the names of the
    wanted fields with commas between them, the client, its name in HELO or EHLO, and TLS."""
    return dumps((listener, wanted, client, helo, tls), MARSHAL_VERSION)


NOBODY: Final = encode_introduction(b"", b"", b"", b"", b"")


def whole(exchange: AnyExchange) -> RecordedExchange:
    """Return an exchange with all its parts. Raises LookupError if the fast path does not answer so."""
    if len(exchange) == 2:
        time, commands = exchange
        if not commands:
            raise LookupError("no command")
        answers = [USUAL_REPLIES[line[:4]] for line in commands.split(b"\n")[:-1]]
        return time, FROM_VERB, commands, b"".join(answers), b""
    if len(exchange) == 3:
        time, commands, answered = exchange
        return time, FROM_VERB if commands else PHASE_NUMBERS["."], commands, answered, b""
    return exchange


TRANSACTION_PHASES: Final = frozenset(PHASE_NUMBERS[phase] for phase in ("MAIL", "RCPT", "DATA", "BDAT"))


def is_envelope(exchange: AnyExchange) -> bool:
    """Return whether an exchange belongs to a transaction."""
    if len(exchange) == 2:
        return True
    if len(exchange) == 3:
        return exchange[1].startswith(ENVELOPE_VERBS)
    return exchange[1] in TRANSACTION_PHASES or (
        exchange[1] == FROM_VERB and exchange[2].startswith(ENVELOPE_VERBS)
    )


class TransactionRecord:
    """What is remembered of the transaction under way, and of what came before it.

    >>> record = TransactionRecord()
    >>> record.add((0.0, b"MAIL FROM:<a@example.com>\\r\\n"))
    >>> record.mark_violation("no-hello", b"MAIL FROM:<a@example.com>")
    >>> introduction = encode_introduction(b"127.0.0.1:25", b"", b"192.0.2.1", b"", b"")
    >>> octets = record.encode(ENDED_BY_COMMAND, 0, 0, introduction)
    >>> found = read_record(octets)
    >>> found.client, found.first[0][2]
    (b'192.0.2.1', b'MAIL FROM:<a@example.com>\\r\\n')
    """

    __slots__ = ("_last", "_left_out", "_marks", "exchanges", "fields")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.exchanges: list[AnyExchange] = []
        """The first ones."""
        # An empty tuple costs nothing, and most records have three.
        self._last: tuple[RecordedExchange, ...] = ()
        self._left_out = 0
        self._marks: tuple[bytes, ...] = ()
        self.fields: Sequence[bytes] = ()
        """Those of the header section that are wanted, as they came."""

    @property
    def is_complete(self) -> bool:
        """Whether no exchange was left out."""
        return not (self._last or self._left_out)

    def add(self, exchange: AnyExchange) -> None:
        """Add an exchange; of too many, only the first and the last are kept."""
        if len(self.exchanges) < MAX_FIRST:
            self.exchanges.append(exchange)
            return
        self._last += (whole(exchange),)
        if len(self._last) > MAX_LAST:
            (_, phase, commands, _, _), *last = self._last
            self._last = (*last,)
            lines = commands.split(b"\n")[:-1] if phase == FROM_VERB else [commands]
            self._leave_out(len(lines), lines)

    def add_group(self, time: float, commands: bytes) -> None:
        """Add many commands that were answered together, each with its usual reply."""
        room = max(0, MAX_FIRST - len(self.exchanges))
        *first, rest = commands.split(b"\n", room)
        self.exchanges += [(time, command + b"\n") for command in first]
        last = rest.rsplit(b"\n", MAX_LAST + 1)[-MAX_LAST - 1 : -1]
        between = rest.count(b"\n") - len(last)
        if between > 0:
            self._leave_out(between, rest.split(b"\n", MAX_RECIPIENTS)[: min(between, MAX_RECIPIENTS)])
        for command in last:
            self.add((time, command + b"\n"))

    def _leave_out(self, count: int, lines: Sequence[bytes]) -> None:
        """Count exchanges that are left out; `lines` are the first of their commands."""
        self._left_out += count
        for line in lines:
            if line[:4].upper() == b"RCPT":
                self._mark(RECIPIENT_KIND + line[:MAX_RECORDED_COMMAND])

    def replace_last_reply(self, reply: bytes) -> None:
        """Put another reply in the place of the last one."""
        time, phase, command, _, note = whole(self.take_last())
        self.add((time, phase, command, reply, note))

    def mark_violation(self, name: str, line: bytes) -> None:
        """Add a violation and the line that shows it."""
        self._mark(VIOLATION_KIND + name.encode() + b"\0" + line[:MAX_OFFENDING_LINE])

    def mark_namespace(self, name: bytes) -> None:
        """Add the namespace to which the transaction belongs, whatever other marks there are."""
        self._marks += (NAMESPACE_KIND + name,)

    def _mark(self, mark: bytes) -> None:
        if len(self._marks) < MAX_MARKS:
            self._marks += (mark,)

    def has_transaction(self) -> bool:
        """Return whether a transaction has begun."""
        for exchange in self.exchanges:  # `any` takes twice as long
            if is_envelope(exchange):
                return True
        return any(map(is_envelope, self._last))

    def has_refusal(self) -> bool:
        """Return whether something was refused."""
        return any(whole(one)[3][:1] in (b"4", b"5") for one in (*self.exchanges, *self._last))

    def mail_command(self) -> bytes:
        """Return the last MAIL command; nothing if it was left out."""
        for _, _, commands, _, _ in map(whole, reversed(self.exchanges)):
            if commands[:4].upper() == b"MAIL":
                return commands.partition(b"\n")[0]
        return b""

    def take_last(self) -> AnyExchange:
        """Remove the last exchange, and return it."""
        if not self._last:
            return self.exchanges.pop()
        *last, taken = self._last
        self._last = (*last,)
        return taken

    def shorten_prelude(self) -> None:
        """Forget exchanges from long before the transaction, which has not begun."""
        if len(self.exchanges) > MAX_PRELUDE:
            del self.exchanges[:-MAX_PRELUDE]

    def encode(self, ending: int, accepted: int, size: int, introduction: bytes) -> bytes:
        """Return the record as octets: how the transaction ended, the recipients that were accepted, and the
        octets of its message are added."""
        left_out, first, last = self._left_out, self.exchanges, self._last
        values: Any = ending, accepted, size, left_out, introduction, first, last, self._marks, self.fields
        octets = dumps(values, MARSHAL_VERSION)
        while len(octets) > MAX_RECORD:
            self._shorten()
            octets = self.encode(ending, accepted, size, introduction)
        return octets

    def _shorten(self) -> None:
        """Leave out one exchange more, and all fields where none is left."""
        if self.exchanges:
            self.exchanges.pop()
            self._left_out += 1
        else:
            self.fields = ()


def encode_addendum(number: int, violation: str, line: bytes) -> bytes:
    """Return a violation that was found after the record of that number was written."""
    mark = VIOLATION_KIND + violation.encode() + b"\0" + line[:MAX_OFFENDING_LINE]
    return dumps((ADDENDUM, 0, number, 0, NOBODY, [], [], [mark], []), MARSHAL_VERSION)


class StoredTransaction(NamedTuple):
    """A record as it was read."""

    ending: int
    accepted: int
    """Recipients that were accepted."""
    size: int
    """Octets of the message; of an addendum the number of the record that it belongs to."""
    left_out: int
    listener: bytes
    wanted: bytes
    """Names of the wanted fields, with commas between them."""
    client: bytes
    helo: bytes
    tls: bytes
    first: list[RecordedExchange]
    last: list[RecordedExchange]
    """Those behind the exchanges that were left out."""
    marks: Sequence[bytes]
    fields: Sequence[bytes]
    """Those of the header section; of several with a name, the first counts."""

    @property
    def time(self) -> float:
        """When the last reply left; 0.0 if there was none."""
        exchanges = self.last or self.first
        return exchanges[-1][0] if exchanges else 0.0


def read_record(octets: bytes) -> StoredTransaction | None:
    """Return the record that `encode` has written; None for anything else: any worker could write into the
    memory from which records are read."""
    try:
        ending, accepted, size, left_out, introduction, first, last, marks, fields = read_value(octets)
        listener, wanted, client, helo, tls = read_value(introduction)
        found = StoredTransaction(
            *(ending, accepted, size, left_out, listener, wanted, client, helo, tls),
            [*map(whole, first)],
            [*map(whole, last)],
            marks,
            fields,
        )
        valid = _is_valid(found)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return found if valid else None


def _is_valid(record: StoredTransaction) -> bool:
    """Return whether the values are of the types and in the ranges that readers rely on."""
    numbers = record.ending, record.accepted, record.size, record.left_out
    texts = (
        record.listener,
        record.wanted,
        record.client,
        record.helo,
        record.tls,
        *record.marks,
        *record.fields,
    )
    return (
        all(isinstance(number, int) and number >= 0 for number in numbers)
        and record.ending <= ADDENDUM
        and all(isinstance(text, bytes) for text in texts)
        and all(
            isinstance(time, float)
            and 0.0 <= time < LATEST_TIME
            and phase in range(NO_PHASE + 1)
            and all(isinstance(text, bytes) for text in (commands, answered, note))
            for time, phase, commands, answered, note in (*record.first, *record.last)
        )
    )
