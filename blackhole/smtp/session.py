"""One SMTP session without a socket: octets in, replies out, and what to do next.

A session takes chunks, not lines. It answers every complete command in a chunk, passes over a body by one
search for its end, and returns all replies that may leave at once together (RFC 2920 3.2). A reply with a
delay stops it in the middle of a chunk, and so does a policy that has to wait for an answer: `resume` and
`resume_with_answer` go on from there. Nothing of a message is kept, except its header section if somebody
reads it, and of a command at most `MAX_LINE` octets.

Input takes this way through the module, from top to bottom:

    receive -> fast_path                            usual input, answered there
            -> _process                             all other input, command by command
               -> _read_body, _read_command         take the next message or command from the input
                  -> _execute -> policy.decide      check the order, read the argument, ask the policy
                     -> _carry_out                  change the state, as the decision says
               -> _deliver                          send the reply now, later, or in part
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, NamedTuple

from blackhole.smtp import replies
from blackhole.smtp.arguments import NO_PARAMETERS
from blackhole.smtp.auth import redacted
from blackhole.smtp.body_checks import ALWAYS_INSPECT, INSPECT_EVERY, BodyInspector
from blackhole.smtp.command_line import (
    MAX_AUTH_LINE,
    MAX_DISCARDED,
    MAX_LINE,
    PRIVATE_VERB,
    STANDARD_LINE,
    exceeds_standard,
    is_binary,
    reject_line,
)
from blackhole.smtp.delivery import READ, DeferredReply, ReplyDelivery
from blackhole.smtp.directives import has_no_directives, parse_directives
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import TARPIT, ErrorBudget, Meter
from blackhole.smtp.header_section import HeaderCollector, fields
from blackhole.smtp.message_body import FINAL_DOT, MessageBody
from blackhole.smtp.policy import Decision, PendingDecision
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.sequence import check_pipelining, record_wrong_order
from blackhole.smtp.state import GREETED, ClientLimits

MAX_TURN: Final = 128
"""Commands of one client that are answered before other clients have their turn: less than a millisecond."""

NEVER: Final = 1 << 62
"""More messages than any session has."""

NOT_AVAILABLE: Final = frozenset((replies.UNKNOWN, replies.NOT_OFFERED, replies.BDAT_NOT_OFFERED))
"""Replies to commands that EHLO did not offer."""

Decided = Decision | PendingDecision | None
"""What a policy says about a command."""


Answered = tuple[int, BoundCommand, Reply]
"""A command that has been carried out: where it ends in the input, its row, and its reply."""


class Waiting(NamedTuple):
    """A command whose decision depends on an answer that has to be waited for."""

    decision: PendingDecision
    command: BoundCommand
    argument: Any


class Session(ReplyDelivery):
    """One SMTP session.

    Its caller looks at `next_action` after each of `greet`, `receive`, `resume` and `resume_with_answer`, and
    counts and clears `single_event` and `counted_events` when it sends what they returned.

    >>> from random import Random
    >>> from blackhole.smtp.engine import SMTPEngine
    >>> from blackhole.smtp.state import ListenerConfig
    >>> session = SMTPEngine(ListenerConfig("mx.example"), Random()).session()
    >>> session.greet()
    b'220 mx.example ESMTP Blackhole\\r\\n'
    >>> session.receive(b"MAIL FROM:<ann@example.com>\\r\\nQU")
    b'250 2.1.0 Sender OK\\r\\n'
    >>> session.receive(b"IT\\r\\n"), session.next_action
    (b'221 2.0.0 Goodbye\\r\\n', <NextAction.CLOSE: 'close'>)
    """

    __slots__ = (
        "_decision",
        "_directive_delay",
        "_discarded",
        "_expects_secret",
        "_rejected",
        "_waiting",
        "busy",
        "certificate",
        "client",
        "error_budget",
        "next_inspection",
    )

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter, sampled: bool) -> None:
        ReplyDelivery.__init__(self, engine, engine.policy.for_session(client, secure), secure)
        self.client = client
        limits = engine.config.limits
        self.error_budget = None if limits is None else ErrorBudget(limits, meter)
        self.busy = False
        """Input or a reply is pending, or replies are slowed down, or the engine has been replaced."""
        self.certificate = ""
        """Name of the certificate to present in the TLS handshake; empty: the server's own."""
        self._decision: Decision | None = None
        """The decision on the command that is being answered."""
        self._waiting: Waiting | None = None
        """The command that a look-up holds up."""
        self._directive_delay: tuple[float, float] | None = None
        """Seconds for which the message asks its reply to be delayed, at least and at most."""
        self._discarded = 0
        """Octets discarded of a line that is too long."""
        self._expects_secret = False
        """The last command was AUTH: the next line may be a response, and is not to be traced."""
        self._rejected = False
        """The greeting was a refusal: only QUIT is served (RFC 5321 3.1)."""
        self.sampled = sampled
        self.next_inspection = 0 if sampled else NEVER
        """The number of the next message whose body is inspected."""

    # The beginning of a connection.

    def check_implicit_tls(self) -> None:
        """Ask the policy about the handshake before the greeting (RFC 8314 3): its certificate or a fault."""
        starttls = self.engine.starttls
        self._decide_handshake(self.policy.decide(self, starttls.phase), starttls)

    def _decide_handshake(self, decision: Decided, starttls: BoundCommand) -> None:
        self.next_action = READ
        if isinstance(decision, PendingDecision):
            self._wait_for(Waiting(decision, starttls, None))
        elif decision is not None:
            self.record_event(decision.event)
            self.certificate = decision.certificate
            if decision.fault is not None:
                self.next_action = decision.fault.next_action

    def secured(self) -> None:
        """Start anew after a TLS handshake (RFC 3207 4.2)."""
        self.restart_under_tls(self.next_action is NextAction.START_TLS)
        self.next_action = READ
        self.certificate = ""
        self.policy = self.policy.secured()

    def apply_limits(self, engine: EngineTables, limits: ClientLimits, meter: Meter) -> None:
        """Go over to an engine that differs from this one by its limits on clients."""
        self.engine = engine
        self.error_budget = ErrorBudget(limits, meter)

    def greet(self) -> bytes:
        """Return the greeting, if it may leave now."""
        if self.engine.successor is not None:
            self._switch_to_successor()
        connect = self.engine.connect
        if connect.asks_policy or self.engine.trace is not None:
            return self.go_on(connect, b"", self.policy.decide(self, connect.phase))
        greeting = connect.do(self, b"")
        self.single_event = connect.events[greeting.code]
        return greeting.wire

    def client_spoke_first(self, greeting: bytes) -> bytes:
        """Record input that came before the greeting; return what to send in place of the greeting."""
        if self.engine.config.strict and self.next_action is READ and greeting.startswith(b"220"):
            greeting = self._replace_last_reply(self.engine.connect)
        self.record_violation("early-talk")
        return greeting

    def client_sent_early(self, out: bytes) -> bytes:
        """Take note that input came, or the connection was closed, while the replies `out` were held back.

        Return what to send in their place: nothing may be taken from the time before a TLS handshake
        (CVE-2011-0411).
        """
        self.policy.client_sent_early()
        if self.next_action is NextAction.START_TLS:
            return self._replace_last_reply(self.engine.starttls)
        return out

    def _replace_last_reply(self, command: BoundCommand) -> bytes:
        """Refuse the command whose reply was emitted last and has not left, and close the connection."""
        if self.single_event:
            self.single_event = 0
        else:
            self.counted_events.pop()
        refusal = replies.IMPROPER_PIPELINING
        self.counted_events.append(command.events[refusal.code])
        self.next_action = refusal.next_action
        return refusal.wire

    def closed(self) -> None:
        """Take note that the connection is closed."""
        self._waiting = None
        self.policy.closed(self)

    # Input.

    def receive(self, data: bytes) -> bytes:
        """Take input of the client; return the replies that may leave now."""
        fast_path = self.engine.fast_path
        reply = fast_path(self, data)
        if reply is not None:
            return reply
        return self._process(self.unprocessed + data)

    def resume(self) -> bytes:
        """Go on after NextAction.SLEEP; return the replies that may leave now."""
        return self._process(self.unprocessed)

    @property
    def pending_lookup(self) -> Awaitable[Any]:
        """What to wait for with NextAction.LOOKUP."""
        assert self._waiting is not None
        return self._waiting.decision.lookup

    def resume_with_answer(self, answer: object) -> bytes:
        """Go on after NextAction.LOOKUP with the answer, or with None if there is none to be had."""
        assert self._waiting is not None
        pending, command, argument = self._waiting
        self._waiting = None
        decision = pending.resume(answer)
        if argument is None:
            self._decide_handshake(decision, command)
            return b""
        self.next_action = READ
        return self.go_on(command, argument, decision, self.unprocessed)

    def go_on(self, command: BoundCommand, argument: Any, decision: Decided, rest: bytes = b"") -> bytes:
        """Carry a command out that the policy has decided on, and answer it and the input behind it."""
        if isinstance(decision, PendingDecision):
            self._wait_for(Waiting(decision, command, argument))
            self.unprocessed = rest
            return b""
        offered = self.esmtp
        reply = self._carry_out(command, argument, decision)
        if command is not self.engine.end_of_message:
            reply = self._check_pipelining(command, reply, offered, bool(rest))
        return self._process(rest, (0, command, reply))

    def go_on_with_reply(self, command: BoundCommand, reply: Reply) -> bytes:
        """Deliver the reply to a command that has been carried out, with nothing behind it."""
        return self._process(b"", (0, command, self._check_pipelining(command, reply, self.esmtp, False)))

    def _wait_for(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.single_event = 0
        self.next_action = NextAction.LOOKUP

    # The general path: any input, command by command.

    def _process(self, data: bytes, answered: Answered | None = None) -> bytes:
        """Answer all input in `data`, until a reply or a look-up has to be waited for.

        A reply that was held back leaves first, then the one to a command that was answered already.
        """
        out: list[bytes] = []
        self.single_event = 0
        self.unprocessed = b""
        self.next_action = READ
        position, turn = 0, MAX_TURN
        stopped = self.deferred is not None and self._emit_deferred(out, data)
        while not stopped and (answered is not None or position < len(data)):
            if not turn:
                self.unprocessed = data[position:]
                self.next_action, self.wait = NextAction.SLEEP, 0.0
                break
            turn -= 1
            if answered is None:
                if self.engine.successor is not None:
                    self._switch_to_successor()
                answered = (
                    self._read_body(data, position) if self.in_body else self._read_command(data, position)
                )
                if answered is None:
                    break
            position = answered[0]
            stopped = self._deliver(out, answered, data)
            answered = None
        slow = self.error_budget is not None and self.error_budget.slow
        pending = self.unprocessed or self._discarded or self.deferred or self.auth_exchange
        self.busy = bool(pending) or slow or self._rejected
        return out[0] if len(out) == 1 else b"".join(out)

    def _switch_to_successor(self) -> None:
        """Go over to the engine that has replaced this one; but what has begun ends under the same rules."""
        if self.stage > GREETED or self.in_body or self.auth_exchange is not None or self._rejected:
            return
        while self.engine.successor is not None:
            self.engine = self.engine.successor
        policy = self.policy
        self.policy = self.engine.policy.for_session(self.client, self.secure)
        policy.replaced_by(self.policy)

    def _read_body(self, data: bytes, start: int) -> Answered | None:
        """Pass over the body from `start`; return the reply to the message, or None if it goes on."""
        engine, body = self.engine, self.body
        if body is None:
            body = self.body = self._new_body(data, start)
        position = body.feed(data, start)
        end = position if position >= 0 else len(data)
        if engine.trace is not None:
            for line in data[start:end].splitlines():
                engine.trace(self, "RECV", line)
        for violation in body.new_violations:
            self._record_in_body(violation)
        self.octets = body.octets
        if 0 < 2 * engine.config.message_size_limit < body.octets - FINAL_DOT:
            # It might go on for ever, and its reply can be sent now.
            if self.esmtp:
                self.record_violation("size-over-limit")
            self.in_body = False
            return end, engine.end_of_message, replies.FAR_TOO_LARGE
        if position < 0:
            return None
        self.in_body = False
        self.octets = body.octets - FINAL_DOT
        self.schedule_inspection()
        if position < len(data) and not self.esmtp:
            self.record_violation("unoffered-pipelining")
        if body.has_bare_newline and (refusal := self._check_bare_newline()) is not None:
            return position, engine.end_of_message, refusal
        return position, engine.end_of_message, self._end_message(body.header)

    def _new_body(self, data: bytes, start: int) -> MessageBody:
        """Return what is to be known of the body that begins at `start`."""
        config = self.engine.config
        reads_header = self.engine.policy.reads_header or (
            config.message_directives and not has_no_directives(data, start)
        )
        return MessageBody(
            inspector=BodyInspector(self.eightbit) if self.messages >= self.next_inspection else None,
            searches_bare_newlines=config.bare_newline != "normalize",
            header=HeaderCollector() if reads_header else None,
        )

    def _record_in_body(self, violation: str) -> None:
        """Record a violation in a body. Bare LF is recorded at its end where all of it is searched."""
        if violation != "bare-lf" or self.engine.config.bare_newline == "normalize":
            self.record_violation(violation)

    def schedule_inspection(self) -> None:
        """Choose the next message whose body is inspected, at the end of one."""
        if self.messages >= self.next_inspection and self.messages >= ALWAYS_INSPECT - 1:
            self.next_inspection = self.messages + INSPECT_EVERY

    def _end_message(self, header: HeaderCollector | None) -> Reply:
        """Answer the end of a message, as its own directives ask for where they are obeyed."""
        end, text, mode = self.engine.end_of_message, b"", ""
        if header is not None:
            text = header.text
            if self.engine.config.message_directives:
                mode, self._directive_delay = parse_directives(fields(text))
        if not (mode or end.asks_policy):
            return end.do(self, NO_PARAMETERS)
        decision = self.policy.decide(self, end.phase, text, self.octets, mode)
        return self._obey(end, NO_PARAMETERS, decision)

    def _read_command(self, data: bytes, start: int) -> Answered | None:
        """Answer the command line at `start`; return None if it is incomplete."""
        engine = self.engine
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        if self._discarded or (len(line) > MAX_LINE and self._is_too_long(line)):
            return self._discard(len(line), end, len(data))
        if end < 0 and not is_binary(line):
            self.unprocessed = line
            return None
        if line.endswith(b"\r"):
            line = line[:-1]
        elif end >= 0 and not is_binary(line) and (refusal := self._check_bare_newline()) is not None:
            return end + 1, engine.unknown, refusal
        if self.auth_exchange is not None and not is_binary(line):
            command, argument = engine.auth, line
        else:
            verb, _, argument = line.partition(b" ")
            command = engine.commands.get(verb) or engine.commands.get(verb.upper()) or engine.unknown
        if engine.trace is not None:
            engine.trace(self, "RECV", self._redacted(command, line))
        if len(line) > STANDARD_LINE and exceeds_standard(line) and command is not engine.auth:
            self.record_violation("long-command")
        offered = self.esmtp
        rejected = reject_line(line, command is engine.unknown)
        reply = self._execute(command, argument) if rejected is None else self._reject(*rejected)
        if reply in NOT_AVAILABLE and not (command.asks_policy or line.startswith(PRIVATE_VERB)):
            self.record_violation("unknown-command")
        followed = 0 <= end < len(data) - 1
        if (followed or reply.code >= 400) and reply is not replies.PENDING:
            reply = self._check_pipelining(command, reply, offered, followed)
        return end + 1 or len(data), command, reply

    def _is_too_long(self, line: bytes) -> bool:
        """Return whether a line of more than MAX_LINE octets is longer than its command may be."""
        is_auth = self.auth_exchange is not None or line[:5].upper() == b"AUTH "
        limit = MAX_AUTH_LINE if is_auth and self.engine.config.auth else MAX_LINE
        return len(line) > limit and not is_binary(line)

    def _discard(self, length: int, end: int, available: int) -> Answered | None:
        """Discard a piece of an over-long line; return the reply to it once its end has come, if ever."""
        engine = self.engine
        self._discarded += length
        if self._discarded > MAX_DISCARDED:
            self.record_violation("long-command")
            return available, engine.unknown, replies.FAR_TOO_LONG
        if end < 0:
            return None
        self._discarded = 0
        self.record_violation("long-command")
        if self.auth_exchange is not None:
            self.auth_exchange = None
            return (end + 1, engine.auth, replies.RESPONSE_TOO_LONG)
        return (end + 1, engine.unknown, replies.TOO_LONG)

    def _check_bare_newline(self) -> Reply | None:
        """Record a line that ends with LF alone (RFC 5321 2.3.8); return the reply where that is refused."""
        self.record_violation("bare-lf")
        return replies.BARE_NEWLINE if self.engine.config.bare_newline == "reject" else None

    def _reject(self, violation: str, refusal: Reply) -> Reply:
        """Record a line that cannot be a command, and return the reply to it."""
        if violation:
            self.auth_exchange = None
            self.record_violation(violation)
        return refusal

    def _redacted(self, command: BoundCommand, line: bytes) -> bytes:
        """Return a line as it may be traced. A response that was sent before the client could know that AUTH
        was refused looks like an unknown command, and is a secret all the same."""
        if self.auth_exchange is not None or (self._expects_secret and command is self.engine.unknown):
            return b"..."
        self._expects_secret = command is self.engine.auth
        return redacted(line) if self._expects_secret else line

    def _execute(self, command: BoundCommand, argument: bytes) -> Reply:
        """Check the order, read the argument, ask the policy, carry the command out: always in this order."""
        if self._rejected and command.phase != "QUIT":
            # RFC 5321 3.1: after a 554 greeting, wait for QUIT and answer 503 to all else.
            self.record_violation("talk-after-521")
            return replies.BAD_SEQUENCE
        if not command.allowed[self.stage]:
            record_wrong_order(self, command)
            if command.ordered:
                return replies.BAD_SEQUENCE
        parsed = command.read(self, argument)
        if parsed is None:
            self.record_violation("syntax")
            return command.syntax_error
        if isinstance(parsed, Reply):
            return parsed
        if not command.asks_policy:
            return command.do(self, parsed)
        decision = self.policy.decide(self, command.phase, *command.described(parsed))
        return self._obey(command, parsed, decision)

    def _obey(self, command: BoundCommand, argument: Any, decision: Decided) -> Reply:
        """Carry a command out as the policy has decided, unless the decision has to be waited for."""
        if isinstance(decision, PendingDecision):
            self._wait_for(Waiting(decision, command, argument))
            return replies.PENDING
        return self._carry_out(command, argument, decision)

    def _carry_out(self, command: BoundCommand, argument: Any, decision: Decision | None) -> Reply:
        """Carry a command out, or what the policy has decided on in its place; return the reply."""
        if decision is None:
            reply = command.do(self, argument)
        else:
            self._decision = decision
            self.record_event(decision.event)
            self.certificate = decision.certificate
            if decision.replaces_command:
                reply = decision.reply or replies.NO_REPLY
            else:
                reply = decision.amend(command.do(self, argument))
        if command is self.engine.connect:
            self._rejected = reply.code >= 400
        if command is not self.engine.end_of_message:
            self.policy.answered(self, command.phase, reply.code)
        return reply

    def _check_pipelining(self, command: BoundCommand, reply: Reply, offered: bool, followed: bool) -> Reply:
        """Return the reply to a command, which may be another one if input has come behind it too early."""
        checked = check_pipelining(self, command, reply, offered, followed)
        if checked is not reply and self._decision is not None:
            self._decision = self._decision._replace(fault=None)
        return checked

    def _deliver(self, out: list[bytes], answered: Answered, data: bytes) -> bool:
        """Emit the reply to a command or hold it back; return whether nothing may follow it for now."""
        end, command, reply = answered
        if reply is replies.PENDING:
            self.unprocessed = data[end:]
            return True
        decision, self._decision = self._decision, None
        seconds, fault = (None, None) if decision is None else (decision.delay, decision.fault)
        delay, self._directive_delay = self._directive_delay or command.delay, None
        if seconds is None and delay is not None:
            seconds = self.engine.random_source.uniform(*delay)
        if self.error_budget is not None:
            if reply.code >= 500 and not (command.asks_policy or command is self.engine.end_of_message):
                reply = self.error_budget.error(reply)
            if self.error_budget.slow:
                seconds = (seconds or 0.0) + TARPIT
        if seconds is None:
            stopped = self.emit(out, command, reply, fault)
        else:
            self.defer(DeferredReply(command, reply, fault), seconds, end < len(data))
            stopped = True
        if stopped and self.deferred is not None:
            self.unprocessed = data[end:]
        return stopped

    def _emit_deferred(self, out: list[bytes], data: bytes) -> bool:
        """Emit the reply that was held back; return whether nothing may follow it for now."""
        stopped = self.emit_deferred(out)
        if stopped and self.deferred is not None:
            self.unprocessed = data
        return stopped
