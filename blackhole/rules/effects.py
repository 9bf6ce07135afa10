"""What a rule does: replies, delays, faults, and changes of what EHLO offers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.rules.context import RuleContext
from blackhole.rules.delays import DelayDistribution
from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import NextAction, Reply

CERTIFICATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "expired": "for this host, and out of date for a year",
        "wrong-name": "for another host",
    }
)
"""Certificates that no client should trust, and what is wrong with them."""


PLACEHOLDER: Final = re.compile(r"\{(client|helo|sender|recipient|id)\}")


MAX_REPLY_LINE: Final = 500
"""Octets. RFC 5321 4.5.3.1.5 has 512 with the code before and the line end behind."""


class Template:
    """A reply with blanks for what is known of a context: {client}, {helo}, {sender}, {recipient}, {id}."""

    __slots__ = ("code", "enhanced", "lines")

    def __init__(self, code: int, enhanced: str, *lines: str) -> None:
        self.code: Final = code
        self.enhanced: Final = enhanced
        self.lines: Final = lines

    def fill(self, context: RuleContext) -> Reply:
        """The reply. What a client said comes back as printable ASCII, whatever it was."""

        def value(blank: re.Match[str]) -> str:
            found = getattr(context, blank[1])
            text = f"{found:010X}" if isinstance(found, int) else found
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            return re.sub("[^ -~]", "?", text)

        lines = (PLACEHOLDER.sub(value, line)[:MAX_REPLY_LINE] for line in self.lines)
        return Reply(self.code, self.enhanced, *lines, next_action=action_after(self.code))


def action_after(code: int) -> NextAction:
    """What a reply with this code means for the connection (RFC 5321 3.8)."""
    return NextAction.CLOSE if code == 421 else NextAction.READ


class Effect(NamedTuple):
    """What a rule says to do. One that says nothing means: go on, and ask no further rule."""

    replies: tuple[Reply | Template, ...] = ()
    """To pick one from. One of 2xx is said when the command was done, any other in its place."""
    delay: DelayDistribution | None = None
    fault: Fault | None = None
    replaces_command: bool = False
    """The fault comes in place of the command."""
    hide: tuple[str, ...] = ()
    """EHLO keywords that are not offered."""
    add: tuple[str, ...] = ()
    """EHLO lines that are offered besides."""
    certificate: str = ""
    """A name of CERTIFICATES: what the handshake shows in place of ours."""

    def choose_reply(self, draw: float, context: RuleContext) -> Reply | None:
        """The reply, if there is one."""
        if not self.replies:
            return None
        picked = self.replies[int(draw * len(self.replies))]
        return picked.fill(context) if isinstance(picked, Template) else picked

    @property
    def is_random(self) -> bool:
        """Whether chance has a part in it."""
        return len(self.replies) > 1 or (self.delay is not None and self.delay.is_random)
