"""Chunks: the pieces of a message that come behind BDAT, each announced by its size (RFC 3030)."""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_CHUNK: Final = (1 << 63) - 1
"""Octets of a chunk, at most, as servers count them in 64 bits. RFC 3030 2 sets no limit."""

MAX_CHUNK_DIGITS: Final = 19
"""Digits of MAX_CHUNK. int() takes time that grows with the square of the number of digits."""

END_MARKER: Final = b"LAST"


class Chunk(NamedTuple):
    """What BDAT announces."""

    size: int
    """Octets."""
    is_last: bool
    """The message ends with this chunk."""
    is_correct: bool
    """RFC 3030 2 allows the argument as it stands, but for its blanks."""


def read_chunk(argument: bytes) -> Chunk | None:
    """Return what the argument of BDAT announces; None if the end of the chunk is unknown.

    >>> read_chunk(b"86 LAST"), read_chunk(b"x")
    (Chunk(size=86, is_last=True, is_correct=True), None)
    """
    size, *words = argument.upper().split() or [b""]
    digits = size.lstrip(b"0") or size[:1]
    if not size.isdigit() or len(digits) > MAX_CHUNK_DIGITS or int(digits) > MAX_CHUNK:
        return None
    return Chunk(int(digits), words[:1] == [END_MARKER], words in ([], [END_MARKER]))
