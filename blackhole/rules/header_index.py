"""An index of conditions on header fields: each field is compared once, however many conditions there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from blackhole.rules.glob_index import INDEX_THRESHOLD, GlobIndex, LiteralPart, literal_part, pieces
from blackhole.rules.globs import Glob, GlobSet
from blackhole.rules.letters import fold

CHARACTERS_PER_TURN: Final = 20_000
"""Characters compared, or as much other work, before other clients have their turn: some two milliseconds."""

PER_FIELD: Final = 10
"""What a field costs besides its characters."""

PER_GLOB: Final = 5
"""What the comparison with a glob costs besides its characters."""

CHARACTERS_PER_LOOKUP: Final = 16
"""Characters in which a single glob is searched in the time in which the index looks up one."""

PIECE: Final = 4096
"""Characters of a field that are looked up at once."""


class _FieldGlobs:
    """The globs for fields of one name, or for all fields."""

    def __init__(self, globs: Sequence[tuple[str, GlobSet]]) -> None:
        self._globs: Final = tuple((Glob(text), condition) for text, condition in globs)
        parts: dict[int, tuple[LiteralPart]] = {}
        if len(globs) >= INDEX_THRESHOLD:
            found = (literal_part(text) for text, _ in globs)
            parts = {number: (part,) for number, part in enumerate(found) if part is not None}
        self._index: Final = GlobIndex(parts) if parts else None
        self._unindexed: Final = [number for number in range(len(globs)) if number not in parts]

    def search(self, text: str, found: set[GlobSet]) -> Iterator[int]:
        """Add the conditions that a text fulfils to those found. Yields the cost of each piece of work."""
        yield from self._compare(text, self._unindexed, found)
        if self._index is not None:
            yield from self._compare(text, self._index.find_ends(text), found)
            for piece in pieces(text, PIECE):
                yield len(piece)
                yield from self._compare(text, self._index.find_inner(piece), found)

    def _compare(self, text: str, numbers: Iterable[int], found: set[GlobSet]) -> Iterator[int]:
        for number in numbers:
            glob, condition = self._globs[number]
            if condition not in found:
                if glob.match(text):
                    found.add(condition)
                yield PER_GLOB + len(text) // CHARACTERS_PER_LOOKUP


class HeaderIndex:
    """Finds which conditions on header fields hold.

    >>> conditions = [GlobSet(["Subject: *win*"]), GlobSet(["X-Mailer: *"])]
    >>> found: set[GlobSet] = set()
    >>> for turn in HeaderIndex(conditions).search([b"Subject: You win"], found):
    ...     pass
    >>> [condition in found for condition in conditions]
    [True, False]
    """

    def __init__(self, conditions: Iterable[GlobSet]) -> None:
        by_name: dict[str, list[tuple[str, GlobSet]]] = {}
        for condition in conditions:
            for glob in condition.globs:
                name, _, value = glob.partition(":")
                any_name = "*" in name or "?" in name
                by_name.setdefault("" if any_name else name, []).append(
                    (glob if any_name else value, condition)
                )
        self._by_name: Final = {name: _FieldGlobs(globs) for name, globs in by_name.items()}
        self._any_name: Final = self._by_name.pop("", None)

    def search(self, fields: Iterable[bytes], found: set[GlobSet]) -> Iterator[None]:
        """Add the conditions that the fields fulfil to those found. Yields when other clients should have
        their turn."""
        work = 0
        for field in fields:
            text = fold(field)
            name, _, value = text.partition(":")
            work += PER_FIELD + len(text) // CHARACTERS_PER_LOOKUP
            for globs, compared in ((self._by_name.get(name), value), (self._any_name, text)):
                for cost in () if globs is None else globs.search(compared, found):
                    work += cost
                    if work >= CHARACTERS_PER_TURN:
                        work = 0
                        yield
            if work >= CHARACTERS_PER_TURN:
                work = 0
                yield
