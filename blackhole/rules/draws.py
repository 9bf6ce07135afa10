"""Draws: uniform numbers from [0, 1), which a seed makes the same in every process and run.

With a seed, a cryptographic hash is made once for a transaction (`RuleContext.draw_state`). The draws of each
rule are the output function of SplitMix64 (Steele, Lea and Flood, 2014) of that hash and the rule's own salt:
a third of the time of a hash for each rule.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

Draws = tuple[float, float, float, float]
"""Four uniform draws in [0, 1): apply?, which reply, and two for the delay."""

NO_DRAWS: Final[Draws] = (0.0, 0.0, 0.0, 0.0)

DRAW_MASK: Final = 2**64 - 1

GOLDEN_RATIO: Final = 0x9E3779B97F4A7C15
"""The increment of SplitMix64: 2**64 divided by the golden ratio, and odd."""

UNIT: Final = 2.0**-53


EMPTY_HASH: Final = blake2b(digest_size=8)
"""A copy of it takes half the time of a new one."""


def draw_hash(pair_key: bytes, attempt: int) -> int:
    """Return the hash from which all draws of a transaction are made: 64 bits."""
    drawing = EMPTY_HASH.copy()
    drawing.update(b"%b\0%d" % (pair_key, attempt))
    return int.from_bytes(drawing.digest(), "big")


def salt(seed: int, name: str) -> int:
    """Return the number that makes the draws of a rule or a phase differ from others: 64 bits."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8, key=b"%d" % seed).digest(), "big")


def uniform(state: int) -> float:
    """Return the draw for a state of 64 bits.

    >>> 0.0 <= uniform(7) < 1.0
    True
    """
    mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & DRAW_MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & DRAW_MASK
    # The upper 53 of 64 bits: a float has no more.
    return ((mixed ^ mixed >> 31) >> 11) * UNIT
