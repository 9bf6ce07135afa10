"""The retry tracker: sees what becomes of the messages of a session, and which of them were sent before.

A session has one where rules can refuse, defer, delay or cut off mail. Whether two messages are the same is
certain by their Message-ID alone, so that without one no violation is counted: a client that sends the same
text a thousand times sends a thousand messages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from blackhole.rules.attempt_store import Update
from blackhole.rules.message_identity import message_identity
from blackhole.rules.outcomes import (
    ACCEPTED,
    EVENT_NUMBERS,
    FAILED,
    REPLY_TOO_LATE,
    UNCERTAIN_OUTCOMES,
    UNKNOWN_OUTCOME,
    MessageFindings,
    OutcomeStore,
    forget_unconfirmed,
    outcome_of,
    resolve_late_reply,
    update_accepted_message,
    update_envelope,
    update_message,
)
from blackhole.rules.quota_owners import client_network
from blackhole.smtp.state import ViolationContext

if TYPE_CHECKING:
    from blackhole.smtp.faults import Fault
    from blackhole.smtp.state import SessionState

MAX_TRACKED_RECIPIENTS: Final = 1000
"""Recipients of a message; further ones are not tracked."""


MAX_KEPT_ADDRESS: Final = 64
"""Octets of a recipient whose address is kept until the message is answered. Of a longer one it is the hash,
so that a message takes no more than 64 KiB for all of them."""

Recipient = bytes | int
"""A recipient as a tracker keeps it: its address in lower case, or the hash of that."""

NO_ANSWERS: Final[dict[Recipient, int]] = {}
"""Stands for answers that are set aside, where there are none: shared, and never changed."""

NO_MESSAGE: Final[tuple[Hashable, bool]] = b"", False
"""The identity of no message."""

NONE_UNCONFIRMED: Final[list[int]] = []
"""Stands for the hashes of a message that was confirmed: shared, and never changed."""

ENDS_TRANSACTION: Final = frozenset(("HELO", "EHLO", "STARTTLS", "MAIL", "RSET", "QUIT"))
"""Phases that end a transaction. Recipients that were accepted then have been."""


def outcome_at_rcpt(code: int) -> int:
    """Return the outcome of a message for a recipient whose RCPT was refused with this code.

    Clients may take 552 for 452, "too many recipients", and try again (RFC 5321 4.5.3.1.10).
    """
    return UNKNOWN_OUTCOME if code == 552 else outcome_of(code, None)


def unknown_address() -> str:
    """Return no address."""
    return ""


class Tracking(NamedTuple):
    """What the retry trackers of a listener's sessions share."""

    store: OutcomeStore
    clock: Callable[[], float]
    event_numbers: Sequence[int]
    """Numbers of the counters of EVENTS, in their order."""


class LateReply:
    """A final reply that had to wait, as long as it is not known whether it reached the client."""

    __slots__ = ("client_spoke", "outcome", "replied_at")

    def __init__(self, client_spoke: bool, now: float) -> None:
        self.client_spoke = client_spoke
        """The client sent something more before the reply."""
        self.outcome = REPLY_TOO_LATE
        """Outcome of the message, if the reply reaches the client."""
        self.replied_at = now
        """When the reply left."""


class RetryTracker:
    """Tracks the messages of one session."""

    __slots__ = (
        "_answers",
        "_awaiting_reply",
        "_client",
        "_late_reply",
        "_message",
        "_refused_mail",
        "_sender",
        "_set_aside",
        "_store",
        "_tracking",
        "_unconfirmed",
        "local_address",
    )

    def __init__(self, tracking: Tracking, client: str) -> None:
        self._tracking = tracking
        self._store = tracking.store
        self._client = client_network(client)
        self.local_address = unknown_address
        """Returns the local address that the client connected to."""
        self._refused_mail: tuple[bytes, int] | None = None
        """The sender in MAIL and the code that it was refused with; None if MAIL was accepted."""
        self._sender = b""
        self._answers: dict[Recipient, int] = {}
        """Recipient of this message -> code of the reply to its RCPT."""
        self._set_aside: dict[Recipient, int] = NO_ANSWERS
        """Those of its recipients that the reply to the message does not concern, in LMTP."""
        self._message = NO_MESSAGE
        """The identity of the message whose outcome has yet to be recorded."""
        self._awaiting_reply = False
        """The message was received, and its final reply has not left."""
        self._late_reply: LateReply | None = None
        self._unconfirmed = NONE_UNCONFIRMED
        """Hashes of the message last replied to, one for each recipient, until the client sends a command."""

    def _local_address_hash(self) -> int:
        """Return 16 bits that stand for the local address; 0 if it is unknown."""
        address = self.local_address()
        return (self._store.key_hash(address) & 0xFFFF or 1) if address else 0

    # The usual case: a command, or a message, that was accepted.

    def recipient_accepted(self, sender: bytes, recipient: bytes) -> None:
        """Note that RCPT was accepted, and MAIL before it."""
        self._sender = sender
        if len(self._answers) < MAX_TRACKED_RECIPIENTS:
            self._answers.setdefault(self._shortened(recipient), 250)

    def message_accepted(self, state: SessionState, message: bytes) -> None:
        """Note a message that was received and accepted at once. `message` is its beginning."""
        store = self._store
        name, is_certain = identity = message_identity(message)
        if store.has_records():
            self._message = identity
            self._message_accepted(state)
            return
        came_again = False
        if is_certain:
            unconfirmed = self._unconfirmed = []
            sender = self._sender.lower()
            for recipient in self._answers:
                message_hash = store.key_hash((sender, recipient, self._client, name))
                unconfirmed.append(message_hash)
                if not store.add_accepted(message_hash):
                    came_again = True
        self._answers.clear()
        if came_again:
            state.record_violation("duplicate", ViolationContext("."))

    def transaction_ended(self, state: SessionState) -> None:
        """Note that a command was accepted that ends a transaction."""
        self._settle_late_reply(state)
        if self._answers:
            self._finish_recipients(state, ACCEPTED)
        self._refused_mail, self._unconfirmed = None, NONE_UNCONFIRMED

    # All other cases.

    def command_answered(
        self, state: SessionState, phase: str, sender: bytes, address: bytes, code: int
    ) -> None:
        """Take in the reply to a command, the sender that was accepted before it, and the address in it."""
        if code < 400 and phase in ENDS_TRANSACTION:
            self.transaction_ended(state)
            return
        self._settle_late_reply(state)
        self._unconfirmed = NONE_UNCONFIRMED
        if phase == "RCPT":
            self._recipient(state, sender, address, code)
        elif phase == "MAIL":
            self._finish_recipients(state, ACCEPTED)
            self._refused_mail = address, code
        elif phase in ("DATA", "BDAT") and code >= 400:
            self._finish_recipients(state, outcome_of(code, None))

    def _recipient(self, state: SessionState, sender: bytes, recipient: bytes, code: int) -> None:
        answers = self._answers
        if len(answers) == MAX_TRACKED_RECIPIENTS:
            return
        if self._refused_mail is not None:
            # The replies to RCPT only follow from that to MAIL.
            sender, code = self._refused_mail
        self._sender, known = sender, self._shortened(recipient)
        if known not in answers:  # else the list has it twice
            answers[known] = code
            if code >= 400:
                self._update_envelope(state, known, outcome_of(code, None))

    def _shortened(self, recipient: bytes) -> Recipient:
        """Return a recipient as it is kept."""
        address = recipient.lower()
        return address if len(address) <= MAX_KEPT_ADDRESS else self._store.key_hash(address)

    def _envelope_hash(self, recipient: Recipient) -> int:
        return self._store.key_hash((self._sender.lower(), recipient))

    def _message_hash(self, recipient: Recipient, name: Hashable) -> int:
        return self._store.key_hash((self._sender.lower(), recipient, self._client, name))

    def begin_recipient(self, state: SessionState, sender: bytes, recipient: bytes, is_last: bool) -> None:
        """Note that what follows about the message concerns one recipient (RFC 2033 4.2). The last one comes
        with those that were refused."""
        self._settle_late_reply(state)
        rest = self._set_aside | self._answers
        self._sender, known = sender, self._shortened(recipient)
        code = rest.pop(known, None)
        self._answers = {} if code is None else {known: code}
        if is_last:
            self._answers |= rest
            rest = {}
        self._set_aside = rest

    def _settle_late_reply(self, state: SessionState) -> None:
        """Count or record the reply that had to wait, now that the client is known to have seen it or not."""
        if self._late_reply is not None:
            if self._late_reply.client_spoke:
                self._count_uncertain(state, REPLY_TOO_LATE)
                self._unconfirmed = NONE_UNCONFIRMED
            else:
                self._resolve(self._late_reply)

    def message_received(self, message: bytes) -> None:
        """Take in a received message, by its beginning. Its final reply is not decided yet."""
        self._message = message_identity(message)
        self._awaiting_reply = True

    def reply_deferred(self, state: SessionState, early: bool) -> None:
        """Take in that the final reply waits; `early`: the client has sent something already.

        The message counts as replied to too late until the client sends a command after the reply, as it
        may be retried before the client is known to have gone.
        """
        if self._awaiting_reply:
            self._late_reply = LateReply(early, self._tracking.clock())
            self._update_message(state, REPLY_TOO_LATE)

    def client_spoke(self) -> None:
        """Take in that the client sent something, or closed the connection, while the final reply waited."""
        if self._late_reply is not None:
            self._late_reply.client_spoke = True

    def reply_sent(self, state: SessionState, code: int, fault: Fault | None) -> None:
        """Take in that the final reply has left, or as much of it as the fault let through."""
        late = self._late_reply
        if code < 400 and fault is None and late is None:
            self._message_accepted(state)
            return
        outcome = outcome_of(code, fault)
        if late is None:
            self._update_message(state, outcome)
        else:
            late.outcome, late.replied_at = outcome, self._tracking.clock()
        if outcome in UNCERTAIN_OUTCOMES:
            self._count_uncertain(state, outcome)
        self._awaiting_reply = False
        self._finish_recipients(state, outcome)

    def _message_accepted(self, state: SessionState) -> None:
        """Record a message that was accepted. If nothing is known of it, its hash is all there is to keep."""
        self._awaiting_reply = False
        identity, self._message = self._message, NO_MESSAGE
        name, is_certain = identity
        store = self._store
        unconfirmed: list[int] = []
        rest: dict[Recipient, int] = {}
        came_again, has_records = False, store.has_records()
        for recipient, code in self._answers.items():
            message = self._message_hash(recipient, name)
            if code >= 400 or not name or (has_records and store.contains(message)):
                rest[recipient] = code
                continue
            if has_records and store.contains(self._envelope_hash(recipient)):
                self._update_envelope(state, recipient, ACCEPTED)
            if is_certain:
                unconfirmed.append(message)
                came_again = not store.add_accepted(message) or came_again
        self._answers = rest
        self._unconfirmed = [*self._unconfirmed, *unconfirmed]
        if rest:
            self._message = identity
            self._update_message(state, ACCEPTED, ("duplicate",) if came_again else ())
            self._finish_recipients(state, ACCEPTED)
        elif came_again:
            state.record_violation("duplicate", ViolationContext("."))

    def client_gone(self, state: SessionState) -> None:
        """Take in that the connection was closed without QUIT."""
        if self._late_reply is not None:
            self._count_uncertain(state, REPLY_TOO_LATE)
        for message in self._unconfirmed:
            if not self._store.remove_accepted(message):
                self._store.update_hash(message, self._tracking.clock(), forget_unconfirmed)
        self._answers |= self._set_aside
        self._finish_recipients(state, UNKNOWN_OUTCOME)

    def _count_uncertain(self, state: SessionState, outcome: int) -> None:
        """Count an outcome after which the sender cannot know whether its message was accepted."""
        state.record_event(self._tracking.event_numbers[EVENT_NUMBERS[UNCERTAIN_OUTCOMES[outcome][0]]])
        if self._late_reply is not None:
            self._late_reply.outcome = outcome
            self._resolve(self._late_reply)

    def _resolve(self, late: LateReply) -> None:
        """Record the outcome of the message whose reply had to wait."""
        self._late_reply = None
        for message in self._unconfirmed:
            change = partial(resolve_late_reply, late.outcome, self._local_address_hash)
            self._store.update_hash(message, late.replied_at, change)

    def _update_message(
        self, state: SessionState, outcome: int, violations_so_far: Sequence[str] = ()
    ) -> None:
        """Record the outcome of the message, and count what its earlier records show."""
        (name, is_certain), self._message = self._message, NO_MESSAGE
        if not name:
            return
        now, store = self._tracking.clock(), self._store
        unconfirmed: list[int] = []
        events: set[int] = set()
        violations = {*violations_so_far}
        for recipient, code in self._answers.items():
            message = self._message_hash(recipient, name)
            unconfirmed.append(message)
            own_outcome = outcome if code < 400 else outcome_at_rcpt(code)
            change: Update[MessageFindings] = partial(update_message, own_outcome, self._local_address_hash)
            if store.remove_accepted(message):
                change = partial(update_accepted_message, change)
            its_events, its_violations = store.update_hash(message, now, change)
            events.update(its_events)
            violations.update(its_violations)
        self._unconfirmed = [*self._unconfirmed, *unconfirmed]
        for event in events:
            state.record_event(self._tracking.event_numbers[event])
        if is_certain:
            for violation in sorted(violations):
                state.record_violation(violation, ViolationContext("."))

    def _finish_recipients(self, state: SessionState, outcome: int) -> None:
        """Record the outcome of the envelopes whose RCPT was accepted."""
        failed = outcome in FAILED
        if not (failed or self._store.has_records()):
            self._answers.clear()
            return
        for recipient, code in self._answers.items():
            if code < 400 and (failed or self._store.contains(self._envelope_hash(recipient))):
                self._update_envelope(state, recipient, outcome)
        self._answers.clear()

    def _update_envelope(self, state: SessionState, recipient: Recipient, outcome: int) -> None:
        for event in self._store.update_hash(
            self._envelope_hash(recipient), self._tracking.clock(), partial(update_envelope, outcome)
        ):
            state.record_event(self._tracking.event_numbers[event])
