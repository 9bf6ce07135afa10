"""A judge: asks the rules on behalf of one session, and tells it what they say.

There is one where there are rules, and none where there are none. It knows the rules that its
client can meet, keeps what they look at from one command to the next, and leaves what they want
done to the reply where the session finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, PendingAnswer, count_attempt
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import mask_ehlo
from blackhole.rules.faults import Fault
from blackhole.rules.listener_rules import ListenerRules
from blackhole.rules.model import Decision, PendingDecision
from blackhole.rules.retries import OutcomeStore, RetryTracker
from blackhole.rules.table import RuleTable
from blackhole.smtp import replies
from blackhole.smtp.header_section import MOST, HeaderCollector, fields
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import GREETED, SessionState

TOLD: Final = frozenset(("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET"))
"""Phases that change what is known of a case, or hang on what was refused before."""


class RuleEnvironment(NamedTuple):
    """What rules want to know of the world, which the engine knows nothing of."""

    clock: Callable[[], float] = lambda: 0.0
    """Seconds since the server started."""
    memory: AttemptStore = NULL_STORE
    """What was tried before."""
    past: OutcomeStore | None = None
    """What became of messages; None: nobody wants to know."""
    steady: Callable[[], float] = lambda: 0.0
    """Seconds of a clock that nothing sets back, for what is past."""


NO_ENVIRONMENT: Final = RuleEnvironment()


def judged(policy: ListenerRules, phase: str) -> bool:
    """Whether a judge has to hear of the commands of this phase."""
    return (
        phase in policy.phases
        # A refusal in place of the greeting has a word in all that follows.
        or "CONNECT" in policy.phases
        or ((policy.keeps_context or policy.may_refuse) and phase in TOLD)
        or (policy.may_refuse and phase in (".", "QUIT"))
    )


class RuleEvaluator:
    """One session's.

    After `answer` the session takes `delay` and `fault`, and the connection `certificate`. Where the
    memory answers later, `learn` goes on.
    """

    __slots__ = (
        "_open",
        "_outside",
        "_policy",
        "_random_source",
        "_tables",
        "case",
        "certificate",
        "delay",
        "fault",
        "header",
        "rejected_at_connect",
        "retry_tracker",
    )

    def __init__(
        self, policy: ListenerRules, outside: RuleEnvironment, random_source: RandomSource, case: RuleContext
    ) -> None:
        self._policy = policy
        self._outside = outside
        self._random_source = random_source
        self.case = case
        self._tables = policy.tables_for(case)
        self.delay: float | None = None
        """Seconds that the reply is to be held back."""
        self.fault: Fault | None = None
        """What is to be done to the reply."""
        self.certificate = ""
        """What is to be shown in the handshake in place of ours: a key of CERTIFICATES."""
        self.header: HeaderCollector | None = None
        """The header section of the message under way, if a rule wants to know it."""
        self._open: tuple[PendingDecision, Callable[[Decision | PendingDecision | None], Reply | NextAction]]
        """What has to be known before there is an answer, and what is done then."""
        self.retry_tracker: RetryTracker | None = None
        """Who sees whether mail comes again, if rules may refuse some."""
        if policy.may_refuse and outside.past is not None:
            self.retry_tracker = RetryTracker(outside.past, outside.steady, case.client)
        self.rejected_at_connect = False
        """Refused in place of the greeting: nothing but QUIT is served."""

    def secured(self) -> RuleEvaluator:
        """The judge under TLS: other rules, and nothing remembered of what was said."""
        evaluator = RuleEvaluator(self._policy, self._outside, self._random_source, self.case.secured())
        evaluator.retry_tracker = self.retry_tracker
        return evaluator

    def leave(self) -> None:
        """The connection is no more."""
        for place in self.case.held_slots:
            self._outside.memory.release(place)

    def hand_over(self, successor: RuleEvaluator | None) -> None:
        """Leave the session to a judge who knows other rules, or to none.

        He hears what the client has said; and what it has used up, where he has the same memory.
        """
        if successor is not None:
            successor.case.helo, successor.case.refused_phase = self.case.helo, self.case.refused_phase
            successor.retry_tracker = successor.retry_tracker and self.retry_tracker
            if successor._outside.memory == self._outside.memory:
                successor.case.quota_used, successor.case.held_slots = (
                    self.case.quota_used,
                    self.case.held_slots,
                )
                return
        self.leave()

    def collect(self) -> None:
        """A message begins."""
        if self._policy.reads_header or self.retry_tracker is not None:
            self.header = HeaderCollector()

    def approach(self, state: SessionState) -> NextAction:
        """TLS comes before the greeting: rules for STARTTLS say with which certificate, and what fault."""
        return self._approach(state, self._ask("STARTTLS"))

    def _approach(self, state: SessionState, decision: Decision | PendingDecision | None) -> NextAction:
        if decision is None:
            return NextAction.READ
        if isinstance(decision, PendingDecision):
            self._open = decision, partial(self._approach, state)
            return NextAction.LOOKUP
        state.record_rule_hit(decision.counter)
        self.certificate = decision.effect.certificate
        return NextAction.READ if decision.effect.fault is None else decision.effect.fault.next_action

    @property
    def later(self) -> PendingAnswer:
        """The answer that is waited for."""
        return self._open[0].answer

    def learn(self, known: Any) -> Reply | NextAction:
        """Go on where it was asked, by `answer` or `approach`, with the answer; None: there is none."""
        pending, go_on = self._open
        del self._open  # which knows the session, as that knows us
        return go_on(pending.resume(known))

    def passes(self, phase: str, said: bytes, anew: bool) -> bool:
        """Whether no rule has a word in a command of this phase with this address or name and no parameters;
        then it is kept in mind, else nothing has happened. `anew`: there is no transaction.

        With a rule that none of it is for, a message takes 53,000 instructions so; by way of `answer` it
        took 144,000.
        """
        case = self.case
        if case.refused_phase or self.rejected_at_connect:
            return False
        if anew:
            self._begin()
        table = self._tables.get(phase)
        if table is None:
            case.update(phase, said)
            return True
        before = case.sender, case.recipient
        case.update(phase, said)
        if self._silent(table):
            return True
        case.sender, case.recipient = before
        return False

    def all_pass(self, state: SessionState, commands: Sequence[tuple[str, bytes]]) -> bool:
        """The same for a whole transaction, which is done at once or not at all; it is witnessed too."""
        for number, (phase, said) in enumerate(commands):
            if not self.passes(phase, said, not number):
                self._begin()
                return False
        if self.retry_tracker is not None:
            for phase, said in commands:
                self.retry_tracker.command_answered(state, phase, said, 250)
        return True

    def ends(self, state: SessionState, message: bytes, octets: int) -> bool:
        """Whether no rule has a word in the end of this message of so many octets."""
        table = self._tables.get(".")
        if table is None:
            return True
        if state.stage <= GREETED:
            self._begin()
        case = self.case
        case.update(".", size=octets)
        if self._policy.reads_header:
            case.header = fields(message[:MOST])
        silent = self._silent(table)
        case.header = ()
        return silent

    def _begin(self) -> None:
        """Forget the envelope that was, where there is no transaction."""
        case = self.case
        case.sender = case.recipient = b""
        case.size = 0

    def _silent(self, table: RuleTable) -> bool:
        """Whether no rule can have a word in the case as it is. To ask changes nothing."""
        if table.reads_clock:
            self.case.elapsed = self._outside.clock()
        return table.cannot_match(self.case)

    def answer(
        self,
        state: SessionState,
        phase: str,
        do: Callable[[SessionState, Any], Reply],
        said: Any,
        policy: ListenerRules | None = None,
    ) -> Reply:
        """Ask the rules of the phase; do what they say, or what the client asked for.

        `policy` is asked in place of the listener's, this once.
        """
        case = self.case
        if state.stage <= GREETED:
            self._begin()
        if case.refused_phase and not state.recipients:
            # As with every server that refuses: no recipient without a sender, and no message without one.
            if case.refused_phase == "MAIL" and phase in ("RCPT", "DATA"):
                return self._told(state, phase, said, replies.BAD_SEQUENCE)
            if phase == "DATA":
                return replies.NO_RECIPIENT
        before = case.sender, case.recipient
        address, size = b"", state.octets
        if phase in ("MAIL", "RCPT"):
            address, size = said.address, int(said.parameters.get(b"SIZE", b"0"))
        elif phase in ("HELO", "EHLO"):
            address = said
        case.update(phase, address, size)
        if phase == "." and self.header is not None:
            text, self.header = self.header.text, None
            if self._policy.reads_header:
                case.header = fields(text)
            if self.retry_tracker is not None:
                self.retry_tracker.message_received(text)
        return self._conclude(state, phase, do, said, before, self._ask(phase, policy))

    def _conclude(
        self,
        state: SessionState,
        phase: str,
        do: Callable[[SessionState, Any], Reply],
        said: Any,
        before: tuple[bytes, bytes],
        decision: Decision | PendingDecision | None,
    ) -> Reply:
        """Do what the rules say, once they have come to an end. `before` was known before this command."""
        if isinstance(decision, PendingDecision):
            self._open = decision, partial(self._conclude, state, phase, do, said, before)
            return replies.PENDING
        case = self.case
        case.header = ()
        answer = do(state, said) if decision is None else self._obey(state, do, said, decision)
        if answer.code >= 400:
            if phase in ("MAIL", "RCPT"):
                case.sender, case.recipient = before
                case.refused_phase = phase
            self.rejected_at_connect |= phase == "CONNECT"
        return self._told(state, phase, said, answer)

    def _told(self, state: SessionState, phase: str, said: Any, answer: Reply) -> Reply:
        """Have it witnessed what was answered."""
        if self.retry_tracker is not None:
            address = said.address if phase in ("MAIL", "RCPT") else b""
            self.retry_tracker.command_answered(state, phase, address, answer.code)
        return answer

    def _ask(self, phase: str, policy: ListenerRules | None = None) -> Decision | PendingDecision | None:
        """What the rules of a phase say, once all is known that they look at."""
        tables = self._tables if policy is None else policy.tables_for(self.case)
        table = tables.get(phase)
        if table is None:
            return None
        case = self.case
        case.phase = phase
        outside = self._outside
        if table.reads_clock:
            case.elapsed = outside.clock()
        if table.needs_attempt_count(case):
            count = outside.memory.update(case.attempt_key, case.elapsed, count_attempt)
            if isinstance(count, PendingAnswer):
                return PendingDecision(count, partial(self._count, table))
            if count is None:
                return self._count(table, None)
            case.attempt = count
        return table.find(case, self._random_source, outside.memory)

    def _count(self, table: RuleTable, count: int | None) -> Decision | PendingDecision | None:
        """It is known now how many times this was tried, or that nobody knows: then it is the first."""
        self.case.attempt = count or 1
        if count is None:
            table = table.without_attempts
        return table.find(self.case, self._random_source, self._outside.memory)

    def _obey(
        self, state: SessionState, do: Callable[[SessionState, Any], Reply], said: Any, decision: Decision
    ) -> Reply:
        """Do what was asked, unless it is refused or a fault comes in its place."""
        effect, draws, cell = decision
        state.record_rule_hit(cell)
        self.fault = effect.fault
        self.certificate = effect.certificate
        if effect.delay is not None:
            self.delay = effect.delay.draw(draws[2], draws[3])
        self.case.id = state.id
        own = effect.choose_reply(draws[1], self.case)
        if effect.replaces_command or (own is not None and own.code >= 400):
            return own or replies.NO_REPLY
        done = do(state, said)
        if own is None:
            return mask_ehlo(done, effect) if effect.hide or effect.add else done
        if done.code >= 400 or done.next_action is NextAction.READ:
            return done if done.code >= 300 else own
        return Reply(own.code, own.enhanced, *own.lines, next_action=done.next_action)
