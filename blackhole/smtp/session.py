"""One SMTP session without a socket: octets in, replies out, and what to do next.

A session takes chunks, not lines. It answers every complete command in a chunk, passes over a body by one
search for its end, and returns all replies that may leave at once together (RFC 2920 3.2). A reply with a
delay stops it in the middle of a chunk, and so does a policy that has to wait for an answer: `resume` and
`resume_with_answer` go on from there. Nothing of a message is kept, except its header section if somebody
reads it, and of a command at most `MAX_COMMAND_LINE` octets.

A session is built in layers, each of which can be read alone: `state` (what is remembered), `delivery` (how
replies leave), `execution` (how commands are carried out), `body_reader` and `input_reader` (how messages and
commands are read), and this module, which leads the input through them from top to bottom:

    Session.receive
        fast_path                               answers usual input, or leaves it to what follows
        _process                                answers all other input, command by command
            read_body, read_command             take the next message or command from the input
                execute                         check the order, read the argument, ask the policy
                    carry_out                   change the state as the decision says
            deliver                             send the reply now, later, in part or not at all
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from blackhole.smtp import replies
from blackhole.smtp.delivery import READ
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import ErrorBudget, Meter
from blackhole.smtp.execution import Answered, Decided, Waiting
from blackhole.smtp.input_reader import InputReader
from blackhole.smtp.message_body import MessageBody
from blackhole.smtp.policy import PendingDecision
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.sequence import record_early_input
from blackhole.smtp.state import GREETED, ClientLimits, ViolationContext
from blackhole.tls_menu import USUAL_TLS

MAX_TURN: Final = 128
"""Commands of one client that are answered before other clients have their turn: less than a millisecond."""


class Session(InputReader):
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

    __slots__ = ("busy", "client", "needs_general_path", "receive_window")

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter) -> None:
        InputReader.__init__(self, engine, secure, client, meter)
        self.client = client
        self.receive_window = 0
        """Octets of the receive window that were asked of the connection; 0: nothing was."""
        self.busy = False
        """Input is unanswered, a reply is held back, or replies are slowed down or refused altogether."""
        self.needs_general_path = self.must_authenticate
        """The session is busy, or a part of the transaction was refused, so that the commands that follow may
        be refused too, or the client has to authenticate first, or the rest of a message is discarded."""

    # The beginning of a connection.

    def check_implicit_tls(self) -> None:
        """Ask the policy about the handshake before the greeting (RFC 8314 3): how to do it, or a fault."""
        starttls = self.engine.starttls
        self._decide_handshake(self.policy.decide(self, starttls.phase), starttls)

    def _decide_handshake(self, decision: Decided, starttls: BoundCommand) -> None:
        self.next_action = READ
        if isinstance(decision, PendingDecision):
            self.wait_for(Waiting(decision, starttls, None))
        elif decision is not None:
            self.record_event(decision.event)
            self.handshake = decision.tls
            if decision.fault is not None:
                self.next_action = decision.fault.next_action

    def secured(self, server_name: bytes = b"", client_identity: bytes = b"") -> None:
        """Start anew after a TLS handshake (RFC 3207 4.2).

        `server_name` is what the client called the server, if that was asked for, and `client_identity` the
        name in its certificate, if it has one.
        """
        self.restart_under_tls(self.next_action is NextAction.START_TLS)
        self.next_action = self._next_read()
        self.handshake = USUAL_TLS
        self.client_identity = client_identity
        self.policy = self.policy.secured(server_name)

    def apply_limits(self, engine: EngineTables, limits: ClientLimits, meter: Meter) -> None:
        """Go over to an engine that differs from this one by its limits on clients."""
        self.engine, self.listener = engine, engine.constants
        self.error_budget = ErrorBudget(limits, meter)

    def greet(self) -> bytes:
        """Return the greeting, if it may leave now."""
        if self.engine.successor is not None:
            self._switch_to_successor()
        connect = self.engine.connect
        if connect.asks_policy or self.engine.trace is not None:
            if self.engine.trace is not None:
                self.traced_id = self.id
            return self.go_on(connect, b"", self.policy.decide(self, connect.phase))
        do = connect.do
        greeting = do(self, b"")
        self.single_event = connect.events[greeting.code]
        return greeting.wire

    def client_spoke_first(self, greeting: bytes, sampled: bool) -> bytes:
        """Record input that came before the greeting; return what to send in place of the greeting.

        `sampled`: it is looked for in a sample of the sessions.
        """
        if self.engine.config.strict and self.next_action is READ and greeting.startswith(b"220"):
            greeting = self._replace_last_reply(self.engine.connect)
        self.client_spoke_early(sampled)
        return greeting

    def client_spoke_early(self, sampled: bool) -> None:
        """Record input that was sent before the greeting, unless that is known already."""
        if "early-talk" not in self.violation_contexts:
            record = self.record_sampled_violation if sampled else self.record_violation
            record("early-talk", ViolationContext(self.engine.connect.phase))

    def client_left(self) -> None:
        """Take note that the client closed its side before the replies that are held back could leave."""
        self.policy.client_sent_early()

    def client_sent_early(self, out: bytes) -> bytes:
        """Take note that input came while the replies `out` were held back.

        Return what to send in their place: nothing may be taken from the time before a TLS handshake
        (CVE-2011-0411).
        """
        if not self.offered.pipelining:
            self.policy.client_sent_early()
        sent, self.unfollowed = self.unfollowed, None
        if self.next_action is NextAction.START_TLS:
            out = self._replace_last_reply(self.engine.starttls)
        if sent is not None and sent.command is not self.engine.connect:
            record_early_input(self, *sent)
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
        self.waiting = None
        self.policy.closed(self)

    # Another client on the same connection.

    def continue_after(self, before: Session) -> None:
        """Begin with what stays true of the connection, and with what XCLIENT said of the client.

        The attributes of XCLIENT hold until another XCLIENT says otherwise, or the client does.
        """
        self.names_clients, self.named_client = before.names_clients, before.named_client
        self.client_identity, self._connection_id = before.client_identity, before._connection_id
        self.unprocessed, self.tls_version = before.unprocessed, before.tls_version
        helo, user = self.named_client.helo or b"", self.named_client.login or b""
        self.policy.introduce(helo, user)
        if user:
            self.authenticated, self.must_authenticate = True, False

    def greet_named_client(self) -> bytes:
        """Greet the client that XCLIENT has named, and answer the input that came behind it."""
        connect = self.engine.connect
        if self.engine.trace is not None:
            self.traced_id = self.id
        decision = self.policy.decide(self, connect.phase) if connect.asks_policy else None
        return self.go_on(connect, b"", decision, self.unprocessed)

    # Input.

    def input_limited(self, window: int) -> None:
        """Go on after NextAction.LIMIT_INPUT with a receive window of so many octets."""
        self.receive_window = window
        self.next_action = self._next_read()

    def receive(self, data: bytes) -> bytes:
        """Take input of the client; return the replies that may leave now."""
        fast_path = self.engine.fast_path
        reply = fast_path(self, data)
        if reply is not None:
            return reply
        return self._process(self.unprocessed + data if self.unprocessed else data)

    def resume(self) -> bytes:
        """Go on after NextAction.SLEEP; return the replies that may leave now."""
        return self._process(self.unprocessed)

    @property
    def pending_lookup(self) -> Awaitable[Any]:
        """What to wait for with NextAction.LOOKUP."""
        assert self.waiting is not None
        return self.waiting.decision.lookup

    def resume_with_answer(self, answer: object) -> bytes:
        """Go on after NextAction.LOOKUP with the answer, or with None if there is none to be had."""
        assert self.waiting is not None
        pending, command, argument = self.waiting
        self.waiting = None
        decision = pending.resume(answer)
        if argument is None:
            self._decide_handshake(decision, command)
            return b""
        self.next_action = READ
        return self.go_on(command, argument, decision, self.unprocessed)

    def go_on(self, command: BoundCommand, argument: Any, decision: Decided, rest: bytes = b"") -> bytes:
        """Carry a command out that the policy has decided on, and answer it and the input behind it."""
        if isinstance(decision, PendingDecision):
            self.wait_for(Waiting(decision, command, argument))
            self.unprocessed = rest
            return b""
        self.line = b""  # it may be that of another command
        offered = self.offered
        reply = self.carry_out(command, argument, decision)
        if self.recipient_replies is None or self.recipient_replies.is_last:
            # What comes before a greeting has been judged already, if XCLIENT was before it.
            followed = bool(rest) and command is not self.engine.connect
            reply = self.check_pipelining(command, reply, offered, followed)
        return self._process(rest, (0, command, reply))

    def go_on_with_reply(self, command: BoundCommand, reply: Reply) -> bytes:
        """Deliver the reply to a command that has been carried out, with nothing behind it."""
        return self._process(b"", (0, command, self.check_pipelining(command, reply, self.offered, False)))

    def go_on_with_message(self, body: MessageBody) -> bytes:
        """Answer a message that has come to its end, with nothing behind it, as its directives ask for."""
        return self._process(b"", self._end_message(None, body, 0, False))

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
        stopped = self.deferred is not None and self.emit_deferred(out, data)
        while not stopped and (
            answered is not None or position < len(data) or self.recipient_replies is not None
        ):
            if not turn:
                self.unprocessed = data[position:]
                self.next_action, self.wait = NextAction.SLEEP, 0.0
                break
            turn -= 1
            if answered is None and self.recipient_replies is not None:
                answered = self.answer_recipient(position, position < len(data))
            elif answered is None:
                if self.engine.successor is not None:
                    self._switch_to_successor()
                answered = (
                    self.read_body(data, position) if self.in_body else self.read_command(data, position)
                )
                if answered is None:
                    break
            position = answered[0]
            if answered[1] is self.engine.bdat:
                answered = self.finish_chunk(answered, position < len(data))
            stopped = self.deliver(out, answered, data)
            answered = None
        slow = self.error_budget is not None and self.error_budget.slow
        pending = self.unprocessed or self.discarded or self.deferred or self.auth_exchange
        self.busy = bool(pending) or slow or self.rejected
        self.needs_general_path = (
            self.busy
            or self.refused > 0
            or self.must_authenticate
            or self.input_fault is not None
            or self.answered_early
        )
        if self.input_fault is not None and self.next_action is READ:
            self.next_action = self._next_read()
        if not (self.offered.pipelining or self.unprocessed or self.deferred):
            self.outstanding = False
        if self.after_421 is not None and self.offered.pipelining:
            self.after_421.feed(data[position:])
        return out[0] if len(out) == 1 else b"".join(out)

    def _next_read(self) -> NextAction:
        """Return how to read what comes next, by the fault in force."""
        fault = self.input_fault
        if fault is None:
            return READ
        if fault.window and fault.window != self.receive_window:
            return NextAction.LIMIT_INPUT
        return NextAction.READ_SLOWLY if fault.rate else READ

    def _switch_to_successor(self) -> None:
        """Go over to the engine that has replaced this one; but what has begun ends under the same rules."""
        if self.stage > GREETED or self.in_body or self.auth_exchange is not None or self.rejected:
            return
        assert self.engine.successor is not None
        self.engine = self.engine.successor.engine
        policy = self.policy
        self.policy = self.engine.policy.for_session(self.client, self.secure)
        policy.replaced_by(self.policy)
