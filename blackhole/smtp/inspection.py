"""The choice of what is inspected more closely than is needed to serve it: sessions and messages."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from weakref import WeakSet

from blackhole.messages.dkim_verification import MessageSignature

NEVER: Final = 1 << 62
"""More messages than any session has, and more sessions than any listener."""

INSPECTED_PER_SECOND: Final = 500
"""Sessions, and messages, of a listener in one worker that are all inspected in a second. That takes about a
hundredth of a processor, and is the rate of a sender under test rather than of a load test."""

INSPECT_EVERY: Final = 64
"""Beyond that, one in so many is inspected."""

CONTENT_OCTETS_PER_SECOND: Final = 8 << 20
"""Octets of content of a listener in one worker that are inspected in a second of a sample."""

CONTENT_COST: Final = 16384
"""Octets that each message counts for, however short it is."""

MAX_CONTENTS: Final = {"all": 256, "sample": 16, "off": 0}
"""Messages whose content is kept at the same time, by what is inspected."""


MAX_AWAITING: Final = 64
"""Messages whose signatures wait for their keys at the same time."""

MAX_AWAITING_OCTETS: Final = 65536
"""Octets of what is signed, in a message that waits."""


class AwaitingMessage(NamedTuple):
    """A message that has ended, and whose signatures can be verified once their keys have come."""

    session: Any
    signatures: tuple[MessageSignature, ...]


class InspectionPlan:
    """Chooses the sessions and the messages of a listener that are inspected: all, a sample, or none (off).

    In a sample, the messages are chosen from all sessions alike: what is seen in a few messages of each of
    many sessions says more than what is seen in many messages of a few sessions.

    >>> plan = InspectionPlan("all")
    >>> plan.takes_session(), plan.first_message(), plan.message_after(0)
    (True, 0, 1)
    """

    __slots__ = (
        "_allowance",
        "_content_allowance",
        "_content_left",
        "_every",
        "_max_contents",
        "_messages_left",
        "_sessions",
        "_sessions_left",
        "awaiting",
        "contents",
    )

    def __init__(self, how: str) -> None:
        self._allowance: Final = {"all": NEVER, "sample": INSPECTED_PER_SECOND, "off": 0}[how]
        self._every: Final = NEVER if how == "off" else INSPECT_EVERY
        self._content_allowance: Final = CONTENT_OCTETS_PER_SECOND if how == "sample" else NEVER
        self._max_contents: Final = MAX_CONTENTS[how]
        self.contents: Final[WeakSet[Any]] = WeakSet()
        """What keeps the content of messages that are inspected now, as long as it lives."""
        self.awaiting: list[AwaitingMessage] = []
        """Messages whose signatures wait for their keys."""
        self._sessions = 0
        self.refill()

    def refill(self) -> None:
        """Allow as many inspections again as may be made in a second; to be called once a second."""
        self._sessions_left = self._messages_left = self._allowance
        self._content_left = self._content_allowance

    def takes_session(self) -> bool:
        """Return whether to inspect the next session."""
        self._sessions += 1
        if self._sessions_left > 0:
            self._sessions_left -= 1
            return True
        return not self._sessions % self._every

    def first_message(self) -> int:
        """Return the number, from 0, of the first message to inspect of the session that was asked about
        last."""
        if self._messages_left > 0:
            return 0
        return self._sessions % INSPECT_EVERY if self._every == INSPECT_EVERY else NEVER

    def message_after(self, number: int) -> int:
        """Return the number of the message to inspect next, when the message of this number was inspected."""
        self._messages_left -= 1
        return number + (1 if self._messages_left > 0 else self._every)

    def takes_content(self) -> bool:
        """Return whether the content of the message that begins is inspected too."""
        if self._content_left <= 0 or len(self.contents) >= self._max_contents:
            return False
        self._content_left -= CONTENT_COST
        return True

    def content_inspected(self, octets: int) -> None:
        """Take note of how much content was inspected of a message."""
        self._content_left -= octets

    def await_keys(self, session: Any, signatures: tuple[MessageSignature, ...]) -> None:
        """Keep the signatures of a message until their keys have come, as far as there is room for them."""
        octets = sum(len(signature.data) for signature in signatures)
        if len(self.awaiting) < MAX_AWAITING and octets <= MAX_AWAITING_OCTETS:
            self.awaiting.append(AwaitingMessage(session, signatures))
