"""The input of a session in which commands come: lines, taken from chunks of octets."""

from __future__ import annotations

from typing import Final

from blackhole.smtp import replies
from blackhole.smtp.auth import redacted
from blackhole.smtp.body_reader import BodyReader
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
from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.error_budget import Meter
from blackhole.smtp.execution import Answered
from blackhole.smtp.replies import Reply
from blackhole.smtp.sequence import record_body_after_refusal, record_unoffered
from blackhole.smtp.state import BODY, DATA, KEPT_OCTETS, ViolationContext

SECRET: Final = b"..."
"""Stands for a line that is a secret."""


class InputReader(BodyReader):
    """The part of a session that reads input.

    `read_command` answers what begins at a position of the input. It returns None for an incomplete command,
    after it has kept what it needs of it.
    """

    __slots__ = ("_expects_secret", "discarded")

    def __init__(self, engine: EngineTables, secure: bool, client: str, meter: Meter) -> None:
        BodyReader.__init__(self, engine, secure, client, meter)
        self.discarded = 0
        """Octets discarded of a line that is too long."""
        self._expects_secret = False
        """The last command was AUTH: the next line may be a response, and is not to be traced."""

    def read_command(self, data: bytes, start: int) -> Answered | None:
        """Answer the command line at `start`; return None if it is incomplete."""
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        if self.discarded or (len(line) >= MAX_COMMAND_LINE and self._is_too_long(line)):
            if not self.discarded:
                self.line = self._shown_line(line)[:KEPT_OCTETS]
            return self._discard(len(line), end, len(data))
        if end < 0 and not is_binary(line):
            self.unprocessed = line
            return None
        self.line = line
        if line.endswith(b"\r"):
            line = line[:-1] if not line.endswith(b"\r\r") else self._without_line_end(line)
        elif end >= 0 and not is_binary(line) and (refusal := self._check_bare_newline()) is not None:
            return end + 1, self.engine.unknown, refusal
        command, reply = self._answer_line(line, 0 <= end < len(data) - 1)
        if reply is replies.CHUNK_FOLLOWS and not self.awaits_chunk:
            return self.end_chunk(end + 1, end + 1 < len(data))
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
        is_auth = command is engine.auth
        if is_auth or self._expects_secret:
            self.line = self._shown_line(self.line)
            self._expects_secret = is_auth or command is engine.unknown
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
        if rejected is None and command is engine.bdat:
            return self.begin_chunk(argument)
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
        self.record_violation("bare-cr", ViolationContext("", self._shown_line(line)))
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
        command, reply = engine.unknown, replies.TOO_LONG
        if self.auth_exchange is not None:
            self.auth_exchange = None
            command, reply = engine.auth, replies.RESPONSE_TOO_LONG
        return end + 1, command, self.check_pipelining(command, reply, self.offered, end + 1 < available)

    def _check_bare_newline(self) -> Reply | None:
        """Record a line that ends with LF alone (RFC 5321 2.3.8); return the reply where that is refused."""
        self.record_violation("bare-lf", ViolationContext("", self._shown_line(self.line) + b"\n"))
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
            return SECRET
        return redacted(line) if command is self.engine.auth else line

    def _shown_line(self, line: bytes) -> bytes:
        """Return a line as it may be shown in a report, before it is answered."""
        verb = line.split(None, 1)[:1]
        is_known = bool(verb) and verb[0].upper() in self.engine.commands
        if self.auth_exchange is not None or (self._expects_secret and not is_known):
            return SECRET
        return redacted(line) if is_known and verb[0].upper() == self.engine.auth.verb else line
