"""The log of transactions: a line for each, where the operator asks for it (--log-transactions)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from blackhole.log_format import LogValue, log_event
from blackhole.metrics.counters import Counters
from blackhole.metrics.transactions import Transaction, transaction
from blackhole.smtp.recorded_session import RecordedSession
from blackhole.smtp.transaction_record import read_record
from blackhole.store.recent import StoredRecord

log = logging.getLogger(__name__)

TRANSACTION_EVENT: Final = "transaction"
"""How the lines begin, after the level."""


class TransactionLog:
    """Logs the transactions of one worker, made of the records that sessions write of them."""

    def __init__(self, counters: Counters) -> None:
        self._counters: Final = counters
        self._rules: Mapping[int, str] = {}

    def update_rules(self) -> None:
        """Learn the names of the rules in force: to be called when they have changed."""
        self._rules = self._counters.rule_names()

    def write(self, session: RecordedSession, octets: bytes) -> None:
        """Log the transaction of a record. No limit applies, as the operator wants a line for each."""
        record = read_record(octets)
        if record is not None:
            found = transaction(StoredRecord(0, 0, octets), record, self._rules)
            fields = transaction_fields(f"{session.connection_id:010X}", found)
            log_event(log, logging.INFO, TRANSACTION_EVENT, fields, limited=False)


def transaction_fields(connection: str, found: Transaction) -> dict[str, LogValue]:
    """Return the fields of a line. What is not known, or not there, is left out."""
    return {
        "client": found.client,
        "connection": connection,
        "listener": found.listener,
        "tls": found.tls or None,
        "helo": found.helo or None,
        "sender": found.sender,
        "recipients": found.recipient_count,
        "to": ",".join(found.recipients) or None,
        "refused": ",".join(found.refused_recipients) or None,
        "size": found.size,
        "outcome": found.outcome,
        "reply": found.reply,
        "rule": found.rule or None,
        "violations": ",".join(dict.fromkeys(one.name for one in found.violations)) or None,
    }
