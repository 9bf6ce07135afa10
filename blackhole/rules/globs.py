"""Globs: patterns in which `*` is any text, also none, and `?` one character.

Operators write globs, not regular expressions. To compare a text with one takes time that grows with the
length of the text and of the glob, and not with their product.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Final

from blackhole.rules.glob_automaton import MANY, GlobAutomaton
from blackhole.rules.glob_index import INDEX_THRESHOLD, LITERAL, ONE, GlobIndex, LiteralPart, literal_part
from blackhole.rules.letters import fold

ASCII: Final = codecs.lookup("ascii").encode
UTF_32: Final = codecs.lookup("utf-32-le").encode
"""Encoders that are loaded before the fork: a worker may have no right to read the standard library."""

NO_GLOBS: Final[frozenset[str]] = frozenset()
"""Stands for each empty set, as most sets of a rule are."""


class Glob:
    """A pattern for a whole folded text.

    >>> glob = Glob("b?b@*.example.com")
    >>> glob.match("bob@mail.example.com"), glob.match("bob@example.com")
    (True, False)
    """

    __slots__ = ("_ends_are_literal", "_first", "_inner", "_last", "text")

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self._first, *rest = text.split("*")
        self._last = rest.pop() if rest else None
        """What stands behind the last star; None where there is no star."""
        self._inner = tuple(filter(None, rest))
        self._ends_are_literal = ONE not in f"{self._first}{self._last}"

    @property
    def is_beginning(self) -> bool:
        """Whether the only signs are stars at the end."""
        return self._last == "" and not self._inner and ONE not in self._first

    def match(self, text: str) -> bool:
        """Return whether the whole text matches."""
        first, last = self._first, self._last
        if self._ends_are_literal and not text.startswith(first):
            return False
        position = len(first)
        if last is None:
            return len(text) == position and _fits(text, first, 0)
        end = len(text) - len(last)
        if end < position or not (_fits(text, first, 0) and _fits(text, last, end)):
            return False
        for part in self._inner:
            # The first place where a part fits is as good as any later one.
            place = _find(text, part, position, end)
            if place < 0:
                return False
            position = place + len(part)
        return True


def _fits(text: str, part: str, position: int) -> bool:
    """Return whether a part of a glob fits a text at a position."""
    if ONE not in part:
        return text.startswith(part, position)
    found = text[position : position + len(part)]
    return all(wanted in (ONE, letter) for wanted, letter in zip(part, found, strict=True))


def _find(text: str, part: str, start: int, end: int) -> int:
    """Return the first position between `start` and `end` where a part of a glob fits; -1 for none."""
    if ONE not in part:
        return text.find(part, start, end)
    letters = {*part} - {ONE}
    section = text[start:end]
    if len(section) < len(part) or not all(letter in section for letter in letters):
        return -1
    places = (1 << (len(section) - len(part) + 1)) - 1
    """A bit for each position where the part may fit."""
    occurrences = _occurrences(section, letters)
    for offset, letter in enumerate(part):
        if letter != ONE:
            places &= occurrences[letter] >> offset
        if not places:
            return -1
    return start + (places & -places).bit_length() - 1


def _occurrences(text: str, letters: Iterable[str]) -> dict[str, int]:
    """Return a number for each letter of a text, whose bits are the positions of the letter."""
    # An octet of each character, or its four octets apart: `translate` and `int` take a nanosecond for each.
    encode, size = (ASCII, 1) if text.isascii() else (UTF_32, 4)
    octets = encode(text[::-1], "surrogatepass")[0]
    planes = [octets[place::size] for place in range(size)]
    found = {}
    for letter in letters:
        bits = -1
        for plane, octet in zip(planes, encode(letter, "surrogatepass")[0], strict=True):
            digits = bytearray(b"0" * 256)
            digits[octet] = ord("1")
            bits &= int(plane.translate(digits), 2)
        found[letter] = bits
    return found


class GlobSet:
    """A set of globs, of which any may match. Case does not matter.

    >>> globs = GlobSet(["*@example.com", "postmaster@*"])
    >>> globs.match(b"Bob@Example.com"), globs.match(b"bob@example.org")
    (True, False)
    """

    __slots__ = (
        "_automaton",
        "_beginnings",
        "_domains",
        "_exact",
        "_has_others",
        "_index",
        "_others",
        "_unindexed",
        "globs",
        "literal_parts",
    )

    def __init__(self, globs: Iterable[str]) -> None:
        self.globs: Final = tuple(dict.fromkeys(fold(glob.encode()) for glob in globs))
        literal = {glob for glob in self.globs if LITERAL.fullmatch(glob)}
        self._exact: Final = frozenset(glob for glob in literal if not glob.startswith("*")) or NO_GLOBS
        self._domains: Final = frozenset(glob[1:] for glob in literal if glob.startswith("*")) or NO_GLOBS
        """Domains with the "@" before them."""
        self._others: Final = tuple(Glob(glob) for glob in self.globs if glob not in literal)
        parts = {glob: literal_part(glob) for glob in self.globs}
        self.literal_parts: Final[tuple[LiteralPart, ...]] = (
            () if None in parts.values() else tuple(filter(None, parts.values()))
        )
        """Parts of which a matching text has one; empty if a glob has no literal part."""
        indexed = {number: part for number, glob in enumerate(self._others) if (part := parts[glob.text])}
        if len(indexed) < INDEX_THRESHOLD:
            indexed = {}
        self._index: Final = (
            GlobIndex({number: (part,) for number, part in indexed.items()}) if indexed else None
        )
        self._automaton: Final = GlobAutomaton([glob.text for glob in self._others]) if indexed else None
        unindexed = [glob for number, glob in enumerate(self._others) if number not in indexed]
        self._beginnings: Final = tuple(glob.text.rstrip("*") for glob in unindexed if glob.is_beginning)
        self._unindexed: Final = tuple(glob for glob in unindexed if not glob.is_beginning)
        self._has_others: Final = bool(self._unindexed or indexed)

    @property
    def is_indexed(self) -> bool:
        """Whether the length of a text matters, as parts of it are looked up."""
        return self._index is not None

    def match(self, text: bytes) -> bool:
        """Return whether a glob matches the whole text."""
        folded = text.lower().decode() if text.isascii() else fold(text)
        if folded in self._exact or folded.startswith(self._beginnings):
            return True
        if self._domains and folded[folded.rfind("@") :] in self._domains:
            return True
        return self._has_others and self._match_others(folded)

    def _match_others(self, folded: str) -> bool:
        """Return whether a glob matches that cannot be looked up."""
        for glob in self._unindexed:
            if glob.match(folded):
                return True
        if self._index is None or self._automaton is None:
            return False
        candidates = {*self._index.find(folded)}
        if len(candidates) > MANY:
            return any(True for _ in self._automaton.find(folded, candidates))
        return any(self._others[number].match(folded) for number in candidates)
