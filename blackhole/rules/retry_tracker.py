"""The retry tracker: sees what becomes of the messages of a session, and which of them were sent before.

A session has one where rules can refuse, defer, delay or cut off mail. Whether two messages are the same is
certain by their Message-ID alone, so that without one no violation is counted: a client that sends the same
text a thousand times sends a thousand messages.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

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


NO_ANSWERS: Final[dict[int, int]] = {}
"""Stands for answers that are set aside, where there are none: shared, and never changed."""

ENDS_TRANSACTION: Final = frozenset(("HELO", "EHLO", "STARTTLS", "RSET", "QUIT"))
"""Phases that end a transaction, besides MAIL. Recipients that were accepted then have been."""


def outcome_at_rcpt(code: int) -> int:
    """Return the outcome of a message for a recipient whose RCPT was refused with this code.

    Clients may take 552 for 452, "too many recipients", and try again (RFC 5321 4.5.3.1.10).
    """
    return UNKNOWN_OUTCOME if code == 552 else outcome_of(code, None)


def unknown_address() -> str:
    """Return no address."""
    return ""


class RetryTracker:
    """Tracks the messages of one session."""

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
        "_replied_at",
        "_reply_deferred",
        "_sender",
        "_set_aside",
        "_store",
        "_unconfirmed",
    )

    def __init__(
        self, store: OutcomeStore, clock: Callable[[], float], event_numbers: Sequence[int], client: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._client = client_network(client)
        self._event_numbers = event_numbers
        """Numbers of the counters of EVENTS, in their order."""
        self._local_address = unknown_address
        """Returns the local address that the client connected to."""
        self._sender = b""
        self._mail_refusal = 0
        """Code that MAIL was refused with; 0 if it was accepted."""
        self._answers: dict[int, int] = {}
        """Hash of an envelope -> code of the reply to its RCPT, for the recipients of this message."""
        self._set_aside: dict[int, int] = NO_ANSWERS
        """Those of its recipients that the reply to the message does not concern, in LMTP."""
        self._message: Hashable = b""
        self._certain = False
        self._awaiting_reply = False
        """The message was received, and its final reply has not left."""
        self._reply_deferred = False
        """The final reply had to wait, and it is not known yet whether it reached the client."""
        self._client_spoke_early = False
        """The client sent something more before that reply."""
        self._outcome = 0
        """Outcome of the message whose reply had to wait."""
        self._replied_at = 0.0
        """When that reply left."""
        self._unconfirmed: list[int] = []
        """Hashes of the message last replied to, one for each recipient, until the client sends a command."""

    def set_local_address(self, address: Callable[[], str]) -> None:
        """Set the function that returns the local address the client connected to."""
        self._local_address = address

    def _local_address_hash(self) -> int:
        """Return 16 bits that stand for the local address; 0 if it is unknown."""
        address = self._local_address()
        return (self._store.key_hash(address) & 0xFFFF or 1) if address else 0

    # The usual case: a command, or a message, that was accepted.

    def sender_accepted(self, state: SessionState, sender: bytes) -> None:
        """Note that MAIL was accepted."""
        if self._reply_deferred or self._answers:
            self.command_answered(state, "MAIL", sender, 250)
            return
        if self._unconfirmed:
            self._unconfirmed = []
        self._sender, self._mail_refusal = sender.lower(), 0

    def recipient_accepted(self, recipient: bytes) -> None:
        """Note that RCPT was accepted, and MAIL before it."""
        if len(self._answers) < MAX_TRACKED_RECIPIENTS:
            self._answers.setdefault(self._store.key_hash((self._sender, recipient.lower())), 250)

    def message_accepted(self, state: SessionState, message: bytes) -> None:
        """Note a message that was received and accepted at once. `message` is its beginning."""
        name, self._certain = message_identity(message)
        store = self._store
        if store.has_records():
            self._message = name
            self._message_accepted(state)
            return
        came_again = False
        if self._certain:
            for envelope in self._answers:
                message_hash = store.key_hash((envelope, self._client, name))
                self._unconfirmed.append(message_hash)
                if not store.add_accepted(message_hash):
                    came_again = True
        self._answers.clear()
        if came_again:
            state.record_violation("duplicate", ViolationContext("."))

    def transaction_ended(self, state: SessionState) -> None:
        """Note that a command was accepted that ends a transaction."""
        if self._reply_deferred or self._answers:
            self.command_answered(state, "RSET", b"", 250)
        if self._unconfirmed:
            self._unconfirmed = []

    # All other cases.

    def command_answered(self, state: SessionState, phase: str, address: bytes, code: int) -> None:
        """Take in the reply to a command, and the address in the command where it has one."""
        self._settle_late_reply(state)
        if self._unconfirmed:
            self._unconfirmed = []
        if phase == "RCPT":
            self._recipient(state, address, code)
        elif phase == "MAIL":
            if self._answers:
                self._finish_recipients(state, ACCEPTED)
            self._sender, self._mail_refusal = address.lower(), code if code >= 400 else 0
        elif phase in ("DATA", "BDAT"):
            if code >= 400:
                self._finish_recipients(state, outcome_of(code, None))
        elif self._answers and code < 400 and phase in ENDS_TRANSACTION:
            self._finish_recipients(state, ACCEPTED)

    def _recipient(self, state: SessionState, address: bytes, code: int) -> None:
        answers = self._answers
        if len(answers) == MAX_TRACKED_RECIPIENTS:
            return
        envelope = self._store.key_hash((self._sender, address.lower()))
        if envelope not in answers:  # else the list has it twice
            # After a refused MAIL the replies to RCPT only follow from it.
            code = answers[envelope] = self._mail_refusal or code
            if code >= 400:
                self._update_envelope(state, envelope, outcome_of(code, None))

    def begin_recipient(self, state: SessionState, recipient: bytes, is_last: bool) -> None:
        """Note that what follows about the message concerns one recipient (RFC 2033 4.2). The last one comes
        with those that were refused."""
        self._settle_late_reply(state)
        rest = self._set_aside | self._answers
        envelope = self._store.key_hash((self._sender, recipient.lower()))
        code = rest.pop(envelope, None)
        self._answers = {} if code is None else {envelope: code}
        if is_last:
            self._answers |= rest
            rest = {}
        self._set_aside = rest

    def _settle_late_reply(self, state: SessionState) -> None:
        """Count or record the reply that had to wait, now that the client is known to have seen it or not."""
        if self._reply_deferred:
            if self._client_spoke_early:
                self._count_uncertain(state, REPLY_TOO_LATE)
                self._unconfirmed = []
            else:
                self._resolve()

    def message_received(self, message: bytes) -> None:
        """Take in a received message, by its beginning. Its final reply is not decided yet."""
        self._message, self._certain = message_identity(message)
        self._awaiting_reply = True

    def reply_deferred(self, state: SessionState, early: bool) -> None:
        """Take in that the final reply waits; `early`: the client has sent something already.

        The message counts as replied to too late until the client sends a command after the reply, as it
        may be retried before the client is known to have gone.
        """
        if self._awaiting_reply:
            self._replied_at = self._clock()
            self._reply_deferred, self._client_spoke_early, self._outcome = True, early, REPLY_TOO_LATE
            self._update_message(state, REPLY_TOO_LATE)

    def client_spoke(self) -> None:
        """Take in that the client sent something, or closed the connection, while the final reply waited."""
        self._client_spoke_early = True

    def reply_sent(self, state: SessionState, code: int, fault: Fault | None) -> None:
        """Take in that the final reply has left, or as much of it as the fault let through."""
        if code < 400 and fault is None and not self._reply_deferred:
            self._message_accepted(state)
            return
        outcome = outcome_of(code, fault)
        if self._reply_deferred:
            self._outcome, self._replied_at = outcome, self._clock()
        else:
            self._update_message(state, outcome)
        if outcome in UNCERTAIN_OUTCOMES:
            self._count_uncertain(state, outcome)
        self._awaiting_reply = False
        self._finish_recipients(state, outcome)

    def _message_accepted(self, state: SessionState) -> None:
        """Record a message that was accepted. If nothing is known of it, its hash is all there is to keep."""
        self._awaiting_reply = False
        name, self._message = self._message, b""
        store = self._store
        rest: dict[int, int] = {}
        came_again, has_records = False, store.has_records()
        for envelope, code in self._answers.items():
            message = store.key_hash((envelope, self._client, name))
            if code >= 400 or not name or (has_records and store.contains(message)):
                rest[envelope] = code
                continue
            if has_records and store.contains(envelope):
                self._update_envelope(state, envelope, ACCEPTED)
            if self._certain:
                self._unconfirmed.append(message)
                came_again = not store.add_accepted(message) or came_again
        self._answers = rest
        if rest:
            self._message = name
            self._update_message(state, ACCEPTED, ("duplicate",) if came_again else ())
            self._finish_recipients(state, ACCEPTED)
        elif came_again:
            state.record_violation("duplicate", ViolationContext("."))

    def client_gone(self, state: SessionState) -> None:
        """Take in that the connection was closed without QUIT."""
        if self._reply_deferred:
            self._count_uncertain(state, REPLY_TOO_LATE)
        for message in self._unconfirmed:
            if not self._store.remove_accepted(message):
                self._store.update_hash(message, self._clock(), forget_unconfirmed)
        self._answers |= self._set_aside
        self._finish_recipients(state, UNKNOWN_OUTCOME)

    def _count_uncertain(self, state: SessionState, outcome: int) -> None:
        """Count an outcome after which the sender cannot know whether its message was accepted."""
        state.record_event(self._event_numbers[EVENT_NUMBERS[UNCERTAIN_OUTCOMES[outcome][0]]])
        if self._reply_deferred:
            self._outcome = outcome
            self._resolve()

    def _resolve(self) -> None:
        """Record the outcome of the message whose reply had to wait."""
        self._reply_deferred = False
        for message in self._unconfirmed:
            change = partial(resolve_late_reply, self._outcome, self._local_address_hash)
            self._store.update_hash(message, self._replied_at, change)

    def _update_message(
        self, state: SessionState, outcome: int, violations_so_far: Sequence[str] = ()
    ) -> None:
        """Record the outcome of the message, and count what its earlier records show."""
        name, self._message = self._message, b""
        if not name:
            return
        now, store = self._clock(), self._store
        events: set[int] = set()
        violations = {*violations_so_far}
        for envelope, code in self._answers.items():
            message = store.key_hash((envelope, self._client, name))
            self._unconfirmed.append(message)
            own_outcome = outcome if code < 400 else outcome_at_rcpt(code)
            change: Update[MessageFindings] = partial(update_message, own_outcome, self._local_address_hash)
            if store.remove_accepted(message):
                change = partial(update_accepted_message, change)
            its_events, its_violations = store.update_hash(message, now, change)
            events.update(its_events)
            violations.update(its_violations)
        for event in events:
            state.record_event(self._event_numbers[event])
        if self._certain:
            for violation in sorted(violations):
                state.record_violation(violation, ViolationContext("."))

    def _finish_recipients(self, state: SessionState, outcome: int) -> None:
        """Record the outcome of the envelopes whose RCPT was accepted."""
        failed = outcome in FAILED
        if not (failed or self._store.has_records()):
            self._answers.clear()
            return
        for envelope, code in self._answers.items():
            if code < 400 and (failed or self._store.contains(envelope)):
                self._update_envelope(state, envelope, outcome)
        self._answers.clear()

    def _update_envelope(self, state: SessionState, envelope: int, outcome: int) -> None:
        for event in self._store.update_hash(envelope, self._clock(), partial(update_envelope, outcome)):
            state.record_event(self._event_numbers[event])
