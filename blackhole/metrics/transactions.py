"""Transactions as people and programs see them, made of the records that workers write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from email.errors import MessageError
from email.header import decode_header, make_header
from functools import cached_property
from typing import Any, Final

from blackhole.metrics.snapshot import DISPOSITIONS
from blackhole.rules.faults import FAULTS
from blackhole.smtp import replies
from blackhole.smtp.paths import read_path
from blackhole.smtp.state import PHASES
from blackhole.smtp.transaction_record import (
    ENDED_BY_CLOSE,
    ENDED_BY_MESSAGE,
    FROM_VERB,
    MAX_RECIPIENTS,
    NAMESPACE_KIND,
    RECIPIENT_KIND,
    VIOLATION_KIND,
    RecordedExchange,
    StoredTransaction,
)
from blackhole.smtp.wanted_fields import name_and_value
from blackhole.store.recent import StoredRecord

LOCAL_NAMES: Final = (b"", b"postmaster")
"""Addresses without "@" (RFC 5321 4.5.1)."""


TRANSACTION_OUTCOMES: Final = {
    "accepted": "the reply to the message was 2xx, in LMTP for one recipient at least",
    "deferred": "the reply to the message was 4xx, or there was no message and the last refusal was 4xx",
    "rejected": "the same with 5xx",
    "aborted": "the client ended the transaction with RSET or another command, and nothing was refused",
    "disconnected": "the connection ended before the reply to the message, and nothing was refused",
}
"""What can become of a transaction."""


@dataclass(frozen=True, slots=True)
class CommandReply:
    """A command and its reply, as they went."""

    phase: str
    """Such as MAIL, CONNECT for the greeting, or "." for a message; empty for a reply to no command."""
    time: float
    """When the reply left, in seconds since 1970."""
    command: str
    """The line that the client sent, without its end; empty for a message."""
    reply: str
    """All lines of the reply, without the last line end; empty if none was sent."""
    rule: str = ""
    """The rule that decided; empty if none did."""
    fault: str = ""
    """The deliberate failure of the reply or the connection."""

    @property
    def code(self) -> int:
        """The code of the reply; 0 if none was sent."""
        return int(self.reply[:3]) if self.reply[:3].isdigit() else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        return {
            "phase": self.phase,
            "time": self.time,
            "command": self.command,
            "reply": self.reply,
            "code": self.code,
            "rule": self.rule,
            "fault": self.fault,
        }


@dataclass(frozen=True, slots=True)
class ViolationLine:
    """A violation, and the line that shows it."""

    name: str
    line: str
    """At most 80 characters; empty where no line shows it."""


@dataclass(frozen=True)
class Transaction:
    """A transaction, from MAIL to the reply to its message or to its end without one.

    What came before it in its connection is among its exchanges too. A session that was refused before MAIL
    is one transaction without a sender.
    """

    id: str
    time: float
    """When it ended, in seconds since 1970."""
    listener: str
    client: str
    """Address of the client."""
    helo: str
    """Name in HELO or EHLO."""
    tls: str
    """Version and cipher, as in "TLSv1.3 TLS_AES_256_GCM_SHA384"; empty without TLS."""
    sender: str | None
    """The reverse-path; empty for the null reverse-path, None without MAIL."""
    recipients: tuple[str, ...]
    """The first ten that were accepted; in LMTP those for which the message was."""
    refused_recipients: tuple[str, ...]
    """The first ten that were not."""
    recipient_count: int
    """All that were accepted."""
    size: int
    """Octets of the message, as received; 0 without one."""
    outcome: str
    """A key of TRANSACTION_OUTCOMES."""
    is_message: bool
    """A message was received and answered."""
    rule: str
    """The rule that decided last; empty if none did."""
    violations: tuple[ViolationLine, ...]
    fields: Mapping[str, str]
    """The fields of the header section that `recent_fields` names, by name, as they were sent."""
    exchanges: tuple[CommandReply, ...]
    left_out: int = 0
    """Commands that are not among the exchanges, because there were too many."""
    left_out_at: int = 0
    """How many of the exchanges precede them."""
    namespace: str = ""
    """The namespace that it belongs to; empty for none."""

    @property
    def accepted(self) -> bool:
        """Whether the message was accepted."""
        return self.outcome == "accepted"

    @property
    def reply(self) -> str:
        """The reply that decided: to the message, or else the last refusal, or the last one."""
        return "" if self._deciding is None else self._deciding.reply

    @property
    def code(self) -> int:
        """The code of that reply; 0 if none was sent."""
        return 0 if self._deciding is None else self._deciding.code

    @property
    def _deciding(self) -> CommandReply | None:
        refusal = None if self.is_message or self.outcome == "disconnected" else last_refusal(self.exchanges)
        return refusal or (self.exchanges[-1] if self.exchanges else None)

    @cached_property
    def subject(self) -> str:
        """The Subject, with its encoded words (RFC 2047) decoded; empty if there is none, or if
        `recent_fields` does not name it."""
        names = (name for name in self.fields if name.lower() == "subject")
        text = self.fields.get(next(names, ""), "")
        try:
            return str(make_header(decode_header(text)))
        except (MessageError, LookupError, ValueError):
            return text

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        found = {field: getattr(self, field) for field in FIELDS}
        found["violations"] = [{"name": one.name, "line": one.line} for one in self.violations]
        found["exchanges"] = [one.as_dict() for one in self.exchanges]
        return found


FIELDS: Final = tuple(field.name for field in fields(Transaction))


def text(octets: bytes) -> str:
    """Return what a client sent as text; octets that are not UTF-8 are shown as escapes."""
    return octets.decode(errors="backslashreplace")


def transaction(stored: StoredRecord, record: StoredTransaction, rules: Mapping[int, str]) -> Transaction:
    """Return the transaction of a record. `rules` has the names of rules by the numbers of their counters."""
    exchanges = [one for exchange in record.first for one in _command_replies(exchange, rules)]
    left_out_at = len(exchanges)
    exchanges += [one for exchange in record.last for one in _command_replies(exchange, rules)]
    deciding = [one.rule for one in exchanges if one.rule]
    last = exchanges[-1] if exchanges else None
    sender, recipients, refused = _envelope(exchanges, left_out_at, record.marks)
    ends = [one for one in exchanges if one.phase == "."]
    accepted = record.accepted
    if len(ends) > 1 and len(ends) == len(recipients):  # LMTP
        answered = list(zip(recipients, ends, strict=True))
        recipients = [address for address, one in answered if one.code < 400]
        refused += [address for address, one in answered if one.code >= 400]
        accepted = len(recipients)
    return Transaction(
        id=f"{stored.section}-{stored.number}",
        time=last.time if last else 0.0,
        listener=text(record.listener),
        client=text(record.client),
        helo=text(record.helo),
        tls=text(record.tls),
        sender=sender,
        recipients=tuple(recipients[:MAX_RECIPIENTS]),
        refused_recipients=tuple(refused[:MAX_RECIPIENTS]),
        recipient_count=accepted,
        size=record.size,
        outcome=_outcome(record.ending, exchanges),
        is_message=record.ending == ENDED_BY_MESSAGE and last is not None and not _is_cut_off(last),
        rule=deciding[-1] if deciding else "",
        violations=tuple(violations(record.marks)),
        fields=_fields(record.wanted, record.fields),
        exchanges=tuple(exchanges),
        left_out=record.left_out,
        left_out_at=left_out_at,
        namespace=next((text(name) for name, _ in _marks(record.marks, NAMESPACE_KIND)), ""),
    )


def _marks(marks: Iterable[bytes], kind: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the two parts of each mark of a kind."""
    for mark in marks:
        if mark.startswith(kind):
            first, _, second = mark[len(kind) :].partition(b"\0")
            yield first, second


def violations(marks: Iterable[bytes]) -> Iterator[ViolationLine]:
    """Yield the violations among the marks of a record."""
    for name, line in _marks(marks, VIOLATION_KIND):
        yield ViolationLine(text(name), text(line))


def _fields(wanted: bytes, found: Sequence[bytes]) -> dict[str, str]:
    """Return the fields that were found by the names that the operator gave, each value in one line."""
    by_name: dict[bytes, bytes] = {}
    for name, value in map(name_and_value, found):
        by_name.setdefault(name, value)
    names = (name for name in wanted.split(b",") if name.lower() in by_name)
    return {text(name): text(by_name[name.lower()]) for name in names}


def _command_replies(exchange: RecordedExchange, rules: Mapping[int, str]) -> Iterator[CommandReply]:
    """Yield the commands of an exchange, with their replies."""
    time, phase, commands, answered, note = exchange
    rule, _, fault = note.partition(b"\0")
    by = rules.get(int(rule), "") if rule.isdigit() else text(rule)
    if phase != FROM_VERB:
        name = PHASES[phase] if phase < FROM_VERB else ""
        yield CommandReply(name, time, _line(commands), _line(answered), by, text(fault))
        return
    lines = commands.splitlines(keepends=True)
    # Only a command that came alone has a reply of several lines.
    answers = [answered] if len(lines) == 1 else answered.splitlines(keepends=True)
    for line, answer in zip(lines, answers, strict=False):
        verb = text(line.split(b" ", 1)[0].strip()).upper()
        yield CommandReply(verb, time, _line(line), _line(answer))


def _line(octets: bytes) -> str:
    """Return a line, or all lines of a reply, without the last line end. A bare LF or CR stays."""
    return text(octets.removesuffix(b"\r\n"))


def _envelope(
    exchanges: Sequence[CommandReply], left_out_at: int, marks: Iterable[bytes]
) -> tuple[str | None, list[str], list[str]]:
    """Return the sender, the accepted recipients and the refused ones."""
    sender: str | None = None
    is_accepted = False
    recipients: list[str] = []
    refused: list[str] = []
    for position, one in enumerate(exchanges):
        if position == left_out_at:
            left_out = [text(line) for line, _ in _marks(marks, RECIPIENT_KIND)]
            recipients += filter(None, (_address(line, "TO") for line in left_out))
        if one.phase == "MAIL" and not is_accepted:
            is_accepted = 0 < one.code < 400
            sender = _address(one.command, "FROM")
        elif one.phase == "RCPT":
            address = _address(one.command, "TO")
            if address is not None:
                (recipients if 0 < one.code < 400 else refused).append(address)
    return sender, recipients, refused


def _address(command: str, word: str) -> str | None:
    """Return the address in MAIL or RCPT; None if there is none."""
    argument = command.strip()[len("MAIL") :].strip()
    if argument[: len(word)].upper() != word:
        return None
    path = read_path(argument[len(word) :].encode(errors="replace"), LOCAL_NAMES)
    return None if path is None else text(path.address)


def recipient_address(one: CommandReply) -> str | None:
    """Return the address in a RCPT command; None if it has none."""
    return _address(one.command, "TO")


def _is_cut_off(last: CommandReply) -> bool:
    """Return whether a fault has cut the reply off."""
    return last.fault in FAULTS and FAULTS[last.fault].share < 1


def _outcome(ending: int, exchanges: Sequence[CommandReply]) -> str:
    """Return what became of a transaction."""
    if ending == ENDED_BY_MESSAGE and exchanges:
        # In LMTP there is a reply for each recipient: that one accepts the message outweighs all others.
        answers = [one for one in exchanges if one.phase == "." and not _is_cut_off(one)] or exchanges[-1:]
        last = min(answers, key=lambda one: one.code)
        return "disconnected" if _is_cut_off(last) else DISPOSITIONS.get(last.code // 100, "rejected")
    refusal = last_refusal(exchanges)
    if refusal is not None:
        return DISPOSITIONS.get(refusal.code // 100, "rejected")
    return "disconnected" if ending == ENDED_BY_CLOSE else "aborted"


def last_refusal(exchanges: Iterable[CommandReply]) -> CommandReply | None:
    """Return the last reply that refused something; None if there was none.

    503 follows from an earlier refusal, unless there was none.
    """
    refusals = [one for one in exchanges if one.code >= 400]
    causes = [one for one in refusals if one.code != replies.BAD_SEQUENCE.code] or refusals
    return causes[-1] if causes else None
