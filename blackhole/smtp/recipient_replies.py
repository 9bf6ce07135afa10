"""The replies to a message in LMTP: one for each accepted recipient, in their order (RFC 2033 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blackhole.smtp.replies import Reply


class RecipientReplies:
    """The replies to one message that have yet to leave.

    >>> awaited = RecipientReplies([b"ann@example.com", b"bob@example.com"])
    >>> awaited.recipient, awaited.is_last
    (b'ann@example.com', False)
    >>> awaited.advance()
    >>> awaited.recipient, awaited.is_last
    (b'bob@example.com', True)
    """

    __slots__ = ("_number", "_recipients", "fixed", "mode", "text")

    def __init__(
        self, recipients: Sequence[bytes], fixed: Reply | None = None, text: bytes = b"", mode: str = ""
    ) -> None:
        self._recipients: Final = recipients
        self._number = 0
        self.fixed: Final = fixed
        """The reply to all of them; None: the policy decides on each."""
        self.text: Final = text
        """The header section, as far as the policy looks at it."""
        self.mode: Final = mode
        """The mode that the message asks for."""

    @property
    def recipient(self) -> bytes:
        """The recipient that is answered next."""
        return self._recipients[self._number]

    @property
    def is_last(self) -> bool:
        """Whether no other recipient is answered after this one."""
        return self._number + 1 == len(self._recipients)

    def advance(self) -> None:
        """Go on to the next recipient."""
        self._number += 1
