"""Input after 421: what a client may still send once such a reply has closed the session.

It may say QUIT (RFC 5321 3.8). Where it was offered PIPELINING, what was on its way belongs to the group of
the refused command, which ends with a command whose reply has to be waited for (RFC 2920 3.1).
"""

from __future__ import annotations

from typing import Final

from blackhole.smtp.engine_tables import BoundCommand, EngineTables
from blackhole.smtp.state import ViolationContext

QUIT: Final = b"QUIT"

MAX_KEPT: Final = 2048
"""Octets of an unfinished line that are kept."""


class InputAfter421:
    """Judges what comes behind a 421. The verdict does not depend on how the octets are cut."""

    __slots__ = ("_commands", "_line", "_on_its_way", "ended", "violation_context")

    def __init__(self, engine: EngineTables, command: BoundCommand, pipelining: bool) -> None:
        self._commands = engine.commands
        self._on_its_way = pipelining and not command.last and command is not engine.connect
        """What comes next may have been sent before the client saw the 421."""
        self._line = b""
        self.ended = False
        """Further input makes no difference."""
        self.violation_context: ViolationContext | None = None
        """What the client sent and may not send, without what may be a secret."""

    def feed(self, data: bytes) -> None:
        """Take the next octets."""
        if self.ended:
            return
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[:MAX_KEPT]
        for line in lines:
            self._take(line)
            if self.ended:
                return
        if not (self._on_its_way or QUIT.startswith(self._line.rstrip().upper())):
            self._end(self._line)

    @property
    def talked(self) -> bool:
        """Whether the client has sent what it may not send."""
        return self.violation_context is not None

    def _end(self, line: bytes) -> None:
        """Keep what the client may not send, and ignore all further input."""
        self.ended = True
        command = self._commands.get(line.partition(b" ")[0].rstrip().upper())
        is_shown = command is not None and command.phase != "AUTH"
        self.violation_context = ViolationContext(
            "other" if command is None else command.phase, line if is_shown else b""
        )

    def _take(self, line: bytes) -> None:
        """Take a whole line."""
        if line.rstrip().upper() == QUIT:
            self.ended = True
        elif not self._on_its_way:
            self._end(line)
        else:
            command = self._commands.get(line.partition(b" ")[0].rstrip().upper())
            self._on_its_way = command is None or not command.last
