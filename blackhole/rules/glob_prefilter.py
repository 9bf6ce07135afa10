"""A prefilter of globs: rules out, for most addresses at once, that any of many globs matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from blackhole.rules.glob_index import EXACT_LENGTH, INNER, PREFIX, SUFFIX, WHOLE, LiteralPart
from blackhole.rules.letters import fold_octets

FEW_ENDS: Final = 16
"""Ends that are compared one after the other, in C. Of more, those of each length are looked up."""


def can_prefilter(parts: Iterable[LiteralPart]) -> bool:
    """Return whether globs with these literal parts can be prefiltered: by text, domain or ends."""
    kinds = {kind for kind, _ in parts}
    return bool(kinds) and INNER not in kinds


class GlobPrefilter:
    """Finds texts that have none of some literal parts. It may miss such a text, but reports no other.

    >>> prefilter = GlobPrefilter([(WHOLE, "@example.com"), (PREFIX, "full@")])
    >>> [prefilter.may_match(text) for text in (b"ann@Example.com", b"full@a.example", b"ann@a.example")]
    [True, True, False]
    """

    __slots__ = ("_beginnings", "_domains", "_endings", "_has_other_parts", "_lookups", "_whole")

    def __init__(self, parts: Iterable[LiteralPart]) -> None:
        found: dict[int, set[bytes]] = {WHOLE: set(), PREFIX: set(), SUFFIX: set()}
        for kind, text in parts:
            found[kind].add(text.encode(errors="surrogateescape"))
        self._whole: Final = frozenset(found[WHOLE])
        self._domains: Final = any(text.startswith(b"@") for text in self._whole)
        """Whether the domain of an address may be among them, with the "@" before it."""
        beginnings, endings = found[PREFIX], found[SUFFIX]
        lookups: list[tuple[slice, frozenset[bytes]]] = []
        if len(beginnings) > FEW_ENDS:
            lookups += ((slice(size), ends) for size, ends in _by_length(beginnings, PREFIX).items())
            beginnings = set()
        if len(endings) > FEW_ENDS:
            lookups += ((slice(-size, None), ends) for size, ends in _by_length(endings, SUFFIX).items())
            endings = set()
        self._beginnings: Final = tuple(beginnings)
        self._endings: Final = tuple(endings)
        self._lookups: Final = tuple(lookups)
        self._has_other_parts: Final = bool(self._whole or endings or lookups)
        """Whether there are parts other than a few beginnings."""

    def may_match(self, text: bytes) -> bool:
        """Return whether the text has one of the parts. Case does not matter."""
        folded = text.lower() if text.isascii() else fold_octets(text)
        if folded.startswith(self._beginnings):
            return True
        if not self._has_other_parts:
            return False
        if self._whole and (
            folded in self._whole or (self._domains and folded[folded.rfind(b"@") :] in self._whole)
        ):
            return True
        if self._endings and folded.endswith(self._endings):
            return True
        return bool(self._lookups) and any(folded[part] in ends for part, ends in self._lookups)


def _by_length(texts: Iterable[bytes], kind: int) -> Mapping[int, frozenset[bytes]]:
    """Return the ends of some texts by their length, of which there are few: long texts are shortened."""
    found: dict[int, set[bytes]] = {}
    for text in texts:
        size = len(text) if len(text) <= EXACT_LENGTH else len(text) - len(text) % EXACT_LENGTH
        found.setdefault(size, set()).add(text[:size] if kind == PREFIX else text[-size:])
    return {size: frozenset(ends) for size, ends in found.items()}
