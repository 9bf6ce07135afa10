"""What rules look at: one client, what it has said, and what it says now."""

from __future__ import annotations

from collections.abc import Sequence

from blackhole.rules.attempt_store import Slot


class RuleContext:
    """All that rules may look at: one client, what it said so far, and what it says now."""

    __slots__ = (
        "attempt",
        "client",
        "elapsed",
        "header",
        "held_slots",
        "helo",
        "id",
        "listener",
        "phase",
        "quota_used",
        "recipient",
        "refused_phase",
        "secure",
        "sender",
        "size",
    )

    def __init__(self, listener: str = "", client: str = "", secure: bool = False) -> None:
        self.listener = listener
        """Its address and port, as the operator wrote them."""
        self.client: str = client
        self.secure = secure
        self.phase = "CONNECT"
        self.helo = b""
        self.sender: bytes = b""
        self.recipient: bytes = b""
        """The one being asked for at RCPT; behind it the last that was taken."""
        self.size = 0
        """Octets: as MAIL declared them, at "." as they came."""
        self.header: Sequence[bytes] = ()
        """The fields of the message's header section, unfolded. At "." only, and only if a rule asks."""
        self.attempt = 1
        """How many times this was tried, this time included."""
        self.elapsed = 0.0
        """Seconds since the server started."""
        self.id = 0
        """The transaction's."""
        self.refused_phase = ""
        """MAIL or RCPT, if the last of them was."""
        self.quota_used: dict[tuple[str, str], int] = {}
        """What this connection has used of its quotas, by what is counted and the rule."""
        self.held_slots: list[Slot] = []
        """Where this connection counts as being there, for the memory."""

    def secured(self) -> RuleContext:
        """What is known under TLS: who it is, and what cannot be undone (RFC 3207 4.2)."""
        context = RuleContext(self.listener, self.client, True)
        context.quota_used, context.held_slots = self.quota_used, self.held_slots
        return context

    def update(self, phase: str, said: bytes = b"", size: int = 0) -> None:
        """What the client says now: an address or a name, and octets, where the phase has them."""
        if phase == "MAIL":
            self.sender, self.recipient, self.refused_phase, self.size = said, b"", "", size
        elif phase == "RCPT":
            self.recipient = said
        elif phase == ".":
            self.size = size
        elif phase in ("HELO", "EHLO", "RSET"):
            self.sender, self.recipient, self.refused_phase = b"", b"", ""
            self.helo = said or self.helo

    @property
    def attempt_key(self) -> bytes:
        """What is tried: this phase for this sender and recipient; for this client where there is neither."""
        if self.sender or self.recipient:
            return b"\0".join((self.phase.encode(), self.sender.lower(), self.recipient.lower()))
        return b"\0".join((self.phase.encode(), self.client.encode()))

    @property
    def draw_key(self) -> bytes:
        """The same, and how many times it was."""
        return b"%b\0%d" % (self.attempt_key, self.attempt)
