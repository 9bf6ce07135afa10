"""Patterns that conditions compare with: globs and sizes, and indexes over many of them.

Operators write globs, not regular expressions, so that no pattern can backtrack: a glob becomes an
expression of atomic groups, each of which is tried at one place only.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final

LITERAL: Final = re.compile(r"\*@[^*?@]*|[^*?]*")
"""Matches a glob that needs no expression: a literal text, or all addresses of one domain."""


def expression(glob: str) -> re.Pattern[bytes]:
    """Return the expression of a glob: `*` is any octets, `?` one; brackets are literal (bob@[192.0.2.1])."""
    first, *rest = (re.escape(part.encode()).replace(rb"\?", b".") for part in glob.split("*"))
    if not rest:
        return re.compile(first + rb"\Z", re.DOTALL)
    *inner, last = rest
    # The first place where an inner part matches is as good as any later one; the last part is anchored.
    middle = b"".join(b"(?>.*?" + part + b")" for part in inner if part)
    return re.compile(first + middle + b".*" + last + rb"\Z", re.DOTALL)


WHOLE: Final = 0
PREFIX: Final = 1
SUFFIX: Final = 2
INNER: Final = 3

LiteralPart = tuple[int, bytes]
"""WHOLE, PREFIX, SUFFIX or INNER, and octets.

The octets are the whole text, or its domain with the "@"; its beginning; its end; or any part of it.
"""

NGRAM_LENGTH: Final = 4
"""Octets. Of some hundred globs most differ in four adjacent octets."""


def literal_part(glob: str) -> LiteralPart | None:
    """Return a part that each text matching the glob has; None if there is none.

    It is the longer of the two ends; if that is shorter than an n-gram, the longest inner part that is not.

    >>> literal_part("*@example.com"), literal_part("news-*@lists.example.com")
    ((0, b'@example.com'), (2, b'@lists.example.com'))
    """
    if LITERAL.fullmatch(glob):
        return WHOLE, glob.removeprefix("*").encode()
    head, *inner, tail = (part.encode() for part in re.split("[*?]", glob))
    end = (PREFIX, head) if len(head) > len(tail) else (SUFFIX, tail)
    part = max(inner, key=len, default=b"")
    if len(end[1]) < NGRAM_LENGTH <= len(part):
        return INNER, part
    return end if end[1] else None


class GlobSet:
    """A set of globs, of which any may match. Case does not matter.

    >>> globs = GlobSet(["*@example.com", "postmaster@*"])
    >>> globs.match(b"Bob@Example.com"), globs.match(b"bob@example.org")
    (True, False)
    """

    __slots__ = ("domains", "exact", "globs", "literal_parts", "others")

    def __init__(self, globs: Iterable[str]) -> None:
        globs = self.globs = tuple(glob.lower() for glob in globs)
        literal = {glob for glob in globs if LITERAL.fullmatch(glob)}
        self.exact: Final = frozenset(glob.encode() for glob in literal if not glob.startswith("*"))
        self.domains: Final = frozenset(glob[1:].encode() for glob in literal if glob.startswith("*"))
        """Domains with the "@" before them."""
        self.others: Final = tuple(expression(glob).match for glob in globs if glob not in literal)
        self.literal_parts: Final = _literal_parts(globs)
        """Parts of which a matching text has one; empty if a glob has no literal part."""

    def match(self, text: bytes) -> bool:
        """Return whether a glob matches the whole text."""
        text = text.lower()
        if text in self.exact:
            return True
        if self.domains and text[text.rfind(b"@") :] in self.domains:
            return True
        return any(match(text) for match in self.others)


def _literal_parts(globs: Iterable[str]) -> frozenset[LiteralPart]:
    parts = set()
    for glob in globs:
        part = literal_part(glob)
        if part is None:
            return frozenset()
        parts.add(part)
    return frozenset(parts)


Numbers = tuple[int, ...]
"""Numbers of sets."""


class GlobIndex:
    """Finds which of many sets of globs may match a text, by their literal parts.

    >>> index = GlobIndex({1: GlobSet(["bob@*"]).literal_parts, 2: GlobSet(["*@example.com"]).literal_parts})
    >>> sorted(index.find(b"bob@example.com")), index.find(b"ann@example.org")
    ([1, 2], ())
    """

    def __init__(self, sets: Mapping[int, frozenset[LiteralPart]]) -> None:
        self._whole: Final[dict[bytes, Numbers]] = {}
        self._ends: Final[dict[LiteralPart, Numbers]] = {}
        inner = []
        for number, parts in sets.items():
            for kind, octets in parts:
                if kind == INNER:
                    inner.append((number, octets))
                elif kind == WHOLE:
                    self._whole[octets] = (*self._whole.get(octets, ()), number)
                else:
                    self._ends[kind, octets] = (*self._ends.get((kind, octets), ()), number)
        self._prefix_lengths: Final = _lengths(self._ends, PREFIX)
        self._suffix_lengths: Final = _lengths(self._ends, SUFFIX)
        self._ngrams: Final = _by_rarest_ngram(inner)

    def find(self, text: bytes) -> tuple[int, ...]:
        """Return the numbers of the sets that may match, unsorted, and some more than once."""
        whole, look = self._whole, self._ends.get
        found = whole.get(text, ())
        domain = text[text.rfind(b"@") :]
        if domain in whole:
            found += whole[domain]
        for size in self._prefix_lengths:
            found += look((PREFIX, text[:size]), ())
        for size in self._suffix_lengths:
            found += look((SUFFIX, text[-size:]), ())
        if self._ngrams:
            for ngram in self._ngrams.keys() & ngrams(text):
                found += self._ngrams[ngram]
        return found


def _lengths(parts: Iterable[LiteralPart], kind: int) -> Numbers:
    """Return the different lengths of the parts of one kind."""
    return tuple({len(octets) for its_kind, octets in parts if its_kind == kind})


def _by_rarest_ngram(parts: Sequence[tuple[int, bytes]]) -> dict[bytes, Numbers]:
    """Return numbers by that n-gram of their part which the fewest other parts have."""
    frequency = Counter(ngram for _, octets in parts for ngram in {*ngrams(octets)})
    index: dict[bytes, Numbers] = {}
    for number, octets in parts:
        rarest = min(ngrams(octets), key=lambda ngram: frequency[ngram])
        index[rarest] = (*index.get(rarest, ()), number)
    return index


def ngrams(text: bytes) -> list[bytes]:
    """Return all parts of NGRAM_LENGTH octets."""
    return [text[start : start + NGRAM_LENGTH] for start in range(len(text) - NGRAM_LENGTH + 1)]


COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = MappingProxyType(
    {
        "<=": operator.ge,
        ">=": operator.le,
        "<": operator.gt,
        ">": operator.lt,
        "=": operator.eq,
    }
)
"""Sign -> the operator that compares a limit with a number, in this order."""

Comparison = partial[bool]
"""Takes a number, and returns whether it is, say, "<=" a limit, which is in `args`."""


def comparison(sign: str, limit: int) -> Comparison:
    """Return the comparison with a limit.

    >>> comparison("<=", 5)(4)
    True
    """
    return partial(COMPARISONS[sign], limit)


MAX_SPANS: Final = 256
"""Spans of which a ThresholdIndex keeps the result."""


class ThresholdIndex:
    """Finds which of many comparisons are true of a number.

    >>> index = ThresholdIndex({1: comparison(">", 100), 2: comparison("<", 50)})
    >>> index.find(200), index.find(60)
    ((1,), ())
    """

    def __init__(self, compared: Mapping[int, Comparison]) -> None:
        self._compared: Final = compared
        limits = {compare.args[0] for compare in compared.values()}
        self._edges: Final = sorted(limits | {limit + 1 for limit in limits})
        """Numbers at which the result changes."""
        self._spans: Final[dict[int, tuple[int, ...]]] = {}
        """Results between two edges, kept when they were first asked for."""

    def find(self, value: int) -> tuple[int, ...]:
        """Return the keys of the comparisons that are true of a value."""
        span = bisect_right(self._edges, value)
        found = self._spans.get(span)
        if found is None:
            if len(self._spans) >= MAX_SPANS:
                self._spans.clear()
            found = tuple(number for number, holds in self._compared.items() if holds(value))
            self._spans[span] = found
        return found
