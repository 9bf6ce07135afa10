"""The context of a rule: what rules look at when a command is decided."""

from __future__ import annotations

from collections.abc import Sequence, Set

from blackhole.rules.attempt_store import HeldSlot
from blackhole.rules.globs import GlobSet
from blackhole.rules.letters import fold_octets


class RuleContext:
    """One client, what it has sent so far, and the command that is decided.

    >>> context = RuleContext(client="192.0.2.1")
    >>> context.update("MAIL", b"ann@example.com")
    >>> context.update("RCPT", b"bob@example.com")
    >>> context.sender, context.recipient
    (b'ann@example.com', b'bob@example.com')
    """

    __slots__ = (
        "attempt",
        "client",
        "counted_key",
        "elapsed",
        "header",
        "header_matches",
        "held_slots",
        "helo",
        "id",
        "listener",
        "phase",
        "quota_used",
        "recipient",
        "secure",
        "sender",
        "size",
        "work",
    )

    def __init__(self, listener: str = "", client: str = "", secure: bool = False) -> None:
        self.listener = listener
        """Address and port, as the operator wrote them."""
        self.client: str = client
        """IP address; empty for a Unix socket."""
        self.secure = secure
        """The connection is under TLS."""
        self.phase = "CONNECT"
        self.helo = b""
        self.sender: bytes = b""
        self.recipient: bytes = b""
        """At RCPT the one in the command, after it the last one accepted."""
        self.size = 0
        """Octets: at MAIL as the client declared them, at the end of the message as received."""
        self.header: Sequence[bytes] = ()
        """Unfolded fields of the header section, at the end of the message and if a rule reads them."""
        self.header_matches: Set[GlobSet] = frozenset()
        """The conditions on header fields that these fulfil."""
        self.counted_key = b""
        """The key by which this attempt was counted; empty if it was not."""
        self.attempt = 1
        """Number of this attempt, from 1."""
        self.elapsed = 0.0
        """Seconds since the rules came into force."""
        self.id = 0
        """Number of the transaction."""
        self.quota_used: dict[tuple[str, bytes], int] = {}
        """What this connection took of its quotas, by the key of the rule and the domain, if any."""
        self.work = 0
        """Rules tried for this client, and as much other work, since other clients last had their turn."""
        self.held_slots: list[HeldSlot] = []
        """Concurrency slots that this connection holds in the store."""

    def secured(self) -> RuleContext:
        """Return the context after STARTTLS: what the client sent is forgotten (RFC 3207 section 4.2)."""
        context = RuleContext(self.listener, self.client, True)
        context.quota_used, context.held_slots = self.quota_used, self.held_slots
        return context

    def update(self, phase: str, argument: bytes = b"", size: int = 0) -> None:
        """Take in a command: its address or name, and the size that MAIL declares.

        What it makes a client start anew with is forgotten when it has been carried out.
        """
        if phase == "MAIL":
            self.sender, self.recipient, self.size = argument, b"", size
        elif phase == "RCPT":
            self.recipient = argument
        elif phase in ("HELO", "EHLO"):
            self.helo = argument or self.helo

    @property
    def texts_length(self) -> int:
        """Octets that conditions on addresses and names have to look at."""
        return len(self.sender) + len(self.recipient) + len(self.helo)

    @property
    def attempt_key(self) -> bytes:
        """The key by which attempts are counted: phase, sender and recipient, or phase and client."""
        if self.sender or self.recipient:
            return b"\0".join((self.phase.encode(), fold_octets(self.sender), fold_octets(self.recipient)))
        return b"\0".join((self.phase.encode(), self.client.encode()))

    @property
    def draw_key(self) -> bytes:
        """The key of what is drawn for this attempt."""
        return b"%b\0%d" % (self.counted_key or self.attempt_key, self.attempt)
