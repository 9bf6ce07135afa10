"""A pattern: what the words, addresses and networks of a conversation are compared with.

There are no regular expressions for operators to write, so there is none that backtracks: a
glob becomes an expression of atomic groups, each of which is tried at one place only.
"""

from __future__ import annotations

import ipaddress
import operator
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LITERAL: Final = re.compile(r"\*@[^*?@]*|[^*?]*")
"""A glob that needs no expression: a whole text, or any address of one domain."""


def expression(glob: str) -> re.Pattern[bytes]:
    """`*` is any octets, `?` one octet; all else stands for itself, brackets too (bob@[192.0.2.1])."""
    first, *rest = (re.escape(part.encode()).replace(rb"\?", b".") for part in glob.split("*"))
    if not rest:
        return re.compile(first + rb"\Z", re.DOTALL)
    *inner, last = rest
    # The first place where an inner part fits is as good as any later one. The last part stands at the end.
    middle = b"".join(b"(?>.*?" + part + b")" for part in inner if part)
    return re.compile(first + middle + b".*" + last + rb"\Z", re.DOTALL)


WHOLE: Final = 0
HEAD: Final = 1
TAIL: Final = 2
PART: Final = 3

LiteralPart = tuple[int, bytes]
"""WHOLE, HEAD, TAIL or PART, and octets: all of a text, or of its domain with the "@" before it; its
beginning, its end, or anywhere in it."""

GRAM: Final = 4
"""Octets of a part: most parts of some hundred globs differ in some four octets."""


def literal_part(glob: str) -> LiteralPart | None:
    """The longer of a glob's fixed ends; where both are short its longest part between them, if that is not;
    None where there is neither."""
    if LITERAL.fullmatch(glob):
        return WHOLE, glob.removeprefix("*").encode()
    head, *inner, tail = (part.encode() for part in re.split("[*?]", glob))
    end = (HEAD, head) if len(head) > len(tail) else (TAIL, tail)
    part = max(inner, key=len, default=b"")
    if len(end[1]) < GRAM <= len(part):
        return PART, part
    return end if end[1] else None


class GlobSet:
    """Any of some globs. Letters match in either case."""

    __slots__ = ("anchors", "domains", "exact", "globs", "others")

    def __init__(self, globs: Iterable[str]) -> None:
        globs = self.globs = tuple(glob.lower() for glob in globs)
        literal = [glob for glob in globs if LITERAL.fullmatch(glob)]
        self.exact: Final = frozenset(glob.encode() for glob in literal if not glob.startswith("*"))
        self.domains: Final = frozenset(glob[1:].encode() for glob in literal if glob.startswith("*"))
        """With the "@" before them."""
        self.others: Final = tuple(expression(glob).match for glob in globs if glob not in literal)
        anchors = {literal_part(glob) for glob in globs}
        self.anchors: Final = frozenset(
            found for found in anchors if None not in anchors and found is not None
        )
        """What a text must have for any of them to fit; empty: nothing that can be named."""

    def match(self, text: bytes) -> bool:
        """Whether one of them fits all of the text."""
        text = text.lower()
        if text in self.exact:
            return True
        if self.domains and text[text.rfind(b"@") :] in self.domains:
            return True
        return any(match(text) for match in self.others)


class GlobIndex:
    """Finds which of many sets of globs may fit a text, by their anchors and without trying each."""

    def __init__(self, sets: Mapping[int, frozenset[LiteralPart]]) -> None:
        self._whole: Final[dict[bytes, tuple[int, ...]]] = {}
        self._found: Final[dict[LiteralPart, tuple[int, ...]]] = {}
        parts = []
        for number, anchors in sets.items():
            for end, octets in anchors:
                if end == PART:
                    parts.append((number, octets))
                elif end == WHOLE:
                    self._whole[octets] = (*self._whole.get(octets, ()), number)
                else:
                    self._found[end, octets] = (*self._found.get((end, octets), ()), number)
        self._heads: Final = tuple({len(octets) for end, octets in self._found if end == HEAD})
        self._tails: Final = tuple({len(octets) for end, octets in self._found if end == TAIL})
        self._grams: Final[dict[bytes, tuple[int, ...]]] = {}
        common = Counter(gram for _, octets in parts for gram in {*ngrams(octets)})
        for number, octets in parts:
            # A part is found by those of its octets that fewest others have.
            rarest = min(ngrams(octets), key=lambda gram: common[gram])
            self._grams[rarest] = (*self._grams.get(rarest, ()), number)

    def find(self, text: bytes) -> tuple[int, ...]:
        """The numbers of those that may fit, in any order, some of them more than once."""
        whole, look = self._whole, self._found.get
        found = whole.get(text, ())
        domain = text[text.rfind(b"@") :]
        if domain in whole:
            found += whole[domain]
        for size in self._heads:
            found += look((HEAD, text[:size]), ())
        for size in self._tails:
            found += look((TAIL, text[-size:]), ())
        if self._grams:
            for gram in self._grams.keys() & ngrams(text):
                found += self._grams[gram]
        return found


def ngrams(text: bytes) -> list[bytes]:
    """All parts of GRAM octets."""
    return [text[start : start + GRAM] for start in range(len(text) - GRAM + 1)]


class Networks:
    """Any of some networks. An IPv4 address in IPv6 clothes (::ffff:192.0.2.1) is an IPv4 address."""

    __slots__ = ("_by_size",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_size: Final[dict[tuple[int, int], set[int]]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            found = self._by_size.setdefault((network.version, shift), set())
            found.add(int(network.network_address) >> shift)

    def match(self, client: str) -> bool:
        """Whether the address lies in one of them. What is no address, as of a UNIX socket, lies in none."""
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        version, number = address.version, int(address)
        return any(
            version == of and number >> shift in numbers for (of, shift), numbers in self._by_size.items()
        )


COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = MappingProxyType(
    {
        "<=": operator.ge,
        ">=": operator.le,
        "<": operator.gt,
        ">": operator.lt,
        "=": operator.eq,
    }
)
"""How a limit compares with the numbers that are, say, "<=" the limit."""


Comparison = partial[bool]
"""Whether a number is, say, "<=" a limit, which is its argument."""


def comparison(sign: str, limit: int) -> Comparison:
    """Whether a number is, say, "<=" the limit."""
    return partial(COMPARISONS[sign], limit)


SPANS: Final = 256
"""Of a scale, those of which it is kept what holds there. Who asks for more is an attacker, or a mistake."""


class ThresholdIndex:
    """Finds which of many comparisons hold for a number, without trying each."""

    def __init__(self, compared: Mapping[int, Comparison]) -> None:
        self._compared: Final = compared
        limits = {compare.args[0] for compare in compared.values()}
        self._edges: Final = sorted(limits | {limit + 1 for limit in limits})
        """Numbers from which on others hold."""
        self._spans: Final[dict[int, tuple[int, ...]]] = {}
        """Those that hold between two edges, once it was asked."""

    def find(self, value: int) -> tuple[int, ...]:
        """The numbers of those that hold."""
        span = bisect_right(self._edges, value)
        found = self._spans.get(span)
        if found is None:
            if len(self._spans) >= SPANS:
                self._spans.clear()
            found = tuple(number for number, holds in self._compared.items() if holds(value))
            self._spans[span] = found
        return found
