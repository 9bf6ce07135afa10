"""Choices of keywords by an operator: of the extensions that are offered, and of the mechanisms of AUTH."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set


def choose_keywords(words: Iterable[str], known: Sequence[str], defaults: Set[str]) -> frozenset[str]:
    """Return the keywords that a list names: keywords, default, all, none, and -KEYWORD to leave one out.

    Raises ValueError for an unknown one.

    >>> sorted(choose_keywords(["default", "c", "-A"], ["A", "B", "C"], {"A", "B"}))
    ['B', 'C']
    """
    groups = {"default": frozenset(defaults), "all": frozenset(known), "none": frozenset[str]()}
    chosen: frozenset[str] = frozenset()
    for word in words:
        keyword = word.removeprefix("-").upper()
        if word.lower() in groups:
            chosen |= groups[word.lower()]
        elif keyword not in known:
            raise ValueError(f"unknown keyword {keyword}; the keywords are {', '.join(known)}")
        elif word.startswith("-"):
            chosen -= {keyword}
        else:
            chosen |= {keyword}
    return chosen
