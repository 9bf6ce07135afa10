"""The counter of recipients by domain: reads what became of them out of the records of transactions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from blackhole.metrics.transactions import Transaction, recipient_address, transaction
from blackhole.process.accepted_envelope import read_accepted_envelope
from blackhole.smtp import replies
from blackhole.smtp.recorded_session import RecordedSession
from blackhole.smtp.transaction_record import read_record
from blackhole.store.domain_log import DomainLogWriter
from blackhole.store.recent import StoredRecord

OUTCOME_BY_CLASS: Final = {2: "accepted", 3: "accepted", 4: "deferred", 5: "refused"}


class DomainCounter:
    """Counts the recipients of one worker."""

    def __init__(self, writer: DomainLogWriter, clock: Callable[[], float]) -> None:
        self._writer: Final = writer
        self._clock: Final = clock

    def write(self, session: RecordedSession, octets: bytes) -> None:
        """Count the recipients of the record that a session has written, which is `octets`."""
        envelope = read_accepted_envelope(session.record)
        if envelope is not None:
            now = self._clock()
            for recipient in envelope.recipients:
                self._writer.update(envelope.sender, recipient, OUTCOME_BY_CLASS[2], now)
            return
        record = read_record(octets)
        if record is not None:
            self.count(transaction(StoredRecord(0, 0, octets), record, {}))

    def count(self, found: Transaction) -> None:
        """Count the recipients of a transaction whose outcome is known.

        Those that were refused have it at RCPT, the others with the message. Accepted recipients that the
        record leaves out are counted without their domain.
        """
        now, sender = self._clock(), (found.sender or "").encode()
        accepted = []
        for one in found.exchanges:
            address = recipient_address(one) if one.phase == "RCPT" else None
            if address is None or one.code == replies.BAD_SEQUENCE.code:
                continue
            if 0 < one.code < 400:
                accepted.append(address.encode())
            elif one.code:
                self._writer.update(sender, address.encode(), OUTCOME_BY_CLASS[one.code // 100], now)
        codes = [one.code for one in found.exchanges if one.phase in (".", "DATA", "BDAT") and one.code]
        if not codes or (not found.is_message and codes[-1] < 400):
            return
        # In LMTP there is a reply for each recipient.
        ends = [one.code for one in found.exchanges if one.phase == "." and one.code]
        answers = ends if len(ends) == len(accepted) else [codes[-1]] * len(accepted)
        for recipient, code in zip(accepted, answers, strict=True):
            self._writer.update(sender, recipient, OUTCOME_BY_CLASS[code // 100], now)
        rest = found.recipient_count - len(accepted)
        if rest > 0:
            self._writer.count_others(OUTCOME_BY_CLASS[codes[-1] // 100], rest)
