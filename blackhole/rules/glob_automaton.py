"""An automaton of globs: compares a text with many of them in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from blackhole.rules.glob_index import ONE

MANY: Final = 16
"""Globs; fewer are compared with a text one by one."""

BLOCK: Final = 2048
"""Characters of the globs that are compared together: a number of so many bits takes a tenth of a microsecond
to shift."""


class GlobBlock:
    """Some globs, as a nondeterministic automaton whose states are the bits of a number.

    A bit stands for "so many characters of this glob have been seen"; a star leaves it set.
    """

    __slots__ = ("_any", "_begin", "_ends", "_final", "_letters", "_stay")

    def __init__(self, globs: Sequence[tuple[int, str]]) -> None:
        self._begin = self._stay = self._any = self._final = 0
        self._letters: Final[dict[str, int]] = {}
        """The states that each character leads on from."""
        self._ends: Final[dict[int, int]] = {}
        """The last state of each glob -> its number."""
        state = 1
        for number, glob in globs:
            self._begin |= state
            for sign in glob:
                if sign == "*":
                    self._stay |= state
                    continue
                if sign == ONE:
                    self._any |= state
                else:
                    self._letters[sign] = self._letters.get(sign, 0) | state
                state <<= 1
            self._final |= state
            self._ends[state] = number
            state <<= 1

    def find(self, text: str) -> Iterator[int]:
        """Yield the numbers of the globs that match the whole text."""
        states, stay, any_letter, on = self._begin, self._stay, self._any, self._letters.get
        for letter in text:
            states = (states & stay) | ((states & (any_letter | on(letter, 0))) << 1)
            if not states:
                return
        states &= self._final
        while states:
            lowest = states & -states
            yield self._ends[lowest]
            states ^= lowest


class GlobAutomaton:
    """Finds which of many folded globs match a folded text, whatever parts of them the text has.

    >>> sorted(GlobAutomaton(["a*", "*b?c", "?"]).find("aabxc", {0, 1, 2}))
    [0, 1]
    """

    __slots__ = ("_block_of", "_blocks", "_globs")

    def __init__(self, globs: Sequence[str]) -> None:
        self._block_of: Final[list[int]] = []
        """Number of a glob -> the number of its block."""
        self._globs: Final[list[list[tuple[int, str]]]] = []
        """The numbers and globs of each block."""
        self._blocks: Final[dict[int, GlobBlock]] = {}
        """Those blocks that a text was compared with: most never are."""
        room = 0
        for number, glob in enumerate(globs):
            room -= len(glob) + 1
            if room < 0:
                self._globs.append([])
                room = BLOCK
            self._globs[-1].append((number, glob))
            self._block_of.append(len(self._globs) - 1)

    def find(self, text: str, candidates: Collection[int]) -> Iterator[int]:
        """Yield the numbers of the candidates that match the whole text."""
        for number in {self._block_of[candidate] for candidate in candidates}:
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = GlobBlock(self._globs[number])
            yield from (found for found in block.find(text) if found in candidates)
