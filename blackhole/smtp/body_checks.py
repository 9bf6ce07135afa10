"""Body checks: what can be wrong with the octets of a message (RFC 5321 2.3.8 and 4.5.2, RFC 5322 2.1.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from blackhole.smtp.offending_line import offending_line

INSPECTED_OCTETS: Final = 2048
"""Octets of a message that are inspected. A sender that does not convert line ends, double dots or encode its
text shows it in the first lines; to inspect all of a large message would take as long as all other work."""

TEXT: Final = (
    bytes(octet for octet in range(1, 128) if octet not in b"\r\n"),
    bytes(octet for octet in range(1, 256) if octet not in b"\r\n"),
)
"""Octets that are always right; the second where octets above 127 were announced."""

MAX_BODY_LINE: Final = 998
"""Octets of a line without its end (RFC 5322 2.1.1)."""


def is_well_formed(body: bytes, eightbit: bool) -> bool:
    """Return whether no octet of a body is wrong; `find_violations` tells what is.

    Without its text, a well-formed body consists of pairs of CR LF.
    """
    return len(body.translate(None, TEXT[eightbit])) == 2 * body.count(b"\r\n")


def find_violations(
    piece: bytes, before: bytes, run: int, eightbit: bool, dotted: bool = False
) -> Iterator[str]:
    """Yield the names of the violations in the next piece of a body.

    `before` has the octets before the piece, CR LF at the beginning of the body. `run` octets of the line
    that the piece begins in have come already; that line is `dotted` if its first octet is a dot. An octet is
    judged together with the next one, so that the result does not depend on how a body is cut into pieces.
    """
    if not is_well_formed(b"\r" + piece if before.endswith(b"\r") else piece, eightbit):
        if b"\0" in piece:
            yield "nul"
        if not (eightbit or piece.isascii()):
            yield "8bit-undeclared"
        text = before[-1:] + piece
        ends = text.count(b"\r\n")
        if piece.count(b"\n") != ends:
            yield "bare-lf"
        if text.count(b"\r", 0, -1) != ends:
            yield "bare-cr"
    text = before[-3:] + piece
    if b"." in text and text.count(b"\r\n.", 0, -1) > text.count(b"\r\n..") + text.count(b"\r\n.\r"):
        yield "unstuffed-dot"
    if run + len(piece) > MAX_BODY_LINE + 1 and has_long_line(piece, run, dotted):
        yield "long-line"


def has_long_line(piece: bytes, run: int, dotted: bool) -> bool:
    """Return whether a line is too long; `run` octets of the first one came before the piece.

    A dot at the beginning of a line is no part of it (RFC 5321 4.5.2); `dotted`: the first one had one.
    """
    start, dot = -run, dotted if run else piece.startswith(b".")
    while len(piece) - start > MAX_BODY_LINE + dot + 1:
        # The last line end that this line may reach.
        end = piece.rfind(b"\n", max(start, 0), max(start + MAX_BODY_LINE + dot + 2, 0))
        if end < 0:
            return True
        start = end + 1
        dot = piece.startswith(b".", start)
    return False


class BodyInspector:
    """Inspects the body of one message, piece by piece, and reports each violation once."""

    __slots__ = ("_dotted", "_eightbit", "_found", "_run")

    inspected_octets: ClassVar[int] = INSPECTED_OCTETS
    """Octets of the message that are inspected."""

    def __init__(self, eightbit: bool) -> None:
        self._eightbit = eightbit
        self._found: set[str] = set()
        self._run = 0
        """Octets of the line that the next piece goes on with."""
        self._dotted = False
        """It begins with a dot."""

    def inspect(self, piece: bytes, before: bytes) -> list[tuple[str, bytes]]:
        """Return the violations that show first in this piece, each with the line that shows it.

        `before` has the octets before the piece.
        """
        new = sorted(
            set(find_violations(piece, before, self._run, self._eightbit, self._dotted)) - self._found
        )
        self._found.update(new)
        end = piece.rfind(b"\n")
        if end >= 0 or not self._run:
            self._dotted = piece.startswith(b".", end + 1)
        self._run = len(piece) - 1 - end + (self._run if end < 0 else 0)
        return [(violation, offending_line(violation, piece, before)) for violation in new]
