"""The input of a session in which messages come: the bodies behind DATA, and the chunks behind BDAT."""

from __future__ import annotations

from typing import Final

from blackhole.smtp import replies
from blackhole.smtp.arguments import ANY_MAILBOX
from blackhole.smtp.body_checks import BodyInspector
from blackhole.smtp.chunking import Chunk, read_chunk
from blackhole.smtp.content_inspection import KEPT_CONTENT, ContentInspector
from blackhole.smtp.directives import FIELD_MARK, DirectiveReader, parse_directives
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import Meter
from blackhole.smtp.execution import Answered, CommandExecution
from blackhole.smtp.header_section import fields
from blackhole.smtp.message_body import BARE_LF, FINAL_DOT, ChunkedBody, DotStuffedBody, MessageBody
from blackhole.smtp.policy import Decision
from blackhole.smtp.recipient_replies import RecipientReplies
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import BINARY_BODY, CHUNKED, GREETED, LMTP, UNDECLARED, ViolationContext
from blackhole.smtp.violations import IN_CONTENTS, IN_HEADERS, IN_SIGNATURES

END_OF_MESSAGE: Final = "."
"""The phase of violations in a message."""


class BodyReader(CommandExecution):
    """The part of a session that reads messages.

    `read_body` answers what begins at a position of the input. It returns None for a body or a chunk that is
    incomplete, after it has kept what it needs of it.
    """

    __slots__ = ("_chunk", "_chunk_argument", "answered_early", "next_inspection")

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter) -> None:
        CommandExecution.__init__(self, engine, secure, client, meter)
        self._chunk: Chunk | None = None
        """The chunk under way, until BDAT is answered."""
        self._chunk_argument = b""
        self.answered_early = False
        """The message or the chunk under way was answered already: the rest of it is discarded."""
        self.sampled = engine.inspection.takes_session()
        self.next_inspection = engine.inspection.first_message()
        """The number of the next message whose body is inspected."""

    def read_body(self, data: bytes, start: int) -> Answered | None:
        """Pass over the body from `start`; return the reply to the message, or None if it goes on."""
        engine, body = self.engine, self.body
        if isinstance(body, ChunkedBody):
            return self._read_chunk(body, data, start)
        if body is None:
            body = self.new_dot_stuffed_body()
        position = body.feed(data, start)
        end = position if position >= 0 else len(data)
        self._note_piece(body, data, start, end)
        if self.answered_early:
            return self._discard_body(end) if position >= 0 else None
        if 0 < 2 * engine.config.message_size_limit < body.octets - FINAL_DOT:
            # It might go on for ever, and its reply can be sent now.
            self._check_size_limit(self.octets)
            self.in_body = False
            return self._end_far_too_large(end)
        if self.input_fault is not None:
            # The last octets may be the beginning of the line with the final dot.
            size = body.octets - (FINAL_DOT if position >= 0 else FINAL_DOT - 1)
            if self._fails_after(size):
                return self._fail_in_body(self.engine.end_of_message, end, position < 0)
        if position < 0:
            return None
        self.in_body, self.body = False, None
        self.octets = body.octets - FINAL_DOT
        return self._answer_message(body, position, position < len(data))

    def _fails_after(self, size: int) -> bool:
        """Return whether a fault is due after so many octets of the message."""
        fault = self.input_fault
        return fault is not None and 0 < fault.after <= size

    def _fail_in_body(self, command: BoundCommand, end: int, goes_on: bool) -> Answered:
        """Return what a fault does in the middle of a message: its reply, or the end of the connection.

        `goes_on`: more of the message, or of the chunk, is to come, which is discarded.
        """
        fault = self.input_fault
        assert fault is not None
        self.size = UNDECLARED  # It is compared with what has come.
        self._chunk = None
        self.decision = Decision(fault=fault.ending)
        if fault.reply is None:
            self.in_body = False
            return end, self.engine.data, replies.NO_REPLY
        reply = fault.reply
        reads_on = fault.ending is None and reply.next_action is NextAction.READ
        self.in_body = self.answered_early = goes_on and reads_on
        if command is self.engine.end_of_message and reply.next_action is NextAction.READ:
            reply = self._for_each_recipient(reply)
        return end, command, reply

    def _discard_body(self, end: int) -> Answered:
        """End a message, or a chunk, that was answered before."""
        self.in_body = self.answered_early = False
        return end, self.engine.end_of_message, replies.ALREADY_ANSWERED

    def _note_piece(self, body: MessageBody, data: bytes, start: int, end: int) -> None:
        """Note the octets of a body that have come, and the violations in them."""
        if self.engine.trace is not None:
            self.traced_id = self.id
            for line in data[start:end].splitlines():
                self.engine.trace(self, "RECV", line)
        for violation, line in body.new_violations:
            self.record_sampled_violation(violation, ViolationContext(END_OF_MESSAGE, line))
        if body.new_bare_newline is not None:
            self.record_violation(BARE_LF, ViolationContext(END_OF_MESSAGE, body.new_bare_newline))
        self.octets = body.octets

    def _answer_message(self, body: MessageBody, end: int, followed: bool) -> Answered:
        """Return the reply to a message that has come to its end. `followed`: more input has come."""
        self._check_size_limit(self.octets)
        if isinstance(body.inspector, ContentInspector):
            self._check_content(body.inspector, isinstance(body, DotStuffedBody))
        fixed = None
        if body.has_bare_newline and self.engine.config.bare_newline == "reject":
            fixed = replies.BARE_NEWLINE
        return self._end_message(fixed, body, end, followed)

    def _end_message(self, fixed: Reply | None, body: MessageBody, end: int, followed: bool) -> Answered:
        """Answer the end of a message: with a fixed reply, or as its own directives ask for."""
        text, mode = (b"", "") if fixed is not None else self.read_directives(body)
        if self._answers_recipients:
            self.recipient_replies = RecipientReplies(self.forward_paths, fixed, text, mode)
            return self.answer_recipient(end, followed)
        reply = fixed or self._decide_on_message(text, mode)
        if reply is not replies.PENDING:
            self.check_pipelining(self.engine.end_of_message, reply, self.offered, followed)
        return end, self.engine.end_of_message, reply

    def _end_far_too_large(self, end: int) -> Answered:
        """Answer a message that is not read to its end."""
        reply = replies.FAR_TOO_LARGE
        if self._answers_recipients:
            self.recipient_replies = RecipientReplies(self.forward_paths, reply)
            return self.answer_recipient(end, False)
        return end, self.engine.end_of_message, reply

    @property
    def _answers_recipients(self) -> bool:
        """Whether the message is answered once for each recipient (RFC 2033 4.2)."""
        return self.recipients > 0 and self.engine.config.service == LMTP

    def answer_recipient(self, end: int, followed: bool) -> Answered:
        """Return the reply to the message for its next recipient (RFC 2033 4.2)."""
        awaited, command = self.recipient_replies, self.engine.end_of_message
        assert awaited is not None
        self.policy.begin_recipient(self, awaited.recipient, awaited.is_last)
        reply = awaited.fixed
        if reply is None:
            reply = self._decide_on_message(awaited.text, awaited.mode)
        elif not awaited.is_last:
            reply = reply.going_on()
        if reply is not replies.PENDING and awaited.is_last:
            self.check_pipelining(command, reply, self.offered, followed)
        return end, command, reply

    def _check_size_limit(self, octets: int) -> None:
        """Record a message of so many octets if it is larger than the SIZE in the reply to EHLO.

        Up to a quarter of it may be doubled dots, which the size of a message leaves out (RFC 1870 5).
        """
        if 3 * octets > 4 * self.offered.max_octets:
            detail = f"SIZE {self.offered.max_octets} was offered, {octets} octets came"
            self.record_violation("size-over-limit", ViolationContext(END_OF_MESSAGE, detail=detail))

    def new_dot_stuffed_body(self) -> DotStuffedBody:
        """Begin a body: keep its state for the next piece, and return it."""
        config = self.engine.config
        body = self.body = DotStuffedBody(
            self._new_inspector(),
            config.bare_newline != "normalize",
            self.engine.wanted_fields,
            config.message_directives,
        )
        return body

    def _new_inspector(self) -> BodyInspector | None:
        """Return what inspects the message that begins; None for one that is not inspected."""
        if self.messages < self.next_inspection:
            return None
        self.note_inspection()
        if not (self.engine.config.inspect_content and self.engine.inspection.takes_content()):
            return BodyInspector(self.eightbit)
        inspector = ContentInspector(self.eightbit)
        self.engine.inspection.contents.add(inspector)
        return inspector

    def _check_content(self, inspector: ContentInspector, is_dotted: bool) -> None:
        """Record what is wrong with the content of a message that has come to its end."""
        checked = inspector.checked(self.octets, is_dotted, self.smtputf8, self.engine.config.dkim_keys)
        self.engine.inspection.content_inspected(min(self.octets, KEPT_CONTENT))
        inspections = self.listener.content_inspections
        if checked.has_header:
            self.counted_events.append(inspections[IN_HEADERS])
        if checked.is_whole:
            self.counted_events.append(inspections[IN_CONTENTS])
        if checked.is_verified:
            self.counted_events.append(inspections[IN_SIGNATURES])
        for violation, detail in checked.faults:
            self.record_sampled_violation(violation, ViolationContext(END_OF_MESSAGE, detail=detail))
        if checked.awaiting:
            self.engine.inspection.await_keys(self, checked.awaiting)

    def note_inspection(self) -> None:
        """Take note that the message that is coming is inspected, and choose the next one."""
        self.counted_events.append(self.listener.inspected_message)
        self.next_inspection = self.engine.inspection.message_after(self.messages)

    def read_directives(self, body: MessageBody) -> tuple[bytes, str]:
        """Return the header section that rules look at, and the mode that the message asks for."""
        mode, header = "", body.final_header()
        if isinstance(header, DirectiveReader):
            mode, self.directive_delay = header.directives()
            return b"", mode
        text = header if isinstance(header, bytes) else header.text
        if self.engine.config.message_directives and text.find(FIELD_MARK) >= 0:
            mode, self.directive_delay = parse_directives(fields(text))
        return text, mode

    def _decide_on_message(self, text: bytes, mode: str) -> Reply:
        """Return the reply to a message, or in LMTP to a message for one recipient."""
        end = self.engine.end_of_message
        if not (mode or end.asks_policy):
            return end.do(self, ANY_MAILBOX)
        decision = self.policy.decide(self, end.phase, text, self.octets, mode)
        return self.obey(end, ANY_MAILBOX, decision)

    # Chunks (RFC 3030).

    def begin_chunk(self, argument: bytes) -> tuple[BoundCommand, Reply]:
        """Begin the chunk that follows BDAT. The reply comes behind the chunk, which is read whatever the
        reply is, unless its end is unknown."""
        engine = self.engine
        command = engine.bdat
        if not (engine.offers_chunks or self.offered.has_verb(command.verb)):
            return command, replies.BDAT_NOT_OFFERED
        chunk = read_chunk(argument)
        if chunk is None:
            self.record_violation("syntax")
            return command, replies.BAD_CHUNK_SIZE
        body = self.body
        if not (self.stage & CHUNKED and isinstance(body, ChunkedBody)):
            body = self.body = self._new_chunked_body()
            self.octets = 0
        total = body.octets + chunk.size
        if 0 < 2 * engine.config.message_size_limit < total and not self.refused & CHUNKED:
            self._check_size_limit(total)
            self.size = UNDECLARED  # It is compared with what has come, and nothing comes any more.
            _, command, reply = self._end_far_too_large(0)
            return command, reply
        self.in_body = True
        body.left = chunk.size
        self._chunk, self._chunk_argument = chunk, argument
        return command, replies.CHUNK_FOLLOWS

    def _new_chunked_body(self) -> ChunkedBody:
        """Return the state of a message in chunks. A message that is not text has no lines."""
        is_text = not self.stage & BINARY_BODY
        config = self.engine.config
        return ChunkedBody(
            self._new_inspector() if is_text else None,
            is_text and config.bare_newline != "normalize",
            self.engine.wanted_fields,
            config.message_directives,
        )

    def _read_chunk(self, body: ChunkedBody, data: bytes, start: int) -> Answered | None:
        """Pass over the octets of a chunk from `start`; return the reply to BDAT, or None if it goes on."""
        end = body.feed(data, start)
        self._note_piece(body, data, start, end)
        if self.answered_early:
            return None if body.left else self._discard_body(end)
        if not self.refused & CHUNKED and self._fails_after(body.octets):
            return self._fail_in_chunk(end)
        return None if body.left else self.end_chunk(end, end < len(data))

    def _fail_in_chunk(self, end: int) -> Answered:
        """Return what a fault does in a chunk, or at its end. All further chunks are refused."""
        engine, chunk = self.engine, self._chunk
        if self.stage > GREETED:  # else there is no transaction that could have failed
            if chunk is not None and chunk.is_last:
                return self._fail_in_body(engine.end_of_message, end, self.awaits_chunk)
            self.stage |= CHUNKED
            self.refused |= CHUNKED
            self.outstanding = True  # The client may send the chunks that follow before it reads the reply.
        return self._fail_in_body(engine.bdat, end, self.awaits_chunk)

    def end_chunk(self, end: int, followed: bool) -> Answered:
        """Carry out BDAT when its chunk is complete. `followed`: more input has come."""
        self.in_body = False
        command, offered = self.engine.bdat, self.offered
        reply = self.execute(command, self._chunk_argument)
        if reply is not replies.PENDING:
            reply = self.check_pipelining(command, reply, offered, followed)
        return end, command, reply

    @property
    def awaits_chunk(self) -> bool:
        """Whether octets of a chunk have yet to come."""
        return isinstance(self.body, ChunkedBody) and self.body.left > 0

    def finish_chunk(self, answered: Answered, followed: bool) -> Answered:
        """Return what the reply to BDAT leads to: the reply to the message, if the last chunk is accepted."""
        end, _, reply = answered
        chunk, body = self._chunk, self.body
        if chunk is None or self.in_body or reply is replies.PENDING:
            return answered
        decision = self.decision
        if decision is not None and decision.fault is not None and decision.fault.input is not None:
            self.decision = decision._replace(fault=None)
            if reply.code < 400:
                self.input_fault = decision.fault.input
                if self._fails_after(self.octets):
                    return self._fail_in_chunk(end)
        self._chunk = None
        if reply.next_action is NextAction.END_MESSAGE:
            assert isinstance(body, ChunkedBody)
            self.chunk_decision, self.decision = self.decision, None
            return self._answer_message(body, end, followed)
        if reply.code >= 400:
            if reply is replies.TOO_LARGE:
                self._check_size_limit(self.octets)
            if self.stage <= GREETED:
                self.refused &= ~CHUNKED  # There is no transaction that could have failed.
            elif chunk.is_last:
                answered = end, answered[1], self._for_each_recipient(reply)
                self.reset()
            else:
                self.stage |= CHUNKED
        return answered

    def _for_each_recipient(self, refusal: Reply) -> Reply:
        """Return the refusal of a message, in LMTP as often as there are recipients (RFC 2033 4.2, 4.3)."""
        return refusal.repeated(len(self.forward_paths)) if self._answers_recipients else refusal
