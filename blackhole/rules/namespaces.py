"""Namespaces: the rules of several tests side by side on one listener, each for its own sessions.

A namespace is chosen by the tag of a recipient, by the user of AUTH, by the name in HELO or EHLO, or by the
listener. An earlier one of these outweighs those behind it, if it names a namespace that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from blackhole.rules.context import NO_QUOTAS, NO_SLOTS, RuleContext
from blackhole.rules.evaluator import RuleEvaluator, RulePolicy, SessionRuleEvaluator
from blackhole.rules.retry_tracker import ENDS_TRANSACTION, RetryTracker, Tracking
from blackhole.smtp.faults import Fault
from blackhole.smtp.policy import NO_SESSION_POLICY, Decision, PendingDecision, SessionPolicy
from blackhole.smtp.state import SessionState

TAG_MARK: Final = b"+ns."
"""Stands before the tag in the local part of an address."""

NO_NAMESPACE: Final = b""

CHOOSING_PHASES: Final = frozenset(
    ("HELO", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", ".", "RSET", "QUIT")
)
"""Phases that choose a namespace, or belong to the one that was chosen."""

NamespaceWatcher = Callable[[bytes | None, Sequence[int]], None]
"""Takes the namespace to which belongs what is counted from now on, and the events before it that are not
counted yet. NO_NAMESPACE: to none. None: it is not known yet."""


def unwatched(namespace: bytes | None, events: Sequence[int]) -> None:
    """Tell nobody."""


def tag_of(address: bytes) -> bytes:
    """Return the tag of a recipient, in lower case; empty if it has none.

    >>> tag_of(b"anyone+ns.Checkout-42@example.com"), tag_of(b"anyone+news@example.com")
    (b'checkout-42', b'')
    """
    local = address.rpartition(b"@")[0] or address
    return local.lower().partition(TAG_MARK)[2].partition(b"+")[0].rstrip(b'"')


class NamespacePolicy:
    """The policy of a listener with namespaces.

    `default` has the rules of sessions without a namespace, `policies` those of each namespace by its name,
    `keys` are those of `settings.NAMESPACE_KEYS` that choose, and `listener` is what chooses by the listener.
    """

    def __init__(
        self,
        default: RulePolicy,
        policies: Mapping[bytes, RulePolicy],
        keys: Collection[str],
        listener: bytes = b"",
    ) -> None:
        everyone = (default, *policies.values())
        self._default: Final = default
        self._policies: Final = policies
        self._by_tag: Final = "tag" in keys
        self._by_user: Final = "user" in keys
        self._by_helo: Final = "helo" in keys
        self._of_listener: Final = listener if "listener" in keys and listener in policies else NO_NAMESPACE
        self.phases: Final = CHOOSING_PHASES.union(*(one.phases for one in everyone))
        self.noted_phases: Final = frozenset.intersection(
            *(CHOOSING_PHASES & ENDS_TRANSACTION - one.rules.phases for one in everyone)
        )
        self.phases_after_refusals: Final[frozenset[str]] = frozenset()
        self.header_names: Final = frozenset[bytes]().union(*(one.header_names for one in everyone))
        store, clock = default.environment.outcome_store, default.environment.monotonic
        tracks_retries = any(one.tracking is not None for one in everyone)
        self._tracking: Final = (
            Tracking(store, clock, default.event_numbers) if store is not None and tracks_retries else None
        )
        reads_session = any(one.rules.reads_session for one in everyone)
        self._evaluator: Final = SessionRuleEvaluator if reads_session else RuleEvaluator

    def for_session(self, client: str, secure: bool) -> NamespaceEvaluator:
        """Return the policy for a new session with the client at this address."""
        context = RuleContext(self._default.rules.listener, client, secure)
        tracker = None if self._tracking is None else RetryTracker(self._tracking, client)
        return NamespaceEvaluator(self, context, tracker)

    def evaluator(
        self, namespace: bytes, context: RuleContext, tracker: RetryTracker | None
    ) -> RuleEvaluator:
        """Return what decides in a namespace."""
        return self._evaluator(self._policies.get(namespace, self._default), context, tracker)

    def of_session(self, helo: bytes, user: bytes) -> bytes:
        """Return the namespace of a session, as long as no recipient chooses another."""
        if self._by_user and (name := user.lower()) in self._policies:
            return name
        if self._by_helo and (name := helo.lower()) in self._policies:
            return name
        return self._of_listener

    def of_recipient(self, recipient: bytes) -> bytes:
        """Return the namespace that a recipient chooses; NO_NAMESPACE if it chooses none."""
        tag = tag_of(recipient) if self._by_tag else NO_NAMESPACE
        return tag if tag in self._policies else NO_NAMESPACE


class NamespaceEvaluator:
    """The policy of one session: asks the rules of the namespace that the session has chosen so far.

    Each recipient is decided on by the rules of its own namespace. The message is decided on by those of its
    first recipient that was accepted, in LMTP for each recipient by its own.
    """

    __slots__ = (
        "_answers_for",
        "_ended",
        "_has_recipient",
        "_inner",
        "_introduced",
        "_named",
        "_namespace",
        "_of_session",
        "_policy",
        "_tracker",
        "_transaction",
        "_watch",
        "context",
    )

    def __init__(self, policy: NamespacePolicy, context: RuleContext, tracker: RetryTracker | None) -> None:
        self._policy = policy
        self.context = context
        """What the rules of all namespaces look at."""
        self._tracker = tracker
        self._introduced = self._named = b"", b""
        """Name in HELO and user, as they were accepted, and as the command says that is decided on."""
        self._of_session = policy.of_session(b"", b"")
        self._namespace = self._of_session
        self._inner = policy.evaluator(self._namespace, context, tracker)
        self._transaction = self._ended = self._namespace
        """Namespaces of the transaction under way, and of the one before the last command that ended one."""
        self._has_recipient = False
        """A recipient of the transaction was accepted."""
        self._answers_for: bytes | None = None
        """In LMTP, the namespace of the recipient that the next reply to the message is for."""
        self._watch: NamespaceWatcher = unwatched

    def watch(self, watcher: NamespaceWatcher) -> None:
        """Tell a watcher of the namespace, now and whenever it changes."""
        self._watch = watcher
        watcher(self._namespace or None, ())

    def namespace_of_transaction(self, ended: bool) -> bytes:
        """Return the namespace of the transaction under way, or of that which the last command `ended`."""
        return self._ended if ended else self._transaction

    # How a namespace is chosen.

    def _enter(self, session: SessionState, phase: str, argument: bytes) -> None:
        """Go over to the namespace that decides on a command."""
        events = session.counted_events
        if phase == "RCPT":
            chosen = self._policy.of_recipient(argument) or self._of_session
            if not self._has_recipient:
                self._transaction = self._ended = chosen
            self._choose(chosen, events, chosen)
        elif phase in ("HELO", "EHLO"):
            self._name(argument or self._introduced[0], self._introduced[1], events)
        elif phase == "AUTH" and argument:
            self._name(self._introduced[0], argument, events)
        elif phase in ("MAIL", "RSET"):
            self._begin(self._of_session, events)
        elif phase in ("DATA", "BDAT", "."):
            chosen = self._transaction if self._answers_for is None else self._answers_for
            self._choose(chosen, events, chosen if self._has_recipient else chosen or None)

    def _name(self, helo: bytes, user: bytes, events: Sequence[int]) -> None:
        """Go over to the namespace of a session whose client names itself."""
        self._named = helo, user
        self._begin(self._policy.of_session(helo, user), events)

    def _begin(self, namespace: bytes, events: Sequence[int]) -> None:
        """Begin anew in a namespace: no transaction is open."""
        self._ended, self._transaction, self._has_recipient = self._transaction, namespace, False
        self._answers_for = None
        self._choose(namespace, events, namespace or None)

    def _choose(self, namespace: bytes, events: Sequence[int], counted_for: bytes | None) -> None:
        self._watch(counted_for, events)
        if namespace != self._namespace:
            self._leave()
            self._namespace = namespace
            self._inner = self._policy.evaluator(namespace, self.context, self._tracker)

    def _leave(self) -> None:
        """Release what the session has used up in its namespace."""
        self._inner.replaced_by(NO_SESSION_POLICY)
        self.context.quota_used, self.context.held_slots = NO_QUOTAS, NO_SLOTS

    def _accepted(self, phase: str) -> None:
        """Take note that the command that was decided on last was accepted."""
        if phase == "RCPT":
            self._has_recipient = True
        elif phase in ("HELO", "EHLO", "AUTH"):
            self._introduced, self._of_session = self._named, self._namespace

    # What a session asks, and what it tells: see `blackhole.smtp.policy.SessionPolicy`.

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        """Return the decision of the namespace's rules."""
        self._enter(session, phase, argument)
        return self._inner.decide(session, phase, argument, size, mode)

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        """Take note of the reply to the command that was decided on last."""
        self._inner.answered(session, phase, code)
        if code < 400:
            self._accepted(phase)
        elif phase in ("HELO", "EHLO", "AUTH"):
            self._named = self._introduced
            self._begin(self._of_session, session.counted_events)

    def note(self, session: SessionState, phase: str, argument: bytes) -> None:
        """Take note of a command that always passes."""
        self._enter(session, phase, argument)
        self._inner.note(session, phase, argument)
        self._accepted(phase)

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        """Return the decision on RCPT; if it is None, take note that it was accepted."""
        self._enter(session, "RCPT", recipient)
        found = self._inner.accept_recipient(session, recipient)
        if found is None:
            self._accepted("RCPT")
        return found

    def accept_message(
        self, session: SessionState, message: bytes, size: int
    ) -> Decision | PendingDecision | None:
        """Return the decision on a message; if it is None, take note that it was accepted."""
        self._enter(session, ".", b"")
        return self._inner.accept_message(session, message, size)

    def message_reply_delayed(self, session: SessionState, early: bool) -> None:
        """Take note that the reply to a message waits."""
        self._inner.message_reply_delayed(session, early)

    def message_answered(self, session: SessionState, code: int, fault: Fault | None) -> None:
        """Take note that the reply to a message has left, or a part of it."""
        self._inner.message_answered(session, code, fault)

    def begin_recipient(self, session: SessionState, recipient: bytes, is_last: bool) -> None:
        """Decide on the end of a message for this recipient by the rules of its namespace."""
        chosen = self._policy.of_recipient(recipient) or self._of_session
        self._answers_for = chosen
        self._choose(chosen, session.counted_events, chosen)
        self._inner.begin_recipient(session, recipient, is_last)

    def client_sent_early(self) -> None:
        """Take note that the client did not wait for a reply that was held back."""
        self._inner.client_sent_early()

    def set_local_address(self, address: Callable[[], str]) -> None:
        """Learn how to find out which local address the client connected to."""
        self._inner.set_local_address(address)

    def introduce(self, helo: bytes, user: bytes) -> None:
        """Learn the name and the user of the client before it says them."""
        self._name(helo, user, ())
        self._introduced, self._of_session = self._named, self._namespace
        self._inner.introduce(helo, user)

    def secured(self, server_name: bytes) -> NamespaceEvaluator:
        """Return the policy under TLS, without what was said before."""
        successor = NamespaceEvaluator(self._policy, self.context.secured(server_name), self._tracker)
        successor._transaction, successor._ended = successor._namespace, self._transaction
        if successor._namespace != self._namespace:
            self._inner.replaced_by(NO_SESSION_POLICY)
            successor.context.quota_used, successor.context.held_slots = NO_QUOTAS, NO_SLOTS
        successor.watch(self._watch)
        return successor

    def replaced_by(self, successor: SessionPolicy) -> None:
        """Hand over what the client has said, and what it has used up in a namespace that stays as it was."""
        if isinstance(successor, NamespaceEvaluator):
            successor._take_over(self)
        else:
            self._inner.replaced_by(successor)

    def _take_over(self, before: NamespaceEvaluator) -> None:
        self._tracker = self._tracker and before._tracker
        helo, user = before._introduced
        self.introduce(helo, user)
        self._inner = self._policy.evaluator(self._namespace, self.context, self._tracker)
        before._inner.replaced_by(self._inner if self._namespace == before._namespace else NO_SESSION_POLICY)
        self.context.helo, self.context.user = before.context.helo, before.context.user
        self._ended = before._transaction
        self.watch(before._watch)

    def closed(self, session: SessionState) -> None:
        """Take note of the end of the connection."""
        self._inner.closed(session)
