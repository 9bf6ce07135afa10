"""The execution of commands: the policy's decision, the change of the state, and the time of the reply."""

from __future__ import annotations

from typing import Any, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.actions import refuse_credentials
from blackhole.smtp.delivery import DeferredReply, ReplyDelivery
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import TARPIT, ErrorBudget, Meter
from blackhole.smtp.offer import Offer
from blackhole.smtp.policy import Decision, PendingDecision
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.sequence import check_pipelining, record_wrong_order, refusal_in_consequence
from blackhole.tls_menu import USUAL_TLS

Decided = Decision | PendingDecision | None
"""What a policy says about a command."""

Answered = tuple[int, BoundCommand, Reply]
"""A command that has been carried out: where it ends in the input, its row, and its reply."""


class Sent(NamedTuple):
    """A command that was answered, and what the client knew of when it sent it."""

    command: BoundCommand
    reply: Reply
    offered: Offer


class Waiting(NamedTuple):
    """A command whose decision depends on an answer that has to be waited for."""

    decision: PendingDecision
    command: BoundCommand
    argument: Any


class CommandExecution(ReplyDelivery):
    """A session as far as it carries commands out."""

    __slots__ = (
        "chunk_decision",
        "decision",
        "directive_delay",
        "error_budget",
        "handshake",
        "rejected",
        "unfollowed",
        "waiting",
    )

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter) -> None:
        ReplyDelivery.__init__(self, engine, engine.policy.for_session(client, secure), secure, client)
        limits = engine.config.limits
        self.error_budget = None if limits is None else ErrorBudget(limits, meter)
        self.handshake = USUAL_TLS
        """How to do the TLS handshake; what is empty is as the listener has it."""
        self.decision: Decision | None = None
        """The decision on the command that is being answered."""
        self.chunk_decision: Decision | None = None
        """The decision on the last chunk of the message, whose reply is that to the message."""
        self.waiting: Waiting | None = None
        """The command that a look-up holds up."""
        self.directive_delay: tuple[float, float] | None = None
        """Seconds for which the message asks its reply to be delayed, at least and at most."""
        self.unfollowed: Sent | None = None
        """The command that was read last, if nothing has come behind it so far."""
        self.rejected = False
        """The greeting was a refusal: only QUIT is served (RFC 5321 3.1)."""

    def execute(self, command: BoundCommand, argument: bytes) -> Reply:
        """Check the order, read the argument, ask the policy, carry the command out: always in this order."""
        if self.rejected and command.phase != "QUIT":
            # RFC 5321 3.1: after a 554 greeting, wait for QUIT and answer 503 to all else.
            self.record_violation("talk-after-521")
            return replies.BAD_SEQUENCE
        if not command.allowed[self.stage]:
            record_wrong_order(self, command)
            if command.refused[self.stage]:
                return replies.BAD_SEQUENCE
        if self.must_authenticate and command.needs_auth:
            return replies.AUTH_REQUIRED
        parsed = command.read(self, argument)
        if parsed is None:
            self.record_violation("syntax")
            return command.syntax_error
        if isinstance(parsed, Reply):
            return parsed
        if not command.asks_policy:
            return self._do(command, parsed)
        decision = self.policy.decide(self, command.phase, *command.described(parsed))
        return self.obey(command, parsed, decision)

    def obey(self, command: BoundCommand, argument: Any, decision: Decided) -> Reply:
        """Carry a command out as the policy has decided, unless the decision has to be waited for."""
        if isinstance(decision, PendingDecision):
            self.wait_for(Waiting(decision, command, argument))
            return replies.PENDING
        return self.carry_out(command, argument, decision)

    def carry_out(self, command: BoundCommand, argument: Any, decision: Decision | None) -> Reply:
        """Carry a command out, or what the policy has decided on in its place; return the reply."""
        if decision is None:
            reply = self._do(command, argument)
        else:
            self.decision = decision
            self.record_event(decision.event)
            self.handshake = decision.tls
            if decision.replaces_command:
                reply = decision.reply or replies.NO_REPLY
                if command is self.engine.bdat and reply.code == replies.START_INPUT.code:
                    reply = replies.CHUNK_OK  # The rule is one for DATA.
                if command is self.engine.auth:
                    reply = refuse_credentials(self, argument, reply)
                if command is self.engine.mail:
                    self.reset()  # MAIL ends the transaction before it, refused or not.
            else:
                done = command.do(self, argument)
                reply = decision.amend(done)
                if reply is not done and command.phase == "EHLO":
                    self.offered = Offer(reply.lines[1:])
        if command is self.engine.connect:
            self.rejected = reply.code >= 400
        if command is not self.engine.end_of_message:
            # With a token, the refusal follows the client's answer to the challenge.
            is_refused = command is self.engine.auth and self.auth_exchange is not None
            self.policy.answered(
                self, command.phase, replies.AUTHENTICATION_FAILED.code if is_refused else reply.code
            )
        return reply

    def _do(self, command: BoundCommand, argument: Any) -> Reply:
        """Carry a command out, unless it follows from one that was refused."""
        refusal = refusal_in_consequence(self, command.phase) if self.refused else None
        return command.do(self, argument) if refusal is None else command.refuse(self, refusal)

    def check_pipelining(self, command: BoundCommand, reply: Reply, offered: Offer, followed: bool) -> Reply:
        """Return the reply to a command, which may be another one if input has come behind it too early."""
        self.unfollowed = None if followed else Sent(command, reply, offered)
        checked = check_pipelining(self, command, reply, offered, followed)
        if checked is not reply and self.decision is not None:
            self.decision = self.decision._replace(fault=None)
        return checked

    def deliver(self, out: list[bytes], answered: Answered, data: bytes) -> bool:
        """Emit the reply to a command or hold it back; return whether nothing may follow it for now."""
        end, command, reply = answered
        if reply is replies.PENDING:
            self.unprocessed = data[end:]
            return True
        if reply is replies.CHUNK_FOLLOWS or reply is replies.ALREADY_ANSWERED:
            return False
        decision, self.decision = self.decision, None
        if self.chunk_decision is not None:
            decision, self.chunk_decision = self.chunk_decision.before(decision), None
        seconds, fault = (None, None) if decision is None else (decision.delay, decision.fault)
        delay, self.directive_delay = self.directive_delay or command.delay, None
        if seconds is None and delay is not None:
            seconds = self.engine.random_source.uniform(*delay)
        if self.error_budget is not None:
            if reply.code >= 500 and not (command.asks_policy or command is self.engine.end_of_message):
                reply = self.error_budget.error(self, reply)
            if self.error_budget.slow:
                seconds = (seconds or 0.0) + TARPIT
        if seconds is None:
            stopped = self.emit(out, command, reply, fault)
        else:
            self.defer(DeferredReply(command, reply, fault), seconds, end < len(data))
            stopped = True
        if self.deferred is not None or self.next_action is NextAction.CHANGE_CLIENT:
            self.unprocessed = data[end:]
        return stopped

    def wait_for(self, waiting: Waiting) -> None:
        """Hold a command up until the answer that its decision depends on has come."""
        self.waiting = waiting
        self.unfollowed = None
        self.single_event = 0
        self.next_action = NextAction.LOOKUP
