"""The context of a rule: what rules look at when a command is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Final

from blackhole.rules.attempt_store import HeldSlot
from blackhole.rules.draws import DRAW_MASK, draw_hash, salt
from blackhole.rules.globs import GlobSet
from blackhole.rules.letters import fold_octets
from blackhole.smtp.state import PHASES

PHASE_STATES: Final[Mapping[str, int]] = MappingProxyType({phase: salt(0, phase) for phase in PHASES})
"""Phase -> what is added to the state of its draws."""


TransactionDraws = tuple[tuple[str, ...], int]
"""Source of the draws for one recipient: the phases at which rules have drawn, and the hash of both
addresses and the number of the attempt."""


Saved = tuple[bytes, bytes, bytes, int, TransactionDraws | None]
"""Name, sender, recipient, declared size and draws of a context."""


NO_QUOTAS: Final[dict[tuple[str, bytes], int]] = {}
NO_SLOTS: Final[dict[bytes, HeldSlot]] = {}
"""What a connection has used that has used nothing: shared, and never changed."""


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
        "draws",
        "elapsed",
        "extensions",
        "header",
        "header_matches",
        "held_slots",
        "helo",
        "id",
        "limit_events",
        "listener",
        "message",
        "phase",
        "quota_used",
        "recipient",
        "recipients",
        "secure",
        "sender",
        "server_name",
        "size",
        "tls_version",
        "user",
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
        self.server_name = b""
        """What the client called the server in the TLS handshake (SNI); empty if it did not, or before."""
        self.helo = b""
        self.sender: bytes = b""
        self.recipient: bytes = b""
        """At RCPT the one in the command, after it the last one accepted."""
        self.user: bytes = b""
        """The user that authenticates at AUTH, and has authenticated after it; empty for none."""
        self.size = 0
        """Octets: at MAIL as the client declared them, at the end of the message as received."""
        self.header: Sequence[bytes] = ()
        """Unfolded fields of the header section, at the end of the message and if a rule reads them."""
        self.header_matches: Set[GlobSet] = frozenset()
        """The conditions on header fields that these fulfil."""
        self.extensions: frozenset[str] = frozenset()
        """Keywords of the SMTP extensions that the client has used; only if a rule reads them."""
        self.recipients = 0
        """Recipients of the message, with the one in the command; only if a rule reads it."""
        self.message = 1
        """Number of the message in the connection, from 1; only if a rule reads it."""
        self.tls_version = ""
        """As "TLSv1.3"; empty without TLS. Only if a rule reads it."""
        self.attempt = 1
        """Number of this attempt, from 1."""
        self.draws: TransactionDraws | None = None
        """Source of the seeded draws for the recipient accepted last; None before the first draw."""
        self.elapsed = 0.0
        """Seconds since the rules came into force."""
        self.limit_events: tuple[int, ...] = ()
        """What limiters have decided that nobody has counted yet, as numbers of counters."""
        self.id = 0
        """Number of the transaction."""
        self.quota_used: dict[tuple[str, bytes], int] = NO_QUOTAS
        """What this connection took of its quotas, by the key of the rule and what it is counted for."""
        self.work = 0
        """Rules tried for this client, and as much other work, since other clients last had their turn."""
        self.held_slots: dict[bytes, HeldSlot] = NO_SLOTS
        """Concurrency slots that this connection holds in the store, by their keys."""

    def secured(self, server_name: bytes = b"") -> RuleContext:
        """Return the context after STARTTLS: what the client sent is forgotten (RFC 3207 section 4.2)."""
        context = RuleContext(self.listener, self.client, True)
        context.server_name = server_name
        context.quota_used, context.held_slots = self.quota_used, self.held_slots
        return context

    def update(self, phase: str, argument: bytes = b"", size: int = 0) -> None:
        """Take in a command: its address or name, and the size that MAIL declares.

        What it makes a client start anew with is forgotten when it has been carried out.
        """
        if phase == "MAIL":
            self.sender, self.recipient, self.size = argument, b"", size
            self.draws = None
        elif phase == "RCPT":
            self.recipient, self.draws = argument, None
        elif phase in ("HELO", "EHLO"):
            self.helo = argument or self.helo
        elif phase == "AUTH":
            self.user = argument

    def take_limit_events(self) -> tuple[int, ...]:
        """Return what limiters have decided since the last time, for the caller to count."""
        events, self.limit_events = self.limit_events, ()
        return events

    def save(self) -> Saved:
        """Return the part of the context that a command may change although it is refused."""
        return self.helo, self.sender, self.recipient, self.size, self.draws

    def restore(self, saved: Saved) -> None:
        """Undo what a command has changed since `save`."""
        self.helo, self.sender, self.recipient, self.size, self.draws = saved

    @property
    def texts_length(self) -> int:
        """Octets that conditions on addresses and names have to look at."""
        return (
            len(self.sender) + len(self.recipient) + len(self.helo) + len(self.user) + len(self.server_name)
        )

    @property
    def pair_key(self) -> bytes:
        """Sender and recipient, or the client where there are none; at AUTH the user. In addresses case is
        ignored."""
        if self.sender or self.recipient:
            return fold_octets(b"%b\0%b" % (self.sender, self.recipient))
        return fold_octets(self.user) if self.phase == "AUTH" and self.user else self.client.encode()

    def attempt_key(self, pair_key: bytes) -> bytes:
        """Return the key by which attempts are counted: the phase stands before the pair."""
        return b"%b\0%b" % (self.phase.encode(), pair_key)

    def continue_draws(self) -> bool:
        """Return whether this phase draws with the number of the attempt that an earlier phase counted.

        It does not before the first draw for a recipient, when it comes again, or outside a transaction.
        """
        if self.draws is None or not self.recipient:
            return False
        phases, drawn = self.draws
        if self.phase in phases:
            return False
        self.draws = (*phases, self.phase), drawn
        return True

    def begin_draws(self, pair_key: bytes) -> None:
        """Draw with the number of this attempt from now on."""
        self.draws = (self.phase,), draw_hash(pair_key, self.attempt)

    @property
    def draw_state(self) -> int:
        """The state that the draws of all rules at this phase begin with: 64 bits."""
        drawn = draw_hash(self.pair_key, self.attempt) if self.draws is None else self.draws[1]
        return drawn + PHASE_STATES[self.phase] & DRAW_MASK
