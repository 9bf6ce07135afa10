"""Outcomes of messages and envelopes, the records of them, and the events that are counted.

A message that was accepted at once, as nearly all are, has no record: the store keeps its hash alone. All
other outcomes are records.

An envelope is a sender and a recipient. Its record is the same for all clients, as many senders have several
machines, and says whether the last attempt was deferred or refused. A message is a client's network, an
envelope and what the header section identifies it by; its record says what became of it.

The count of a record holds several numbers. Of an envelope: its outcome in the lowest octet, and above it the
number of attempts. Of a message: its outcome, the number of hasty retries in a row, and above them 16 bits of
the hash of the local address.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from blackhole.rules.attempt_store import Answer, Record, Update
from blackhole.smtp.replies import NextAction

if TYPE_CHECKING:
    from blackhole.smtp.faults import Fault

UNKNOWN_OUTCOME: Final = 0
DEFERRED: Final = 1
REFUSED: Final = 2
ACCEPTED: Final = 3
CLOSED_BEFORE_REPLY: Final = 4
CLOSED_WITHIN_REPLY: Final = 5
CLOSED_AFTER_REPLY: Final = 6
REPLY_TOO_LATE: Final = 7
NOT_RETRIED: Final = 8
"""Deferred, and counted as never retried."""

FOREIGN: Final = 1 << 40
"""Added to the count of a record that came from another machine, which counts what is never retried."""

FAILED: Final = frozenset((DEFERRED, REFUSED))


class Event(NamedTuple):
    """An event that is counted."""

    name: str
    meaning: str


UNCERTAIN_OUTCOMES: Final = {
    CLOSED_BEFORE_REPLY: ("closed_before_reply", "connection closed instead of the final reply"),
    CLOSED_WITHIN_REPLY: ("closed_within_reply", "connection closed in the middle of the final reply"),
    CLOSED_AFTER_REPLY: ("closed_after_reply", "connection closed right after the final reply"),
    REPLY_TOO_LATE: ("reply_too_late", "client did not wait for a delayed final reply"),
}
"""Outcomes after which the sender cannot know whether its message was accepted: event and meaning."""

RETRY_INTERVALS: Final = (1, 10, 60, 300, 900, 1800, 3600, 14400, 43200, 86400)
"""Upper limits, in seconds, of the classes by which the time between two attempts is counted."""

EVENTS: Final = (
    Event("deferred", "recipients that were deferred with 4xx"),
    Event("retried_after_4xx", "deferred recipients that were retried"),
    Event("deferred_again", "retries that were deferred again"),
    Event("accepted_on_retry", "deferred recipients that were accepted on a retry"),
    Event("refused", "recipients that were refused with 5xx"),
    Event("retried_after_5xx", "refused recipients that were retried"),
    *(
        event
        for name, meaning in UNCERTAIN_OUTCOMES.values()
        for event in (Event(name, meaning), Event(f"{name}_retried", "such messages that were sent again"))
    ),
    *(Event(f"retry_within_{seconds}", f"retries within {seconds} s") for seconds in RETRY_INTERVALS),
    Event("retry_later", "retries after a longer time"),
)
"""All events, in the order of their counters."""

EVENT_NUMBERS: Final = {event.name: number for number, event in enumerate(EVENTS)}
"""Name of an event -> its place in EVENTS."""

HASTY_RETRY: Final = 0.5
"""Seconds. A retry that comes sooner, to the same local address, did not wait."""

MAX_HASTY_RETRIES: Final = 2
"""From so many in a row on they are a violation. Postfix with its timers set to a second may retry within
less once, when the second is nearly over."""

NEVER_RETRIED_AFTER: Final = 12 * 3600.0
"""Seconds without a retry after which an envelope counts as never retried.

No usual schedule has a longer gap: Exim's longest is 6 hours, Sendmail's 4, Postfix's a little over one,
and qmail's 9 after a week.
"""


MessageFindings = tuple[Sequence[int], Sequence[str]]
"""What the earlier record of a message shows: numbers of events, and names of violations."""


class OutcomeStore(Protocol):
    """What a retry tracker needs of a store, which answers at once."""

    def key_hash(self, key: Hashable) -> int:
        """Return the 64-bit hash that stands for a key."""

    def contains(self, key_hash: int) -> bool:
        """Return whether there is a record for a hash."""

    def has_records(self) -> bool:
        """Return whether there is any record, or was one."""

    def add_accepted(self, key_hash: int) -> bool:
        """Keep the hash of an accepted message; return False if it is known."""

    def remove_accepted(self, key_hash: int) -> bool:
        """Forget the hash of an accepted message; return False if it is not known."""

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        """Change the record of a hash and return the answer. A new record with count 0 need not be kept."""

    def sweep(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        """Change all records of one part of the store, and yield the answers."""


def retry_interval_event(seconds: float) -> int:
    """Return the number of the event for a retry after so many seconds."""
    name = next((f"retry_within_{most}" for most in RETRY_INTERVALS if seconds <= most), "retry_later")
    return EVENT_NUMBERS[name]


def update_envelope(outcome: int, record: Record, now: float) -> tuple[Record, list[int]]:
    """Return the record of an envelope after an attempt with this outcome, and the numbers of its events.

    >>> record, events = update_envelope(DEFERRED, (0, 0.0, 0.0), 0.0)
    >>> _, events_of_retry = update_envelope(ACCEPTED, record, 400.0)
    >>> [EVENTS[number].name for number in (*events, *events_of_retry)]
    ['deferred', 'retry_within_900', 'retried_after_4xx', 'accepted_on_retry']
    """
    count, first, last = record
    before, tries = count & 255, (count & FOREIGN - 1) >> 8
    events = []
    if before in (DEFERRED, NOT_RETRIED):
        events.append(retry_interval_event(now - last))
        if tries == 1:
            events.append(EVENT_NUMBERS["retried_after_4xx"])
        if outcome == DEFERRED:
            events.append(EVENT_NUMBERS["deferred_again"])
            return (DEFERRED | (tries + 1) << 8, first, now), events
        if outcome == ACCEPTED:
            events.append(EVENT_NUMBERS["accepted_on_retry"])
    elif before == REFUSED:
        if tries == 1:
            events.append(EVENT_NUMBERS["retried_after_5xx"])
        if outcome == REFUSED:
            return (REFUSED | (tries + 1) << 8, first, now), events
    if outcome not in FAILED:
        return (UNKNOWN_OUTCOME, now, now), events
    events.append(EVENT_NUMBERS["deferred" if outcome == DEFERRED else "refused"])
    return (outcome | 1 << 8, now, now), events


def update_message(
    outcome: int, local_address: Callable[[], int], record: Record, now: float
) -> tuple[Record, MessageFindings]:
    """Return the record of a message with this outcome, the numbers of its events, and its violations.

    `local_address` returns a hash of the address that the client connected to, 0 if that is unknown; it is
    called only for messages that are or were deferred.
    """
    count, _, last = record
    before, hasty_retries, address_before = count & 255, count >> 8 & 255, (count & FOREIGN - 1) >> 16
    events, violations = [], []
    address = local_address() if DEFERRED in (before, outcome) else 0
    hasty = before == DEFERRED and 0 < address == address_before and now - last < HASTY_RETRY
    hasty_retries = min(hasty_retries + 1, 255) if hasty else 0
    if hasty_retries >= MAX_HASTY_RETRIES:
        violations.append("retried-at-once")
    elif before == REFUSED:
        violations.append("retried-5xx")
    elif before == ACCEPTED:
        violations.append("duplicate")
    elif before in UNCERTAIN_OUTCOMES:
        events.append(EVENT_NUMBERS[f"{UNCERTAIN_OUTCOMES[before][0]}_retried"])
    return (outcome | hasty_retries << 8 | address << 16, now, now), (events, violations)


def update_accepted_message(change: Update[Answer], record: Record, now: float) -> tuple[Record, Answer]:
    """Change the record of a message that had none because it was accepted at once."""
    return change((ACCEPTED, now, now), now)


def resolve_late_reply(
    outcome: int, local_address: Callable[[], int], record: Record, now: float
) -> tuple[Record, None]:
    """Return the record of a message whose late reply reached the client, unless it was retried before.

    `now` is when the reply left. A retry may not follow it at once, however long the client waited for it.
    """
    count, first, _ = record
    if count & 255 != REPLY_TOO_LATE:
        return record, None
    address = local_address() if outcome == DEFERRED else 0
    return (outcome | count & 0xFF00 | address << 16, first, now), None


def forget_unconfirmed(record: Record, now: float) -> tuple[Record, None]:
    """Return the record of a message whose final reply may not have reached the client."""
    count, first, last = record
    return (UNKNOWN_OUTCOME if count & 255 in (ACCEPTED, REFUSED) else count, first, last), None


def mark_if_never_retried(record: Record, now: float) -> tuple[Record, bool]:
    """Return the record of an envelope, and whether it was deferred and not retried within the time."""
    count, first, last = record
    if count != DEFERRED | 1 << 8 or now - last < NEVER_RETRIED_AFTER:
        return record, False
    return (NOT_RETRIED | 1 << 8, first, last), True


def outcome_of(code: int, fault: Fault | None) -> int:
    """Return the outcome of a message by its final reply, and the fault of the reply."""
    if fault is not None:
        if not fault.share:
            return REPLY_TOO_LATE if fault.next_action is NextAction.HANG else CLOSED_BEFORE_REPLY
        if code < 400 and fault.next_action is not NextAction.READ:
            return CLOSED_WITHIN_REPLY if fault.share < 1 else CLOSED_AFTER_REPLY
    return ACCEPTED if code < 400 else DEFERRED if code < 500 else REFUSED
