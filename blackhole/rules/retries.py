"""A witness: knows what became of a message, and sees whether and when it comes again.

There is one where rules may refuse, cut off or hold back mail, and none where they may not. An
envelope is a sender and a recipient: of it is known whether the last attempt was put off or refused,
wherever it came from, as many senders have several machines. A message is a client's network, an
envelope, and what its header section calls it: of it is known all that can have become of it. What is
one message is certain by its Message-ID alone, so without one nobody is accused: who sends the same
letter a thousand times sends a thousand messages.

What is kept is what a gate keeps, a count and two times; the count has a few facts in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from blackhole.rules.attempt_store import Answer, Record, Update
from blackhole.rules.limiters import client_network
from blackhole.smtp import header_section
from blackhole.smtp.replies import NextAction

if TYPE_CHECKING:
    from blackhole.smtp.faults import Fault
    from blackhole.smtp.state import SessionState

# What becomes of a message.

UNKNOWN: Final = 0
DEFERRED: Final = 1
REFUSED: Final = 2
ACCEPTED: Final = 3
CLOSED_BEFORE_REPLY: Final = 4
CLOSED_WITHIN_REPLY: Final = 5
CLOSED_AFTER_REPLY: Final = 6
REPLY_TOO_LATE: Final = 7
NOT_RETRIED: Final = 8
"""Put off, and somebody has been told that it never came again."""

FAILED: Final = frozenset((DEFERRED, REFUSED))


class Event(NamedTuple):
    """Something that is counted."""

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
"""Everything that is counted, in the order of its cells."""

EVENT_NUMBERS: Final = {event.name: number for number, event in enumerate(EVENTS)}
"""Name of an event -> its place in the table."""

MAX_TRACKED_RECIPIENTS: Final = 1000
"""Recipients of a message that are looked at."""

HASTY_RETRY: Final = 0.5
"""Seconds. Who comes again sooner, and to the same address of ours, has not waited."""

MAX_HASTY_RETRIES: Final = 2
"""So many times in a row, and it is no accident. Postfix with its timers turned down to a second may
come again within less once, when the second is just over."""

NEVER_RETRIED_AFTER: Final = 12 * 3600.0
"""Seconds without a retry after which there was none. No schedule in use has a longer gap: Exim's
longest is 6 hours, Sendmail's 4, Postfix's a little over one, and qmail's 9 after a week."""


class OutcomeStore(Protocol):
    """What a witness remembers by, which answers at once."""

    def key_hash(self, key: Hashable) -> int:
        """Stands for a key that is not to be kept, in 64 bits."""

    def contains(self, key_hash: int) -> bool:
        """Whether anything is known of a key with this mark."""

    def add(self, key_hash: int, count: int, now: float) -> bool:
        """Keep a key that is new, by its mark; false where it is known already, and nothing has changed."""

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        """Change what is known of a key. What is new and has a count of 0 need not be kept."""

    def sweep(self, number: int, now: float, change: Update[Answer]) -> Iterator[Answer]:
        """Change what is known of all keys in a part of what is kept."""


def retry_interval_event(seconds: float) -> int:
    """The event of a retry after so long."""
    name = next((f"retry_within_{most}" for most in RETRY_INTERVALS if seconds <= most), "retry_later")
    return EVENT_NUMBERS[name]


def update_envelope(outcome: int, known: Record, now: float) -> tuple[Record, list[int]]:
    """An envelope has come to an end: what is known of it now, and what is to be counted."""
    count, first, last = known
    before, tries = count & 255, count >> 8
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
        return (UNKNOWN, now, now), events
    events.append(EVENT_NUMBERS["deferred" if outcome == DEFERRED else "refused"])
    return (outcome | 1 << 8, now, now), events


def update_message(
    outcome: int, where: Callable[[], int], known: Record, now: float
) -> tuple[Record, tuple[Sequence[int], Sequence[str]]]:
    """A message has come to its end: what is known of it now, what is to be counted, and what was wrong.

    `where` tells what stands for the address of ours where it came in, 0 for any. Where a message was not
    put off, nobody asks.
    """
    count, _, last = known
    before, rushes, there = count & 255, count >> 8 & 255, count >> 16
    events, wrong = [], []
    here = where() if DEFERRED in (before, outcome) else 0
    hasty = before == DEFERRED and 0 < here == there and now - last < HASTY_RETRY
    rushes = min(rushes + 1, 255) if hasty else 0
    if rushes >= MAX_HASTY_RETRIES:
        wrong.append("retried-at-once")
    elif before == REFUSED:
        wrong.append("retried-5xx")
    elif before == ACCEPTED:
        wrong.append("duplicate")
    elif before in UNCERTAIN_OUTCOMES:
        events.append(EVENT_NUMBERS[f"{UNCERTAIN_OUTCOMES[before][0]}_retried"])
    return (outcome | rushes << 8 | here << 16, now, now), (events, wrong)


def resolve_late_reply(outcome: int, known: Record, now: float) -> tuple[Record, None]:
    """It is clear what became of a message that counted as late, unless it came again meanwhile."""
    count, first, _ = known
    if count & 255 != REPLY_TOO_LATE:
        return known, None
    return (count & ~255 | outcome, first, now), None


def unconfirmed(known: Record, now: float) -> tuple[Record, None]:
    """The client was gone before it said that it has heard what became of a message."""
    count, first, last = known
    return (UNKNOWN if count & 255 in (ACCEPTED, REFUSED) else count, first, last), None


def mark_if_never_retried(known: Record, now: float) -> tuple[Record, bool]:
    """Whether an envelope was put off and never came again."""
    count, first, last = known
    if count != DEFERRED | 1 << 8 or now - last < NEVER_RETRIED_AFTER:
        return known, False
    return (NOT_RETRIED | 1 << 8, first, last), True


def outcome_of(code: int, fault: Fault | None) -> int:
    """What became of a message to whose end this was answered, if it was."""
    if fault is not None:
        if not fault.share:
            return REPLY_TOO_LATE if fault.next_action is NextAction.HANG else CLOSED_BEFORE_REPLY
        if code < 400 and fault.next_action is not NextAction.READ:
            return CLOSED_WITHIN_REPLY if fault.share < 1 else CLOSED_AFTER_REPLY
    return ACCEPTED if code < 400 else DEFERRED if code < 500 else REFUSED


VALUE: Final = rb"[ \t]*:[ \t]*(?:\r?\n[ \t]+)*(\S[^\r\n]*(?:(?:\r?\n(?=[ \t])|\r(?!\n))[^\r\n]*)*)"
"""What is behind a field's name, folded or not, if it is not blank."""

NAMED: Final = re.compile(
    rb"\n(?:[Mm](?i:essage-id)" + VALUE + rb"|[Rr](?i:esent-message-id)" + VALUE + rb")"
)
"""The fields that name a message. With the line feed before it only lines are tried, and with a class for
the first letter only those that begin with it."""


def message_identity(message: bytes) -> tuple[Hashable, bool]:
    """What tells a message from others, by the header section that it begins with, which is all of it if it
    has no blank line; empty if nothing does; and whether that is certain."""
    text = b"\n" + message[: header_section.MOST]
    end = text.find(b"\n\r\n")
    # Four times as fast as header.BLANK, of two hundred octets.
    bare = text.find(b"\n\n", 0, end if end >= 0 else len(text))
    end = (end if bare < 0 else bare) + 1 or len(text)
    found = NAMED.findall(text, 0, end)
    if not found:
        return text[1:end], False
    return tuple(found), True


def unknown_address() -> str:
    """The address of ours is not known."""
    return ""


class RetryTracker:
    """One session's."""

    __slots__ = (
        "_answers",
        "_awaiting_reply",
        "_certain",
        "_client",
        "_client_spoke_early",
        "_clock",
        "_event_numbers",
        "_local_address",
        "_mail_refusal",
        "_message",
        "_outcome",
        "_reply_deferred",
        "_sender",
        "_store",
        "_unconfirmed",
    )

    def __init__(
        self, past: OutcomeStore, clock: Callable[[], float], client: str, event_numbers: Sequence[int]
    ) -> None:
        self._store = past
        self._clock = clock
        self._client = client_network(client)
        self._event_numbers = event_numbers
        """The numbers that EVENTS are counted as, in the order of that table."""
        self._local_address = unknown_address
        """Tells the address of ours where the client is."""
        self._sender = b""
        self._mail_refusal = 0
        """The code that MAIL was refused with."""
        self._answers: dict[int, int] = {}
        """What the recipients of this message were answered, by envelope."""
        self._message: Hashable = b""
        self._certain = False
        self._awaiting_reply = False
        """The message has come to its end, and the reply has not left."""
        self._reply_deferred = False
        """The reply had to wait, and it is not known yet whether it was heard."""
        self._client_spoke_early = False
        """The client has said something more before the reply."""
        self._outcome = 0
        """What became of that message, if it was."""
        self._unconfirmed: list[int] = []
        """The message whose reply was our last word, to each of its recipients."""

    def set_local_address(self, address: Callable[[], str]) -> None:
        """The client has come to the address of ours that this tells."""
        self._local_address = address

    def _local_address_mark(self) -> int:
        """Stands for that address; 0: it is not known."""
        here = self._local_address()
        return (self._store.key_hash(here) & 0xFFFF or 1) if here else 0

    def command_answered(self, state: SessionState, phase: str, address: bytes, code: int) -> None:
        """A command was answered; with the address, where it has one."""
        if phase == ".":
            return
        if self._reply_deferred:
            if self._client_spoke_early:
                self._count_uncertain(state, REPLY_TOO_LATE)
            else:
                self._resolve()
        self._unconfirmed.clear()
        if phase == "RCPT":
            self._recipient(state, address, code)
        elif phase != "DATA":
            if self._answers:
                self._finish_recipients(state, ACCEPTED)
            if phase == "MAIL":
                self._sender, self._mail_refusal = address.lower(), code if code >= 400 else 0
        elif code >= 400:
            self._finish_recipients(state, outcome_of(code, None))

    def _recipient(self, state: SessionState, address: bytes, code: int) -> None:
        if len(self._answers) == MAX_TRACKED_RECIPIENTS:
            return
        envelope = self._store.key_hash((self._sender, address.lower()))
        if envelope not in self._answers:  # else it stands twice in the same list
            # What is said after a MAIL that was refused says nothing of its own.
            code = self._answers[envelope] = self._mail_refusal or code
            if code >= 400:
                self._update_envelope(state, envelope, outcome_of(code, None))

    def message_received(self, message: bytes) -> None:
        """A message that begins so has come to its end; what will be said of it is not said yet."""
        self._message, self._certain = message_identity(message)
        self._awaiting_reply = True

    def reply_deferred(self, state: SessionState, early: bool) -> None:
        """The reply to a message has to wait. It may come again before whoever waits has noticed, so it
        counts as late until the client says something more, by which it has heard the reply. `early`:
        it has said something already."""
        if self._awaiting_reply:
            self._reply_deferred, self._client_spoke_early, self._outcome = True, early, REPLY_TOO_LATE
            self._update_message(state, REPLY_TOO_LATE)

    def client_spoke(self) -> None:
        """The client has said something while a reply waited: perhaps only that it goes."""
        self._client_spoke_early = True

    def reply_sent(self, state: SessionState, code: int, fault: Fault | None) -> None:
        """The reply to a message has left, or as much of it as was to."""
        outcome = outcome_of(code, fault)
        if outcome == ACCEPTED and not self._reply_deferred:
            self._message_accepted(state)
            return
        if self._reply_deferred:
            self._outcome = outcome
        else:
            self._update_message(state, outcome)
        if outcome in UNCERTAIN_OUTCOMES:
            self._count_uncertain(state, outcome)
        self._awaiting_reply = False
        self._finish_recipients(state, outcome)

    def _message_accepted(self, state: SessionState) -> None:
        """Remember a message that was accepted, as nearly all are. A new one takes half the time."""
        self._awaiting_reply = False
        name, self._message = self._message, b""
        store, now = self._store, self._clock()
        rest: dict[int, int] = {}
        for envelope, code in self._answers.items():
            message = store.key_hash((envelope, self._client, name))
            if code >= 400 or not (name and store.add(message, ACCEPTED, now)):
                rest[envelope] = code
                continue
            self._unconfirmed.append(message)
            if store.contains(envelope):
                self._update_envelope(state, envelope, ACCEPTED)
        self._answers = rest
        if rest:
            self._message = name
            self._update_message(state, ACCEPTED)
            self._finish_recipients(state, ACCEPTED)

    def client_gone(self, state: SessionState) -> None:
        """The client is gone, without QUIT."""
        if self._reply_deferred:
            self._count_uncertain(state, REPLY_TOO_LATE)
        for message in self._unconfirmed:
            self._store.update_hash(message, self._clock(), unconfirmed)
        self._finish_recipients(state, UNKNOWN)

    def _count_uncertain(self, state: SessionState, outcome: int) -> None:
        """The sender cannot be sure of the message."""
        state.record_event(self._event_numbers[EVENT_NUMBERS[UNCERTAIN_OUTCOMES[outcome][0]]])
        if self._reply_deferred:
            self._outcome = outcome
            self._resolve()

    def _resolve(self) -> None:
        """It is clear what became of the message whose reply had to wait."""
        self._reply_deferred = False
        for message in self._unconfirmed:
            self._store.update_hash(message, self._clock(), partial(resolve_late_reply, self._outcome))

    def _update_message(self, state: SessionState, outcome: int) -> None:
        """A message has come to its end: see whether it came before."""
        name, self._message = self._message, b""
        if not name:
            return
        now, past = self._clock(), self._store
        events: set[int] = set()
        wrong: set[str] = set()
        for envelope, code in self._answers.items():
            message = past.key_hash((envelope, self._client, name))
            self._unconfirmed.append(message)
            became = outcome if code < 400 else outcome_of(code, None)
            again, broken = past.update_hash(
                message, now, partial(update_message, became, self._local_address_mark)
            )
            events.update(again)
            wrong.update(broken)
        for event in events:
            state.record_event(self._event_numbers[event])
        if self._certain:
            for rule in sorted(wrong):
                state.record_violation(rule)

    def _finish_recipients(self, state: SessionState, outcome: int) -> None:
        """No more will become of the recipients that were accepted."""
        failed = outcome in FAILED
        for envelope, code in self._answers.items():
            if code < 400 and (failed or self._store.contains(envelope)):
                self._update_envelope(state, envelope, outcome)
        self._answers.clear()

    def _update_envelope(self, state: SessionState, envelope: int, outcome: int) -> None:
        for event in self._store.update_hash(envelope, self._clock(), partial(update_envelope, outcome)):
            state.record_event(self._event_numbers[event])
