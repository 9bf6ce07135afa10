"""An index of globs: finds those that may match a text by a literal part, and not by trying each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

LITERAL: Final = re.compile(r"\*@[^*?@]*|[^*?]*")
"""Matches a glob that can be looked up: a literal text, or all addresses of one domain."""

ONE: Final = "?"
"""Stands for one character."""

INDEX_THRESHOLD: Final = 4
"""An index pays from so many entries on; fewer are tried one by one."""

WHOLE: Final = 0
PREFIX: Final = 1
SUFFIX: Final = 2
INNER: Final = 3


LiteralPart = tuple[int, str]
"""WHOLE, PREFIX, SUFFIX or INNER, and characters.

They are the whole text, or its domain with the "@"; its beginning; its end; or any part of it.
"""

NGRAM_LENGTH: Final = 4
"""Characters. Of some hundred globs most differ in four adjacent ones."""

EXACT_LENGTH: Final = 16
"""Ends of up to so many characters are looked up whole, of longer ones a multiple of it: a text is cut in as
many ways as the ends have lengths."""


def literal_part(glob: str) -> LiteralPart | None:
    """Return a part that each text matching the glob has; None if there is none.

    It is the longer of the two ends; if that is shorter than an n-gram, the longest inner part if longer.

    >>> literal_part("news-*@lists.example.com")
    (2, '@lists.example.com')
    """
    if LITERAL.fullmatch(glob):
        return WHOLE, glob.removeprefix("*")
    head, *inner, tail = re.split("[*?]", glob)
    end = (PREFIX, head) if len(head) > len(tail) else (SUFFIX, tail)
    part = max(inner, key=len, default="")
    if len(end[1]) < min(NGRAM_LENGTH, len(part)):
        return INNER, part
    return end if end[1] else None


Numbers = list[int]
"""Numbers of entries."""


class GlobIndex:
    """Finds which of many entries may match a text, by the literal parts of which it must have one.

    >>> index = GlobIndex({1: [literal_part("bob@*")], 2: [literal_part("*@example.com")]})
    >>> sorted(index.find("bob@example.com")), index.find("ann@example.org")
    ([1, 2], [])
    """

    __slots__ = ("_ends", "_ngrams", "_prefix_lengths", "_suffix_lengths", "_whole")

    def __init__(self, entries: Mapping[int, Iterable[LiteralPart]]) -> None:
        self._whole: Final[dict[str, Numbers]] = {}
        self._ends: Final[dict[LiteralPart, Numbers]] = {}
        inner = []
        for number, parts in entries.items():
            for kind, text in parts:
                if kind == INNER:
                    inner.append((number, text))
                elif kind == WHOLE:
                    self._whole.setdefault(text, []).append(number)
                else:
                    self._ends.setdefault(_shortened(kind, text), []).append(number)
        self._prefix_lengths: Final = _lengths(self._ends, PREFIX)
        self._suffix_lengths: Final = _lengths(self._ends, SUFFIX)
        self._ngrams: Final = _by_rarest_ngram(inner)

    def find(self, text: str) -> Numbers:
        """Return the numbers of the entries that may match, unsorted, and some more than once."""
        found = self.find_ends(text)
        if self._ngrams:
            found += self.find_inner(text)
        return found

    def find_ends(self, text: str) -> Numbers:
        """Return the numbers of the entries that may match by the text, its domain, or an end of it."""
        whole, look = self._whole, self._ends.get
        found = [*whole.get(text, ())]
        domain = text[text.rfind("@") :]
        if domain in whole:
            found += whole[domain]
        for size in self._prefix_lengths:
            found += look((PREFIX, text[:size]), ())
        for size in self._suffix_lengths:
            found += look((SUFFIX, text[-size:]), ())
        return found

    def find_inner(self, text: str) -> Numbers:
        """Return the numbers of the entries that may match by a part of the text, or of a piece of it."""
        found: Numbers = []
        for size, numbers in self._ngrams.items():
            for ngram in numbers.keys() & ngrams(text, size):
                found += numbers[ngram]
        return found


def _shortened(kind: int, text: str) -> LiteralPart:
    """Return an end that has one of few lengths."""
    length = len(text)
    if length > EXACT_LENGTH:
        length -= length % EXACT_LENGTH
    return kind, text[:length] if kind == PREFIX else text[-length:]


def _lengths(parts: Iterable[LiteralPart], kind: int) -> tuple[int, ...]:
    """Return the different lengths of the parts of one kind."""
    return tuple({len(text) for its_kind, text in parts if its_kind == kind})


def _by_rarest_ngram(parts: Sequence[tuple[int, str]]) -> dict[int, dict[str, Numbers]]:
    """Return numbers by that n-gram of their part which the fewest other parts have, by its length."""
    frequency = Counter(ngram for _, text in parts for ngram in {*_longest_ngrams(text)})
    index: dict[int, dict[str, Numbers]] = {}
    for number, text in parts:
        rarest = min(_longest_ngrams(text), key=lambda ngram: frequency[ngram])
        index.setdefault(len(rarest), {}).setdefault(rarest, []).append(number)
    return index


def _longest_ngrams(text: str) -> list[str]:
    return ngrams(text, min(NGRAM_LENGTH, len(text)))


def ngrams(text: str, size: int) -> list[str]:
    """Return all parts of so many characters."""
    return [text[start : start + size] for start in range(len(text) - size + 1)]


def pieces(text: str, size: int) -> Iterator[str]:
    """Yield pieces of a text that have all its n-grams."""
    for start in range(0, len(text), size):
        yield text[start : start + size + NGRAM_LENGTH - 1]
