"""A session that records its transactions, for listeners of which the operator asks for it.

It replaces nothing of `Session`, and a session that is not recorded knows nothing of it. What the fast path
answers is recorded by a function around it, without taking the input apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from blackhole.smtp.auth import redacted
from blackhole.smtp.command_line import BEHIND_BLANKS
from blackhole.smtp.engine_tables import BoundCommand, EngineTables, FastPath, no_fast_path
from blackhole.smtp.error_budget import Meter
from blackhole.smtp.execution import Answered, Decided
from blackhole.smtp.faults import Fault
from blackhole.smtp.input_reader import SECRET
from blackhole.smtp.message_body import MessageBody
from blackhole.smtp.named_client import NO_NAMED_CLIENT
from blackhole.smtp.policy import Decision
from blackhole.smtp.replies import Reply
from blackhole.smtp.session import Session
from blackhole.smtp.state import GREETED, SessionState, ViolationContext
from blackhole.smtp.transaction_record import (
    ENDED_BY_CLOSE,
    ENDED_BY_COMMAND,
    ENDED_BY_MESSAGE,
    MAX_FIRST,
    MAX_GROUP,
    MAX_RECORDED_COMMAND,
    MAX_RECORDED_REPLY,
    NO_PHASE,
    PHASE_NUMBERS,
    TransactionRecord,
    encode_addendum,
    encode_introduction,
)
from blackhole.smtp.wanted_fields import WantedFieldReader, WantedFields

CONNECT_PHASE: Final = PHASE_NUMBERS["CONNECT"]


@dataclass(frozen=True)
class Recorder:
    """What the recorded sessions of a listener share."""

    clock: Callable[[], float]
    """Returns the seconds since 1970."""
    publish: Callable[[bytes], int]
    """Takes a record, and returns its number."""
    wanted: WantedFields
    """The fields of header sections to keep."""
    about: tuple[bytes, bytes]
    """Address of the listener, and the names of these fields with commas between them."""
    mode: bytes
    """The listener's mode."""
    log: Callable[[Any, bytes], None] | None = None
    """Takes a session and the record of its transaction, for the log; None where nobody logs it."""
    namespace_of: Callable[[Any, bool], bytes] | None = None
    """Takes the policy of a session, and whether its last command has ended the transaction, and returns the
    namespace of that; None where there are no namespaces."""


class RecordedSession(Session):
    """A session that records its transactions.

    The record of a message is published before its reply is returned, so a client that has read the
    reply finds the record.
    """

    __slots__ = (
        "_accepted",
        "_directive_mode",
        "_fields",
        "_forwarded_client",
        "_helo",
        "_introduction",
        "_is_closed",
        "_line",
        "_published",
        "_recorder",
        "_rule",
        "_size",
        "fast_input",
        "record",
        "tls",
    )

    def __init__(
        self, recorder: Recorder, engine: EngineTables, secure: bool, client: str, meter: Meter
    ) -> None:
        Session.__init__(self, engine, secure, client, meter)
        self._recorder = recorder
        self.record = TransactionRecord()
        """What is remembered of the transaction under way."""
        self._introduction = b""
        """Made when it is first needed."""
        self.tls = ""
        """Version and cipher of TLS, as its caller says after the handshake."""
        self.fast_input: bytes | None = None
        """Input that the fast path is looking at, until the general path takes it over."""
        self._helo = b""
        self._line = b""
        """The command that is being answered, without secrets."""
        self._fields: WantedFieldReader | None = None
        """Reads the header section of the message that arrives in pieces."""
        self._directive_mode = ""
        self._rule = b""
        """The rule that has decided on the command."""
        self._forwarded_client = NO_NAMED_CLIENT
        """What XFORWARD has said about the client of the transaction that was reset last."""
        self._accepted = self._size = 0
        """Recipients and octets of the transaction that was reset last."""
        self._published: int | None = None
        """Number of the last record of this session."""
        self._is_closed = False

    # The fast path.

    def begin_fast(self, data: bytes) -> None:
        """Take note of input that the fast path looks at next."""
        self.fast_input = data

    def check_fast(self, commands: bytes) -> None:
        """Finish the record of what the fast path has answered last, if its exchange is not enough."""
        record = self.record
        if len(commands) > MAX_GROUP:
            record.add_group(record.exchanges.pop()[0], commands)
            return
        if len(record.exchanges) > MAX_FIRST:
            record.add(record.exchanges.pop())
        if self.stage <= GREETED:  # HELO, EHLO, RSET, or QUIT
            verb = commands[:4].upper()
            if verb in (b"HELO", b"EHLO"):
                self._helo, self._introduction = commands[5:-2], b""
            self._end_unless_message(verb.decode(), 250)

    def read_piece(self, data: bytes) -> None:
        """Read the wanted fields in the next piece of a message."""
        if self._fields is None:
            self._fields = WantedFieldReader(self._recorder.wanted)
        self._fields.feed(data)

    def read_last_piece(self, data: bytes) -> None:
        """Read the wanted fields in the last piece of a message, or in one that comes as a whole."""
        if self._fields is None:
            self.record.fields = self._recorder.wanted.find(data)
        else:
            self._fields.feed(data)

    def _take_over(self, command: BoundCommand, rest: bytes) -> None:
        """Note the input that the general path takes over from the fast path; `rest` is behind it."""
        data, self.fast_input = self.fast_input, None
        if data is None:
            return
        if command is self.engine.end_of_message:
            self.read_last_piece(data)
            return
        head = data[: len(data) - len(rest)]
        before = head.rfind(b"\n", 0, len(head) - 1) + 1
        self._line = head[before:]
        if before:  # the beginning of a group, which consists of MAIL and RCPT
            self.record.add_group(self._recorder.clock(), head[:before])

    def go_on(self, command: BoundCommand, argument: Any, decision: Decided, rest: bytes = b"") -> bytes:
        self._take_over(command, rest)
        return Session.go_on(self, command, argument, decision, rest)

    def go_on_with_reply(self, command: BoundCommand, reply: Reply) -> bytes:
        self._take_over(command, b"")
        return Session.go_on_with_reply(self, command, reply)

    def go_on_with_message(self, body: MessageBody) -> bytes:
        self._take_over(self.engine.end_of_message, b"")
        return Session.go_on_with_message(self, body)

    # The general path.

    def greet(self) -> bytes:
        out = Session.greet(self)
        if out and not self.record.exchanges:
            self.record.add((self._recorder.clock(), CONNECT_PHASE, b"", out[:MAX_RECORDED_REPLY], b""))
        return out

    def read_command(self, data: bytes, start: int) -> Answered | None:
        if not self.discarded:
            end = data.find(b"\n", start, start + MAX_RECORDED_COMMAND) + 1
            self._line = self._without_secret(data[start : end or start + MAX_RECORDED_COMMAND])
        return Session.read_command(self, data, start)

    def _without_secret(self, line: bytes) -> bytes:
        """Return a line as it may be recorded."""
        words = BEHIND_BLANKS.fullmatch(line.rstrip(b"\r\n"))
        verb = b"" if words is None else words[2].upper()
        # A response may come after AUTH was refused, before the client knows that.
        if self.auth_exchange is not None or (self._expects_secret and verb not in self.engine.commands):
            return SECRET
        self._expects_secret = verb == b"AUTH"
        return redacted(line) if self._expects_secret else line

    def read_body(self, data: bytes, start: int) -> Answered | None:
        if self.answered_early:
            return Session.read_body(self, data, start)  # The record is published.
        answered = Session.read_body(self, data, start)
        self.read_piece(data[start : answered[0] if answered is not None else len(data)])
        return answered

    def read_directives(self, body: MessageBody) -> tuple[bytes, str]:
        text, self._directive_mode = Session.read_directives(self, body)
        return text, self._directive_mode

    def carry_out(self, command: BoundCommand, argument: Any, decision: Decision | None) -> Reply:
        if decision is not None:
            if decision.event:
                self._rule = b"%d" % decision.event
            elif self._directive_mode:
                self._rule = b"X-Blackhole-Mode: " + self._directive_mode.encode()
            else:
                self._rule = b"mode " + self._recorder.mode
        return Session.carry_out(self, command, argument, decision)

    def keep_violation_context(self, name: str, violation_context: ViolationContext | None) -> None:
        SessionState.keep_violation_context(self, name, violation_context)
        if self._is_closed or (self.after_421 is not None and not self.record.exchanges):
            if self._published is not None:
                self._recorder.publish(encode_addendum(self._published, name, b""))
            return
        line = b"" if violation_context is None else violation_context.line
        self.record.mark_violation(name, (line or self._shown_by(name)).rstrip(b"\r\n"))

    def _shown_by(self, violation: str) -> bytes:
        """Return the line that shows a violation; nothing where no line does."""
        if violation.startswith("size-"):
            return self.record.mail_command()
        # The fast path finds fault with names in HELO and EHLO, but its input may also be a body.
        is_helo = violation.startswith("hello-") and self.fast_input is not None
        return self.fast_input or b"" if is_helo else self._line

    def emit(self, out: list[bytes], command: BoundCommand, reply: Reply, fault: Fault | None) -> bool:
        messages = self.messages
        stopped = Session.emit(self, out, command, reply, fault)
        wire = out[-1]
        if self.deferred is not None and self.deferred.rest is not None:  # it drips
            wire += self.deferred.rest
        note = self._rule if fault is None else self._rule + b"\0" + fault.name.encode()
        line, self._line, self._rule = self._line, b"", b""
        phase = PHASE_NUMBERS[command.phase]
        self.record.add((self._recorder.clock(), phase, line, wire[:MAX_RECORDED_REPLY], note))
        if command.is_helo and reply.code < 400:
            self._helo, self._introduction = line.rstrip().partition(b" ")[2], b""
        if self.messages == messages:
            self._end_unless_message(command.phase, reply.code)
            return stopped
        self.publish(ENDED_BY_MESSAGE)
        return stopped

    def _replace_last_reply(self, command: BoundCommand) -> bytes:
        out = Session._replace_last_reply(self, command)
        self.record.replace_last_reply(out)
        return out

    def continue_after(self, before: Session) -> None:
        Session.continue_after(self, before)
        assert isinstance(before, RecordedSession)
        self.tls, self._helo = before.tls, self.named_client.helo or b""

    # The end of a transaction.

    def reset(self) -> None:
        self._forwarded_client = self.forwarded_client
        self._accepted, self._size = self.recipients, self.octets
        Session.reset(self)

    def _end_unless_message(self, phase: str, code: int) -> None:
        """End the transaction if the command that was answered last has done so, or has begun another."""
        record = self.record
        if not record.has_transaction():
            record.shorten_prelude()
        elif phase in ("MAIL", "HELO", "EHLO", "STARTTLS"):
            if code < 400 or phase == "MAIL":
                last = record.take_last()
                if record.has_transaction():
                    self.publish(ENDED_BY_COMMAND)
                record.add(last)
        elif phase in ("RSET", "QUIT") and code < 400:
            self.publish(ENDED_BY_COMMAND if phase == "RSET" else ENDED_BY_CLOSE)

    def closed(self) -> None:
        Session.closed(self)
        record = self.record
        if record.exchanges and (record.has_transaction() or record.has_refusal()):
            self.publish(ENDED_BY_CLOSE)
        self._is_closed = True

    def closed_with(self, reply: Reply) -> None:
        """Record a reply that ends the connection and that its caller has sent in the session's place."""
        if self.record.exchanges:
            self.record.add((self._recorder.clock(), NO_PHASE, b"", reply.wire, b""))

    def publish(self, ending: int) -> None:
        """Publish the record, and begin the next."""
        record, recorder = self.record, self._recorder
        if ending == ENDED_BY_CLOSE:
            self._accepted, self._size = self.recipients, self.octets
            self._forwarded_client = self.forwarded_client
        if self._fields is not None:
            record.fields = self._fields.fields()
            self._fields, self._directive_mode = None, ""
        if self._forwarded_client is NO_NAMED_CLIENT:
            introduction = self._introduction or self._introduce()
        else:
            introduction = self._introduce_forwarded()
        if recorder.namespace_of is not None:
            namespace = recorder.namespace_of(self.policy, ending == ENDED_BY_COMMAND)
            if namespace:
                record.mark_namespace(namespace)
        octets = record.encode(ending, self._accepted, self._size, introduction)
        publish, log = recorder.publish, recorder.log
        self._published = publish(octets)
        if log is not None:
            log(self, octets)
        record.clear()
        self._accepted = self._size = 0

    def _introduce_forwarded(self) -> bytes:
        """Return the introduction of the client that XFORWARD has named; it names no other one after that."""
        forwarded, self._forwarded_client = self._forwarded_client, NO_NAMED_CLIENT
        client = self.client if forwarded.address is None else forwarded.address
        helo = self._helo if forwarded.helo is None else forwarded.helo
        about, tls = self._recorder.about, self.tls.encode()
        return encode_introduction(*about, client.encode(), helo[:MAX_RECORDED_COMMAND], tls)

    def _introduce(self) -> bytes:
        client, helo = self.client.encode(), self._helo[:MAX_RECORDED_COMMAND]
        self._introduction = encode_introduction(*self._recorder.about, client, helo, self.tls.encode())
        return self._introduction


def recorded(fast_path: FastPath, recorder: Recorder) -> FastPath:
    """Return a fast path that records what another one answers."""
    clock = recorder.clock

    def answer(session: RecordedSession, data: bytes) -> bytes | None:
        in_body = session.in_body
        session.begin_fast(data)
        reply = fast_path(session, data)
        if session.fast_input is None:
            return reply  # the general path has answered a part of it, and recorded all of it
        session.fast_input = None
        if reply is None:
            return None
        record = session.record
        exchanges = record.exchanges
        if session.in_body and in_body:
            session.read_piece(data)
            return reply
        if in_body:
            record.add((clock(), b"", reply))
            session.read_last_piece(data)
            session.publish(ENDED_BY_MESSAGE)
            return reply
        if session.stage <= GREETED or session.quit_received:
            exchanges.append((clock(), data, reply))
            session.check_fast(data)
            return reply
        exchanges.append((clock(), data))
        if len(exchanges) > MAX_FIRST or len(data) > MAX_GROUP:
            session.check_fast(data)
        return reply

    return fast_path if fast_path is no_fast_path else answer
