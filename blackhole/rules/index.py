"""An index of rules: finds those that may match a context, without trying each.

A rule is found by one thing that it names: a recipient, a sender, a HELO name, a header field, a time
window or a size. Rules that name none of these are candidates for every context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, TypeVar

from blackhole.rules.context import RuleContext
from blackhole.rules.model import Rule, Window
from blackhole.rules.patterns import Comparison, GlobIndex, GlobSet, LiteralPart, ThresholdIndex, literal_part

INDEXED_TEXTS: Final = ("recipient", "sender", "helo")
"""Attributes of a `RuleContext` by which rules are found, the most selective first."""

INDEX_THRESHOLD: Final = 4
"""An index pays from so many rules on; fewer are tried one by one."""

Remaining = dict[int, Rule]
"""Number of a rule -> the rule: those that no index has taken yet."""

Named = TypeVar("Named")


class RuleIndex:
    """Finds the numbers of the rules that may match a context."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        remaining = dict(enumerate(rules))
        self._texts: Final = _text_indexes(remaining)
        self._fields: Final = _field_indexes(remaining)
        self._windows: Final = _window_index(remaining)
        self._sizes: Final = _size_index(remaining)
        self._unindexed: Final = tuple(remaining)
        self.is_useful: Final = len(remaining) < len(rules)
        """Whether it spares trying any rule."""

    def candidates(self, context: RuleContext) -> Iterable[int]:
        """Return the numbers of the rules that may match, in their order."""
        found = self._unindexed
        for text, index in self._texts:
            found += index.find(text(context).lower())
        if self._fields:
            for field in context.header:
                name, _, value = field.lower().partition(b":")
                if name in self._fields:
                    found += self._fields[name].find(value)
        for window, numbers in self._windows.items():
            if window.share(context.elapsed):
                found += numbers
        if self._sizes is not None:
            found += self._sizes.find(context.size)
        return sorted({*found}) if len(found) > 1 else found


def _take(remaining: Remaining, named: Mapping[int, Named]) -> Mapping[int, Named]:
    """Take the rules of an index away from those that remain; return none where they are too few for one."""
    if len(named) < INDEX_THRESHOLD:
        return {}
    for number in named:
        del remaining[number]
    return named


def _text_indexes(remaining: Remaining) -> list[tuple[Callable[[RuleContext], bytes], GlobIndex]]:
    """Return a getter of the text and an index for each text that enough rules name."""
    indexes: list[tuple[Callable[[RuleContext], bytes], GlobIndex]] = []
    for name in INDEXED_TEXTS:
        parts = {
            number: found for number, rule in remaining.items() if (found := _globs(rule, name).literal_parts)
        }
        if taken := _take(remaining, parts):
            indexes.append((attrgetter(name), GlobIndex(taken)))
    return indexes


def _field_indexes(remaining: Remaining) -> dict[bytes, GlobIndex]:
    """Return an index of field values by the name of the header field, in lower context."""
    taken = _take(
        remaining, {number: parts for number, rule in remaining.items() if (parts := field_parts(rule))}
    )
    return {
        name: GlobIndex({number: parts[name] for number, parts in taken.items() if name in parts})
        for name in {name for parts in taken.values() for name in parts}
    }


def _window_index(remaining: Remaining) -> dict[Window, tuple[int, ...]]:
    """Return the numbers of each window's rules; rules that count attempts do so always."""
    windows = {
        number: rule.window
        for number, rule in remaining.items()
        if rule.window and not rule.needs_attempt_count
    }
    index: dict[Window, tuple[int, ...]] = {}
    for number, window in _take(remaining, windows).items():
        index[window] = (*index.get(window, ()), number)
    return index


def _size_index(remaining: Remaining) -> ThresholdIndex | None:
    """Return an index of the sizes that rules compare with; None where too few do."""
    sizes: dict[int, Comparison] = {
        number: test.index_key
        for number, rule in remaining.items()
        for test in rule.conditions
        if isinstance(test.index_key, partial)
    }
    taken = _take(remaining, sizes)
    return ThresholdIndex(taken) if taken else None


def _globs(rule: Rule, key: str) -> GlobSet:
    """Return the globs of a rule's condition with this key; an empty set where it has none."""
    found = (
        test.index_key for test in rule.conditions if test.key == key and isinstance(test.index_key, GlobSet)
    )
    return next(found, GlobSet(()))


def field_parts(rule: Rule) -> dict[bytes, frozenset[LiteralPart]]:
    """Return the literal parts of which a header field's value must have one for the rule to match, by field
    name; empty where a glob has no literal part, or a field name has wildcards."""
    found: dict[bytes, frozenset[LiteralPart]] = {}
    for glob in _globs(rule, "header").globs:
        name, _, value = glob.partition(":")
        part = literal_part(value)
        if part is None or "*" in name or "?" in name:
            return {}
        found[name.encode()] = found.get(name.encode(), frozenset()) | {part}
    return found
