"""The input of a session: message bodies and command lines, taken from chunks of octets."""

from __future__ import annotations

from typing import Final

from blackhole.smtp import replies
from blackhole.smtp.arguments import ANY_MAILBOX
from blackhole.smtp.auth import redacted
from blackhole.smtp.body_checks import ALWAYS_INSPECT, INSPECT_EVERY, BodyInspector
from blackhole.smtp.command_line import (
    BEHIND_BLANKS,
    MAX_AUTH_LINE,
    MAX_COMMAND_LINE,
    MAX_DISCARDED,
    PRIVATE_VERB,
    STANDARD_LINE,
    exceeds_standard,
    is_binary,
    reject_line,
)
from blackhole.smtp.directives import DIRECTIVE_FIELDS, DirectiveReader, has_no_directives, parse_directives
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import Meter
from blackhole.smtp.execution import Answered, CommandExecution
from blackhole.smtp.header_section import HeaderCollector, fields
from blackhole.smtp.message_body import FINAL_DOT, MessageBody
from blackhole.smtp.replies import Reply
from blackhole.smtp.sequence import record_body_after_refusal, record_unoffered
from blackhole.smtp.state import BODY, DATA

NEVER: Final = 1 << 62
"""More messages than any session has."""


class InputReader(CommandExecution):
    """A session as far as it reads input.

    `read_body` and `read_command` answer what begins at a position of the input. They return None for an
    incomplete body or command, after they have kept what they need of it.
    """

    __slots__ = ("_expects_secret", "discarded", "next_inspection")

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter, sampled: bool) -> None:
        CommandExecution.__init__(self, engine, secure, client, meter)
        self.discarded = 0
        """Octets discarded of a line that is too long."""
        self._expects_secret = False
        """The last command was AUTH: the next line may be a response, and is not to be traced."""
        self.sampled = sampled
        self.next_inspection = 0 if sampled else NEVER
        """The number of the next message whose body is inspected."""

    def read_body(self, data: bytes, start: int) -> Answered | None:
        """Pass over the body from `start`; return the reply to the message, or None if it goes on."""
        engine, body = self.engine, self.body
        if body is None:
            body = self.body = self._new_body(data, start)
        position = body.feed(data, start)
        end = position if position >= 0 else len(data)
        if engine.trace is not None:
            self.traced_id = self.id
            for line in data[start:end].splitlines():
                engine.trace(self, "RECV", line)
        for violation in body.new_violations:
            self.record_violation(violation)
        self.octets = body.octets
        if 0 < 2 * engine.config.message_size_limit < body.octets - FINAL_DOT:
            # It might go on for ever, and its reply can be sent now.
            self._check_size_limit()
            self.in_body = False
            return end, engine.end_of_message, replies.FAR_TOO_LARGE
        if position < 0:
            return None
        self.in_body = False
        self.octets = body.octets - FINAL_DOT
        self.schedule_inspection()
        self._check_size_limit()
        reply: Reply | None = None
        if body.has_bare_newline and engine.config.bare_newline == "reject":
            reply = replies.BARE_NEWLINE
        if reply is None:
            reply = self._end_message(body.header)
        if reply is not replies.PENDING:
            self.check_pipelining(engine.end_of_message, reply, self.offered, position < len(data))
        return position, engine.end_of_message, reply

    def _check_size_limit(self) -> None:
        """Record a message that is larger than EHLO said is taken.

        Up to a quarter of it may be doubled dots, which the size of a message leaves out (RFC 1870 5).
        """
        if 3 * self.octets > 4 * self.offered.max_octets:
            self.record_violation("size-over-limit")

    def _new_body(self, data: bytes, start: int) -> MessageBody:
        """Return what is to be known of the body that begins at `start`."""
        config = self.engine.config
        header: HeaderCollector | DirectiveReader | None = None
        if self.engine.policy.header_names:
            header = HeaderCollector(self.engine.policy.header_names | DIRECTIVE_FIELDS)
        elif config.message_directives and not has_no_directives(data, start):
            header = DirectiveReader()
        return MessageBody(
            inspector=BodyInspector(self.eightbit) if self.messages >= self.next_inspection else None,
            searches_bare_newlines=config.bare_newline != "normalize",
            header=header,
        )

    def schedule_inspection(self) -> None:
        """Choose the next message whose body is inspected, at the end of one."""
        if self.messages < self.next_inspection or self.engine.config.inspect == "all":
            return
        if self.messages >= ALWAYS_INSPECT - 1:
            self.next_inspection = self.messages + INSPECT_EVERY

    def _end_message(self, header: HeaderCollector | DirectiveReader | None) -> Reply:
        """Answer the end of a message, as its own directives ask for where they are obeyed."""
        end, text, mode = self.engine.end_of_message, b"", ""
        if isinstance(header, DirectiveReader):
            mode, self.directive_delay = header.directives()
        elif header is not None:
            text = header.text
            if self.engine.config.message_directives:
                mode, self.directive_delay = parse_directives(fields(text))
        if not (mode or end.asks_policy):
            return end.do(self, ANY_MAILBOX)
        decision = self.policy.decide(self, end.phase, text, self.octets, mode)
        return self.obey(end, ANY_MAILBOX, decision)

    def read_command(self, data: bytes, start: int) -> Answered | None:
        """Answer the command line at `start`; return None if it is incomplete."""
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        if self.discarded or (len(line) >= MAX_COMMAND_LINE and self._is_too_long(line)):
            return self._discard(len(line), end, len(data))
        if end < 0 and not is_binary(line):
            self.unprocessed = line
            return None
        if line.endswith(b"\r"):
            line = line[:-1] if not line.endswith(b"\r\r") else self._without_line_end(line)
        elif end >= 0 and not is_binary(line) and (refusal := self._check_bare_newline()) is not None:
            return end + 1, self.engine.unknown, refusal
        command, reply = self._answer_line(line, 0 <= end < len(data) - 1)
        return end + 1 or len(data), command, reply

    def _answer_line(self, line: bytes, followed: bool) -> tuple[BoundCommand, Reply]:
        """Answer a command or a response in an AUTH exchange. `followed`: more input has come."""
        engine = self.engine
        answers = self.auth_exchange is not None and not is_binary(line)
        if answers:
            command, argument = engine.auth, line
        else:
            verb, _, argument = line.partition(b" ")
            found = engine.commands.get(verb) or engine.commands.get(verb.upper())
            command, argument = (found, argument) if found is not None else self._find_behind_blanks(line)
        if engine.trace is not None:
            self.traced_id = self.id
            engine.trace(self, "RECV", self._redacted(command, line))
        if len(line) > STANDARD_LINE and exceeds_standard(line) and command is not engine.auth:
            self.record_violation("long-command")
        offered = self.offered
        rejected = reject_line(line, command is engine.unknown)
        if rejected is not None and rejected[1] is replies.NOT_TEXT and self._declares_utf8(line):
            rejected = "syntax", replies.NOT_TEXT
        if self.refused & (DATA | BODY):
            is_private = rejected is None and line.startswith(PRIVATE_VERB)
            record_body_after_refusal(self, command is not engine.unknown or is_private)
        if rejected is None and not (answers or self.rejected):
            is_known = command is not engine.unknown
            record_unoffered(self, command, command.verb if is_known else line.partition(b" ")[0], argument)
        reply = self.execute(command, argument) if rejected is None else self._reject(*rejected)
        if reply is not replies.PENDING:
            reply = self.check_pipelining(command, reply, offered, followed)
        return command, reply

    def _declares_utf8(self, line: bytes) -> bool:
        """Return whether SMTPUTF8 holds for a line. What is no UTF-8 is wrong all the same."""
        return self.smtputf8 or b"SMTPUTF8" in line.upper().split()

    def _find_behind_blanks(self, line: bytes) -> tuple[BoundCommand, bytes]:
        """Return the command and its argument where blanks precede the verb, or a tab ends it."""
        engine, match = self.engine, BEHIND_BLANKS.fullmatch(line)
        command = None if match is None else engine.commands.get(match[2].upper())
        if match is None or command is None:
            return engine.unknown, line.partition(b" ")[2]
        if match[1] or match[3]:  # else there are just blanks at the end, which do no harm (RFC 5321 4.1.1)
            if engine.config.strict:
                return engine.unknown, b""
            self.record_violation("syntax")
        return command, match[3] or b""

    def _without_line_end(self, line: bytes) -> bytes:
        """Return a line that ends with several CRs and a LF without them, but with all but one if strict."""
        if self.engine.config.strict:
            return line[:-1]
        self.record_violation("bare-cr")
        return line.rstrip(b"\r")

    def _is_too_long(self, line: bytes) -> bool:
        """Return whether a line of at least MAX_COMMAND_LINE octets, without its LF, is too long."""
        is_auth = self.auth_exchange is not None or line[:5].upper() == b"AUTH "
        limit = MAX_AUTH_LINE if is_auth and self.engine.config.auth else MAX_COMMAND_LINE
        return len(line) >= limit and not is_binary(line)

    def _discard(self, length: int, end: int, available: int) -> Answered | None:
        """Discard a piece of an over-long line; return the reply to it once its end has come, if ever."""
        engine = self.engine
        self.discarded += length
        if self.discarded >= MAX_DISCARDED:
            self.record_violation("long-command")
            return available, engine.unknown, replies.FAR_TOO_LONG
        if end < 0:
            return None
        self.discarded = 0
        self.record_violation("long-command")
        if self.auth_exchange is not None:
            self.auth_exchange = None
            return end + 1, engine.auth, replies.RESPONSE_TOO_LONG
        return end + 1, engine.unknown, replies.TOO_LONG

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
