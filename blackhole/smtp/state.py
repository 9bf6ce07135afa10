"""All that a session remembers, and all that a listener says of itself.

Everything that moves a session from one stage to another is here, and a
transaction is forgotten in one place only, `State.reset`, so that no path can
forget to (RFC 5321 3.3; a missing reset is the commonest fault found in SMTP
servers, Postfix's HISTORY of 2026 has four).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from blackhole.rules.model import Rule
from blackhole.smtp.auth import Exchange
from blackhole.smtp.replies import Reply
from blackhole.smtp.violations import NUMBER, VIOLATIONS

PHASES: Final = (
    "CONNECT",
    "HELO",
    "EHLO",
    "STARTTLS",
    "AUTH",
    "MAIL",
    "RCPT",
    "DATA",
    "BDAT",
    ".",
    "RSET",
    "NOOP",
    "VRFY",
    "EXPN",
    "HELP",
    "QUIT",
    "other",
)
"""The one vocabulary. CONNECT is the greeting, "." the end of a message, "other" what is none of ours."""

CODE_SPAN: Final = 400
"""Reply codes 200 to 599 in the table of counters, a row of which is a phase."""

ACCUSED: Final = len(PHASES) * CODE_SPAN
"""Where the violations are counted, in the order of their table: behind the replies."""

NOTED: Final = ACCUSED + len(VIOLATIONS)
"""Where it is counted what became of messages, in the order of `witness.EVENTS`: behind the violations."""

GREETED: Final = 1
MAIL: Final = 2
RCPT: Final = 4
"""What has been accepted so far, as bits, so that a command can name what it needs. Plain integers,
because `&` on an enum.Flag costs 0.6 microseconds."""


class ClientLimits(NamedTuple):
    """How much is borne of one client. 0: any number."""

    soft_errors: int = 0
    """Mistakes after which replies are held back."""
    errors: int = 0
    """Mistakes after which the session is closed."""
    junk: int = 0
    """Commands that are no mistakes and lead nowhere."""
    recipients: int = 0
    """Of a message."""
    messages: int = 0
    """Of a session."""
    metered: bool = False
    """Messages or recipients are counted over all connections of the client."""


Checks = Mapping[bytes, Callable[[bytes], bool]]
"""Parameters of MAIL or RCPT by their upper-case names, and what their values must be."""


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """What one listener is to be: the part of the settings that the conversation depends on."""

    hostname: str = "localhost"
    message_size_limit: int = 0
    """Octets; 0 is no limit."""
    strict: bool = False
    mode: str = "accept"
    delay: tuple[float, float] | None = None
    """Seconds before the reply to each command, drawn evenly from (least, most)."""
    starttls: bool = False
    """There is a certificate."""
    listener: str = ""
    """Its address and port, as rules may name them."""
    rules: tuple[Rule, ...] = ()
    """A scenario's, which come before those of the mode."""
    bare_newline: str = "normalize"
    """What becomes of lines that end with LF alone, a key of settings.NEWLINES."""
    limits: ClientLimits | None = None
    """What is borne of one client; None: everything."""
    dynamic_switch: bool = False
    """A message may say itself how it wants to be treated."""
    auth: bool = False
    """AUTH is offered."""
    auth_plaintext: bool = False
    """Without TLS too."""
    passwords: Mapping[bytes, bytes] | None = field(default=None, repr=False)
    """By user; None: anybody may log in."""


@dataclass(frozen=True, slots=True)
class ListenerReplies:
    """A listener's constant sentences, made once."""

    config: ListenerConfig
    greeting: Reply
    helo: Reply
    ehlo: Reply
    ehlo_secure: Reply
    help: dict[bytes, Reply]
    parameters: tuple[Mapping[bytes, Checks], Mapping[bytes, Checks]]
    """What may stand behind an address, by the FROM or TO before it: without TLS, and under it."""


def cell(phase: str, code: int) -> int:
    """Where the replies with this code, said in this phase, are counted."""
    return PHASES.index(phase) * CODE_SPAN + code - 200


class SessionState:
    """What one session remembers. Commands change it; nothing else does.

    No address is kept. `size` is what MAIL declared, `octets` what came so far:
    all that came over the wire without the closing dot line, dots still stuffed.
    """

    __slots__ = (
        "_id",
        "authenticated",
        "counted_events",
        "eightbit",
        "esmtp",
        "exchange",
        "faults",
        "host",
        "left",
        "new_id",
        "octets",
        "recipients",
        "sampled",
        "secure",
        "size",
        "smtputf8",
        "stage",
    )

    def __init__(self, host: ListenerReplies, new_id: Callable[[], int], secure: bool) -> None:
        self.host = host
        self.new_id = new_id
        self._id = 0
        self.secure = secure
        self.left = False
        """The client said QUIT."""
        self.stage = 0
        self.authenticated = False
        """The client has logged in."""
        self.exchange: Exchange | None = None
        """It is about to: what it says is a response to a challenge."""
        self.recipients = 0
        self.octets = 0
        self.size = 0
        self.smtputf8 = False
        self.eightbit = False
        """MAIL said that octets above 127 may come."""
        self.sampled = True
        """Looked at more closely than is needed to serve it: its name, and what stands in its messages."""
        self.esmtp = False
        """Greeted by EHLO, and so told what is offered."""
        self.faults = 0
        """How often it was accused of something."""
        self.counted_events: list[int] = []
        """The cells of what is yet to be counted: replies, what the client did wrong, what came again, and
        rules that spoke."""

    @property
    def id(self) -> int:
        """The transaction's name, 40 bits; drawn when first asked for."""
        if not self._id:
            self._id = self.new_id()
        return self._id

    def reset(self) -> None:
        """Forget the transaction: what RSET, HELO, EHLO, STARTTLS and the end of a message have in common."""
        self._id = 0
        self.stage &= GREETED
        self.recipients = 0
        self.octets = 0
        self.size = 0
        self.smtputf8 = False
        self.eightbit = False

    def record_violation(self, rule: str) -> None:
        """The client broke a rule of `violations.VIOLATIONS`."""
        self.counted_events.append(ACCUSED + NUMBER[rule])
        self.faults += 1

    def note(self, event: int) -> None:
        """Something of `witness.EVENTS` has happened."""
        self.counted_events.append(NOTED + event)

    def record_rule_hit(self, cell: int) -> None:
        """A rule that is counted there has spoken; 0: it is not counted."""
        if cell:
            self.counted_events.append(cell)
