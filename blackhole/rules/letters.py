"""Letters in one case, so that texts can be compared with patterns that ignore case."""

from __future__ import annotations

from typing import Final

VARIANTS: Final = str.maketrans(
    {
        letter: letter.upper().lower()
        for letter in "\u0131\u00b5\u017f\u0345\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1e9b\u1fbe"
        "\u1c80\u1c81\u1c82\u1c83\u1c84\u1c85\u1c86\u1c87\u1c88"
    }
)
"""Small letters that share their capital with another one, as both Greek sigmas do -> the other one."""


def fold_octets(text: bytes) -> bytes:
    """Return the octets of a folded text, as parts of keys."""
    return text.lower() if text.isascii() else fold(text).encode(errors="surrogateescape")


def fold(text: bytes) -> str:
    """Return a text with small letters only, of as many characters. An octet that is no UTF-8 is one.

    >>> fold("MÜLLER@Example.com".encode())
    'müller@example.com'
    """
    if text.isascii():
        return text.lower().decode()
    characters = text.decode(errors="surrogateescape")
    # The small letter of the Turkish dotted capital would be two characters.
    return characters.replace("İ", "i").lower().translate(VARIANTS)
