"""The rule evaluator: decides on the commands of one session by the rules of its listener."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from blackhole.rules import model
from blackhole.rules.attempt_store import NULL_STORE, AttemptStore
from blackhole.rules.context import RuleContext
from blackhole.rules.listener_rules import FIRST_CHUNK, ListenerRules
from blackhole.rules.message_identity import IDENTITY_FIELDS
from blackhole.rules.model import Rule
from blackhole.rules.outcomes import EVENTS, OutcomeStore
from blackhole.rules.refusals import LEAST_CODE, count_refused
from blackhole.rules.retry_tracker import ENDS_TRANSACTION, RetryTracker, Tracking
from blackhole.rules.search import RuleSearch
from blackhole.rules.session_facts import extensions_used, read_session
from blackhole.smtp.faults import Fault
from blackhole.smtp.header_section import fields, shortened
from blackhole.smtp.policy import Decision, NoSessionPolicy, PendingDecision, SessionPolicy
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.sequence import refusal_in_consequence
from blackhole.smtp.state import CHUNKED, GREETED, PHASES, RCPT, SessionState

UPDATES: Final = frozenset(("HELO", "EHLO", "MAIL", "RCPT"))
"""Phases whose commands change what rules know of the client, unless they are refused."""

NOTHING_SENT: Final = RuleContext().save()
"""The state of a client that has sent nothing."""


class RuleEnvironment(NamedTuple):
    """What rules know of the world."""

    clock: Callable[[], float] = lambda: 0.0
    """Returns the seconds since the rules came into force."""
    attempt_store: AttemptStore = NULL_STORE
    """Counts attempts and open connections."""
    outcome_store: OutcomeStore | None = None
    """Knows what became of messages; None: retries are not tracked."""
    monotonic: Callable[[], float] = lambda: 0.0
    """Returns the seconds of a clock that is never set back, by which retries are told apart."""


NO_ENVIRONMENT: Final = RuleEnvironment()


class RulePolicy:
    """The policy of a listener that has rules or a mode.

    `outcome_number` returns the number of the event for an outcome of the retry tracker, by its name.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        mode: str,
        listener: str,
        random_source: RandomSource,
        environment: RuleEnvironment = NO_ENVIRONMENT,
        outcome_number: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self.rules: Final = ListenerRules(rules, mode, listener)
        self.rules.make_tables()
        self.random_source: Final = random_source
        self.environment: Final = environment
        self.search: Final = RuleSearch(random_source, environment.attempt_store, environment.clock)
        self.phases: Final = frozenset(phase for phase in PHASES if self.rules.asks(phase))
        """The phases whose commands a session asks about."""
        self.noted_phases: Final = self.phases & ENDS_TRANSACTION - self.rules.phases
        """Those of them whose commands always pass, and need only be noted."""
        self.phases_after_refusals: Final = self.phases & {"DATA"} - self.rules.phases
        """Those of them whose commands pass unless something was refused in the transaction."""
        self.event_numbers: Final = tuple(outcome_number(event.name) for event in EVENTS)
        outcomes = environment.outcome_store if self.rules.may_refuse else None
        self.tracking: Final = (
            None if outcomes is None else Tracking(outcomes, environment.monotonic, self.event_numbers)
        )
        """What the retry trackers of all sessions share; None: retries are not tracked."""
        names = self.rules.header_names
        self.header_names: Final = names if self.tracking is None else names | IDENTITY_FIELDS
        """The header fields that sessions have to collect from each message."""
        self._scenario: Final = tuple(rules)
        self._modes: Final[dict[str, ListenerRules]] = {}
        self._without_rules: Final = DirectivesPolicy(self)
        self._evaluator: Final = SessionRuleEvaluator if self.rules.reads_session else RuleEvaluator

    def for_session(self, client: str, secure: bool) -> SessionPolicy:
        """Return the policy for a new session with the client at this address."""
        if not self.rules.phases:
            return self._without_rules
        return self._evaluator(self, RuleContext(self.rules.listener, client, secure))

    def in_mode(self, mode: str) -> ListenerRules:
        """Return the rules of the listener in another mode. Raises KeyError for an unknown mode."""
        if mode not in self._modes:
            self._modes[mode] = ListenerRules(self._scenario, mode, self.rules.listener)
        return self._modes[mode]


class DirectivesPolicy(NoSessionPolicy):
    """The policy of all sessions of a listener without rules: only a message may ask for a mode."""

    __slots__ = ("_policy",)

    def __init__(self, policy: RulePolicy) -> None:
        self._policy = policy

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        """Decide by the mode that a message asks for."""
        if not mode:
            return None
        context = RuleContext(self._policy.rules.listener, "", session.secure)
        return RuleEvaluator(self._policy, context).decide(session, phase, argument, size, mode)


class RuleEvaluator:
    """The policy of one session: finds the rules that match its commands, and tracks its client's retries.

    >>> from random import Random
    >>> from blackhole.rules.scenario_file import parse_rules
    >>> from blackhole.smtp.engine import SMTPEngine
    >>> from blackhole.smtp.state import ListenerConfig
    >>> rules = parse_rules('''
    ... [[rule]]
    ... phase = "RCPT"
    ... recipient = "nobody@*"
    ... reply = "550 5.1.1 No such user"
    ... ''', "example")
    >>> policy = RulePolicy(rules, "accept", "127.0.0.1:25", Random())
    >>> session = SMTPEngine(ListenerConfig(), Random(), policy=policy).session()
    >>> session.receive(b"MAIL FROM:<ann@example.com>\\r\\nRCPT TO:<nobody@example.com>\\r\\n")
    b'250 2.1.0 Sender OK\\r\\n550 5.1.1 No such user\\r\\n'
    """

    __slots__ = ("_argument", "_before", "_policy", "_tables", "_tracker", "context")

    def __init__(self, policy: RulePolicy, context: RuleContext, tracker: RetryTracker | None = None) -> None:
        self._policy = policy
        self.context = context
        """What rules look at."""
        rules = policy.rules
        self._tables = rules.shared_tables or rules.tables_for(context)
        self._argument = b""
        """The argument of the command that was decided on last."""
        self._before = NOTHING_SENT
        """The state before that command, which is restored if it is refused."""
        if tracker is None and policy.tracking is not None:
            tracker = RetryTracker(policy.tracking, context.client)
        self._tracker = tracker

    # What a session asks, and what it tells: see `blackhole.smtp.policy.SessionPolicy`.

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        """Return the decision of the first rule that matches the command; None where none does."""
        if not self._update_context(session, phase, argument, size):
            return None
        context = self.context
        if phase == "BDAT" and not session.stage & CHUNKED:
            phase = FIRST_CHUNK
        tables = self._policy.in_mode(mode).tables_for(context) if mode else self._tables
        table = tables[phase]
        if table is not None:
            table = table.narrowed(context)
        if table is None:
            context.header = ()
            return None
        found = self._policy.search.find(session, table, context, "DATA" if phase == FIRST_CHUNK else phase)
        if found is None:
            context.header = ()
            return None
        return self._decision(session, found)

    def _update_context(self, session: SessionState, phase: str, argument: bytes, size: int) -> bool:
        """Update the context for a command. Return whether rules decide on it, and not an earlier refusal."""
        context = self.context
        if session.stage <= GREETED:
            context.sender = context.recipient = b""
            context.size = 0
        self._argument = argument
        if session.refused and refusal_in_consequence(session, phase) is not None:
            self._before = context.save()
            return False
        if phase in UPDATES:
            self._before = context.save()
            context.update(phase, argument, size)
        elif phase == ".":
            context.size = size
            if self._tracker is not None:
                self._tracker.message_received(argument)
            if self._policy.rules.header_names:
                context.header = fields(shortened(argument, self._policy.header_names))
        elif phase == "AUTH":
            context.update(phase, argument)
        return True

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        """Take note of the reply to the command that was decided on last."""
        context = self.context
        if code >= 400:
            if phase in UPDATES:
                context.restore(self._before)
            elif phase in ("DATA", "BDAT") and session.refused & RCPT and not session.recipients:
                return
            elif phase == "AUTH":
                context.user = b""
        if self._tracker is not None:
            self._tracker.command_answered(session, phase, context.sender, self._argument, code)

    def note(self, session: SessionState, phase: str, argument: bytes) -> None:
        """Take note of a command that ends a transaction, and that no rule is for."""
        context, tracker = self.context, self._tracker
        if tracker is not None:
            tracker.transaction_ended(session)
        if phase == "MAIL":
            context.sender, context.recipient, context.size, context.draws = argument, b"", 0, None
        elif phase != "QUIT":
            context.sender, context.recipient, context.size = b"", b"", 0
            context.helo = argument or context.helo

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        """Return the decision on RCPT; if it is None, take note that it was accepted."""
        context, table = self.context, self._tables["RCPT"]
        recipient_before, draws_before = context.recipient, context.draws
        context.recipient, context.draws = recipient, None
        if table is not None and (table := table.narrowed(context)) is not None:
            chances, policy = table.chances, self._policy
            if chances is None:
                found = policy.search.find(session, table, context, "RCPT")
            else:
                found = chances.match(context, policy.random_source)
            if found is not None:
                context.phase, self._argument = "RCPT", recipient
                self._before = context.helo, context.sender, recipient_before, context.size, draws_before
                return self._decision(session, found)
        if self._tracker is not None:
            self._tracker.recipient_accepted(context.sender, recipient)
        return None

    def accept_message(
        self, session: SessionState, message: bytes, size: int
    ) -> Decision | PendingDecision | None:
        """Return the decision on a message; if it is None, take note that it was accepted."""
        context, tracker, table = self.context, self._tracker, self._tables["."]
        context.size = size
        if table is not None and (
            table.chances is not None or (table := table.narrowed(context)) is not None
        ):
            chances, policy = table.chances, self._policy
            if chances is None:
                if table.reads_header:
                    return self._accept_any(session, ".", message, size)
                found = policy.search.find(session, table, context, ".")
            else:
                found = chances.match(context, policy.random_source)
            if found is not None:
                context.phase = "."
                if tracker is not None:
                    tracker.message_received(message)
                return self._decision(session, found)
        if tracker is not None:
            tracker.message_accepted(session, message)
        return None

    def _accept_any(
        self, session: SessionState, phase: str, argument: bytes, size: int = 0
    ) -> Decision | PendingDecision | None:
        """Do as `decide` and, if the command passes, as `answered` or `message_answered`."""
        decision = self.decide(session, phase, argument, size)
        if decision is not None:
            return decision
        if phase == ".":
            self.message_answered(session, 250, None)
        else:
            self.answered(session, phase, 250)
        return None

    def message_reply_delayed(self, session: SessionState, early: bool) -> None:
        """Take note that the reply to a message waits."""
        if self._tracker is not None:
            self._tracker.reply_deferred(session, early)

    def message_answered(self, session: SessionState, code: int, fault: Fault | None) -> None:
        """Take note that the reply to a message has left, or a part of it."""
        if self._tracker is not None:
            self._tracker.reply_sent(session, code, fault)

    def begin_recipient(self, session: SessionState, recipient: bytes, is_last: bool) -> None:
        """Decide on the end of a message for this recipient from now on."""
        self.context.recipient, self.context.draws = recipient, None
        if self._tracker is not None:
            self._tracker.begin_recipient(session, self.context.sender, recipient, is_last)

    def client_sent_early(self) -> None:
        """Take note that the client did not wait for a reply that was held back."""
        if self._tracker is not None:
            self._tracker.client_spoke()

    def set_local_address(self, address: Callable[[], str]) -> None:
        """Learn how to find out which local address the client connected to."""
        if self._tracker is not None:
            self._tracker.local_address = address

    def introduce(self, helo: bytes, user: bytes) -> None:
        """Learn the name and the user of the client before it says them."""
        self.context.helo, self.context.user = helo, user
        self._before = self.context.save()

    def secured(self, server_name: bytes) -> RuleEvaluator:
        """Return the evaluator under TLS: of other rules perhaps, and without what was said before."""
        return type(self)(self._policy, self.context.secured(server_name), self._tracker)

    def replaced_by(self, successor: SessionPolicy) -> None:
        """Hand over what the client has said, and what it has used up if it is kept in the same store."""
        if isinstance(successor, RuleEvaluator):
            mine, theirs = self.context, successor.context
            theirs.helo, theirs.user = mine.helo, mine.user
            successor._tracker = successor._tracker and self._tracker
            if successor._policy.environment.attempt_store == self._policy.environment.attempt_store:
                theirs.quota_used, theirs.held_slots = mine.quota_used, mine.held_slots
                return
        self._release()

    def closed(self, session: SessionState) -> None:
        """Take note of the end of the connection, and release its slots."""
        if self._tracker is not None and not session.quit_received:
            self._tracker.client_gone(session)
        if self.context.held_slots:
            self._release()

    def _release(self) -> None:
        for slot in self.context.held_slots.values():
            self._policy.environment.attempt_store.release(slot)

    # What a session has to do.

    def _decision(
        self, session: SessionState, found: model.RuleMatch | model.PendingMatch
    ) -> Decision | PendingDecision:
        """Return what a session has to do to obey what was found."""
        if isinstance(found, model.PendingMatch):
            return PendingDecision(found.answer, partial(self._resume, session, found))
        context = self.context
        effect, draws, counter = found
        context.id = session.id
        reply, fault = effect.choose_reply(draws[1], context), effect.fault
        if fault is not None and fault.input is not None and reply is not None:
            # It is for the middle of the message.
            fault = fault._replace(input=fault.input._replace(reply=reply))
            reply = None
        context.header = ()
        decision = Decision(
            reply,
            effect.replaces_command or (reply is not None and reply.code >= 400),
            effect.choose_delay(draws, context),
            fault,
            effect.hide,
            effect.add,
            effect.tls,
            counter,
        )
        if reply is not None and reply.code >= LEAST_CODE and context.phase == "RCPT":
            limits, environment = self._policy.rules.refusal_limits, self._policy.environment
            if limits:
                context.elapsed = environment.clock()
                return count_refused(decision, effect, iter(limits), context, environment.attempt_store)
        return decision

    def _resume(
        self, session: SessionState, pending: model.PendingMatch, answer: Any
    ) -> Decision | PendingDecision | None:
        """Go on with the answer that was waited for; None: the store has none."""
        found = pending.resume(answer)
        session.counted_events += self.context.take_limit_events()
        if found is None:
            self.context.header = ()
            return None
        return self._decision(session, found)


class SessionRuleEvaluator(RuleEvaluator):
    """The policy of a session whose rules look at what only the session knows."""

    __slots__ = ("_used", "_used_before")

    def __init__(self, policy: RulePolicy, context: RuleContext, tracker: RetryTracker | None = None) -> None:
        super().__init__(policy, context, tracker)
        self._used: frozenset[str] = frozenset()
        """The extensions that the transaction has used."""
        self._used_before = self._used
        """The same before the command that was decided on last."""

    def _update_context(self, session: SessionState, phase: str, argument: bytes, size: int) -> bool:
        self._used_before = self._used
        self._used = extensions_used(session, phase, self._used)
        read_session(self.context, session, phase, self._used)
        return super()._update_context(session, phase, argument, size)

    def note(self, session: SessionState, phase: str, argument: bytes) -> None:
        self._accept_any(session, phase, argument)

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        return self._accept_any(session, "RCPT", recipient)

    def accept_message(
        self, session: SessionState, message: bytes, size: int
    ) -> Decision | PendingDecision | None:
        return self._accept_any(session, ".", message, size)

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        if code >= 400 and phase in ("MAIL", "RCPT", "BDAT"):
            self._used = self._used_before
        super().answered(session, phase, code)
