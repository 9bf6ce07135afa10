"""The policy: how a session asks whether a command is to be answered in another way than RFC 5321 suggests.

A session asks once before each command of the phases that its policy names, does as the decision says, and
tells the policy what was answered. `blackhole.rules` has the policy that simulates servers; a sink without
rules has `NO_POLICY`, which asks for nothing and never objects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.state import SessionState
from blackhole.tls_menu import USUAL_TLS, TLSParameters


class Decision(NamedTuple):
    """What to do with one command. A decision without values lets the command pass unchanged."""

    reply: Reply | None = None
    replaces_command: bool = False
    """The command is not carried out. Without a reply, the fault takes the place of the reply too."""
    delay: float | None = None
    """Seconds before the reply leaves; None: as configured for the listener."""
    fault: Fault | None = None
    hidden_keywords: tuple[str, ...] = ()
    """Extensions to leave out of the reply to EHLO."""
    added_lines: tuple[str, ...] = ()
    """Lines to add to the reply to EHLO."""
    tls: TLSParameters = USUAL_TLS
    """How to do the TLS handshake; what is empty is as the listener has it."""
    event: int = 0
    """Number of the event that this decision is counted as; 0: it is not counted."""

    def amend(self, done: Reply) -> Reply:
        """Return the reply to a command that was carried out and would be answered with `done`.

        A refusal stands, and so does a reply of another class: 354 is right at DATA, and not at BDAT. A reply
        that changes what happens next keeps that: a 354 in other words still begins the message.
        """
        own = self.reply
        if own is None:
            return self._amend_ehlo(done) if self.hidden_keywords or self.added_lines else done
        if own.code // 100 != done.code // 100:
            return done
        if done.next_action is NextAction.READ:
            return own
        return Reply(own.code, own.enhanced, *own.lines, next_action=done.next_action)

    def before(self, later: Decision | None) -> Decision:
        """Return the decision on the end of a message whose last chunk this one was made for."""
        later = later or NO_CHANGE
        delays = [delay for delay in (self.delay, later.delay) if delay is not None]
        return later._replace(delay=sum(delays) if delays else None, fault=later.fault or self.fault)

    def _amend_ehlo(self, done: Reply) -> Reply:
        hidden = {keyword.upper() for keyword in self.hidden_keywords}
        host, *lines = done.lines
        offered = (line for line in lines if line.split(" ")[0].upper() not in hidden)
        return Reply(
            done.code, done.enhanced, host, *offered, *self.added_lines, next_action=done.next_action
        )


NO_CHANGE: Final = Decision()
"""Lets a command pass unchanged."""


class PendingDecision(NamedTuple):
    """A decision that depends on an answer that has to be waited for."""

    lookup: Awaitable[Any]
    """What to wait for."""
    resume: Callable[[Any], Decision | PendingDecision | None]
    """Takes the answer, or None where there is none to be had, and returns what `decide` would have."""


class SessionPolicy(Protocol):
    """The policy of one session."""

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        """Decide on a command before it is carried out; None lets it pass.

        `argument` is the address of MAIL and RCPT, the name of HELO and EHLO, the user of AUTH, and at "."
        the octets that the message begins with. `size` is what MAIL declares, and at "." the octets of the
        message.
        `mode` names a mode to apply in place of the listener's.
        """

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        """Take note of the reply to the command that was decided on last. Not called for "."."""

    # What is going to be accepted at once if it passes, in a transaction of which nothing was refused. Each
    # of these methods does as `decide` and, if the command passes, as `answered` or `message_answered`.

    def note(self, session: SessionState, phase: str, argument: bytes) -> None:
        """Take note of a command of the phases that are only noted."""

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        """Decide on RCPT with this address; None lets it pass."""

    def accept_message(
        self, session: SessionState, message: bytes, size: int
    ) -> Decision | PendingDecision | None:
        """Decide on the end of a message of so many octets, which begins with these; None lets it pass."""

    def message_reply_delayed(self, session: SessionState, early: bool) -> None:
        """Take note that the reply to a message waits. `early`: the client has sent more already."""

    def message_answered(self, session: SessionState, code: int, fault: Fault | None) -> None:
        """Take note that the reply to a message has left, or as much of it as the fault lets through."""

    def begin_recipient(self, session: SessionState, recipient: bytes, is_last: bool) -> None:
        """Decide on the end of a message for this recipient, and take note of the reply to it, from now on
        (RFC 2033 4.2)."""

    def client_sent_early(self) -> None:
        """Take note that the client sent something, or closed the connection, while a reply waited."""

    def set_local_address(self, address: Callable[[], str]) -> None:
        """Learn how to find out which local address the client connected to."""

    def introduce(self, helo: bytes, user: bytes) -> None:
        """Learn the name and the user of the client from a server that acts for it; empty for none."""

    def secured(self, server_name: bytes) -> SessionPolicy:
        """Return the policy for the same client under TLS, which knows nothing of what was said before
        (RFC 3207 4.2). `server_name` is what it called the server in the handshake, if that is known."""

    def replaced_by(self, successor: SessionPolicy) -> None:
        """Hand over to a policy with other rules in the middle of a session."""

    def closed(self, session: SessionState) -> None:
        """Take note that the connection is closed, and give back what the session has occupied."""


class ListenerPolicy(Protocol):
    """The policy of a listener."""

    @property
    def phases(self) -> frozenset[str]:
        """The phases whose commands a session asks about."""

    @property
    def header_names(self) -> frozenset[bytes]:
        """The names, in lower case, of the fields that sessions have to collect from each message: see
        `HeaderCollector`. Empty if no header section is wanted."""

    @property
    def noted_phases(self) -> frozenset[str]:
        """Those of the phases whose commands always pass, and need only be noted, unless something was
        refused in the transaction."""

    @property
    def phases_after_refusals(self) -> frozenset[str]:
        """Those of the phases whose commands always pass, and need not be asked about, unless something was
        refused in the transaction."""

    def for_session(self, client: str, secure: bool) -> SessionPolicy:
        """Return the policy for a new session with the client at this address."""


class NoSessionPolicy:
    """Lets every command pass."""

    __slots__ = ()

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        return None

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        pass

    def note(self, session: SessionState, phase: str, argument: bytes) -> None:
        pass

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        return None

    def accept_message(
        self, session: SessionState, message: bytes, size: int
    ) -> Decision | PendingDecision | None:
        return None

    def message_reply_delayed(self, session: SessionState, early: bool) -> None:
        pass

    def message_answered(self, session: SessionState, code: int, fault: Fault | None) -> None:
        pass

    def begin_recipient(self, session: SessionState, recipient: bytes, is_last: bool) -> None:
        pass

    def client_sent_early(self) -> None:
        pass

    def set_local_address(self, address: Callable[[], str]) -> None:
        pass

    def introduce(self, helo: bytes, user: bytes) -> None:
        pass

    def secured(self, server_name: bytes) -> SessionPolicy:
        return self

    def replaced_by(self, successor: SessionPolicy) -> None:
        pass

    def closed(self, session: SessionState) -> None:
        pass


NO_SESSION_POLICY: Final = NoSessionPolicy()


class NoListenerPolicy:
    """The policy of a sink: there is nothing to ask."""

    __slots__ = ()

    phases: frozenset[str] = frozenset()
    header_names: frozenset[bytes] = frozenset()
    noted_phases: frozenset[str] = frozenset()
    phases_after_refusals: frozenset[str] = frozenset()

    def for_session(self, client: str, secure: bool) -> SessionPolicy:
        return NO_SESSION_POLICY


NO_POLICY: Final = NoListenerPolicy()
