"""The inspection of the content of one message: a bounded copy of it, which is checked at its end."""

from __future__ import annotations

from typing import Final

from blackhole.messages.dkim_verification import DKIMKeys
from blackhole.messages.message_checks import NO_KEYS, CheckedMessage, check_message
from blackhole.smtp.body_checks import BodyInspector

KEPT_CONTENT: Final = 256 * 1024
"""Octets of a message that are kept until its end, at most."""


class ContentInspector(BodyInspector):
    """Inspects the octets of a message as they come, and its content at its end.

    >>> inspector = ContentInspector(eightbit=False)
    >>> inspector.inspect(b"Subject: x\\r\\n\\r\\nHello\\r\\n", b"\\r\\n")
    []
    >>> inspector.checked(21, is_dotted=True, smtputf8=False).faults[0].violation
    'no-from'
    """

    __slots__ = ("__weakref__", "_content")

    inspected_octets = KEPT_CONTENT

    def __init__(self, eightbit: bool) -> None:
        super().__init__(eightbit)
        self._content = bytearray()

    def inspect(self, piece: bytes, before: bytes) -> list[tuple[str, bytes]]:
        """Return the violations that show first in this piece, and keep it."""
        self._content += piece
        return super().inspect(piece, before)

    def content(self, octets: int, is_dotted: bool) -> bytes:
        """Return what is kept of a message of so many octets. `is_dotted`: it has doubled dots."""
        text = bytes(self._content[:octets])
        if is_dotted and b"." in text:
            text = text.removeprefix(b".").replace(b"\r\n.", b"\r\n")
        return text

    def checked(
        self, octets: int, is_dotted: bool, smtputf8: bool, keys: DKIMKeys = NO_KEYS
    ) -> CheckedMessage:
        """Return what is wrong with the content of a message of so many octets."""
        return check_message(self.content(octets, is_dotted), octets <= KEPT_CONTENT, smtputf8, keys)
