"""The envelope of a message that was accepted as a whole, read from the record of its transaction.

A record has all that a client and the server said, and to take all of it apart takes longer than the message
itself. Most messages are accepted with all their recipients, whose commands have the usual form.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blackhole.smtp.transaction_record import PHASE_NUMBERS, TransactionRecord, whole

MAIL_START: Final = b"MAIL FROM:<"
RCPT_START: Final = b"RCPT TO:<"

END_PHASE: Final = PHASE_NUMBERS["."]
OTHER_ENDS: Final = (END_PHASE, PHASE_NUMBERS["BDAT"])
"""Phases of messages to several recipients in LMTP, and in chunks."""

ENVELOPE_PHASES: Final = (PHASE_NUMBERS["MAIL"], PHASE_NUMBERS["RCPT"])


class AcceptedEnvelope(NamedTuple):
    """Sender and recipients, as they came."""

    sender: bytes
    recipients: list[bytes]


def read_accepted_envelope(record: TransactionRecord) -> AcceptedEnvelope | None:
    """Return the envelope of a message that was accepted with all its recipients; None for any other record,
    and for addresses of an unusual form.

    >>> record = TransactionRecord()
    >>> record.add((0.0, b"MAIL FROM:<a@a.test>\\r\\nRCPT TO:<b@b.test>\\r\\n", b"250 OK\\r\\n250 OK\\r\\n"))
    >>> record.add((0.0, b"DATA\\r\\n", b"354 Go on\\r\\n"))
    >>> record.add((0.0, b"", b"250 OK\\r\\n"))
    >>> read_accepted_envelope(record)
    AcceptedEnvelope(sender=b'a@a.test', recipients=[b'b@b.test'])
    """
    if not record.is_complete or not record.exchanges:
        return None
    *exchanges, end = map(whole, record.exchanges)
    _, phase, _, reply, note = end
    if phase != END_PHASE or reply[:1] != b"2" or reply.count(b"\n") != 1 or b"\0" in note:
        return None
    sender: bytes | None = None
    recipients = []
    for _, phase, commands, replies, note in exchanges:
        if phase in OTHER_ENDS or b"\0" in note:
            return None
        for line, answer in zip(commands.split(b"\n"), replies.split(b"\n"), strict=False):
            verb = line[:4].upper()
            if verb not in (b"MAIL", b"RCPT"):
                if line and phase in ENVELOPE_PHASES:
                    return None  # blanks stand before the verb
                continue
            address = _address(line, MAIL_START if verb == b"MAIL" else RCPT_START)
            if address is None or answer[:1] != b"2":
                return None
            if verb == b"RCPT":
                recipients.append(address)
            else:
                sender = address
    return None if sender is None or not recipients else AcceptedEnvelope(sender, recipients)


def _address(line: bytes, start: bytes) -> bytes | None:
    """Return the address in a command line of the usual form; None for any other form."""
    end = line.find(b">")
    address = line[len(start) : end]
    is_usual = line[: len(start)].upper() == start and address[:1] != b"@" and address.isascii()
    return address if is_usual and end >= 0 and b'"' not in address and b" " not in address else None
