"""An index of rules: finds those that may match a context, without trying each.

A rule is found by one thing that it names: an address, a name, a user, a header field, a time window or a
size. Rules that name none of these are candidates for every context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from types import MappingProxyType
from typing import Final, TypeVar

from blackhole.rules.comparisons import Comparison, ThresholdIndex
from blackhole.rules.context import RuleContext
from blackhole.rules.glob_automaton import MANY, GlobAutomaton
from blackhole.rules.glob_index import INDEX_THRESHOLD, GlobIndex
from blackhole.rules.globs import GlobSet
from blackhole.rules.letters import fold
from blackhole.rules.model import Rule, Window

INDEXED_TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {"recipient": "recipient", "sender": "sender", "helo": "helo", "user": "user", "sni": "server_name"}
)
"""Key of a condition by which rules are found -> attribute of a `RuleContext`, the most selective first."""

STEPS_PER_RULE: Final = 100
"""Characters of a text, times globs, that are compared in the time in which a rule is tried."""

Remaining = dict[int, Rule]
"""Number of a rule -> the rule: those that no index has taken yet."""

Named = TypeVar("Named")


class _TextIndex:
    """Finds the numbers of the rules that may match by one text of a context."""

    def __init__(self, attribute: str, named: Mapping[int, GlobSet]) -> None:
        self._text: Final[Callable[[RuleContext], bytes]] = attrgetter(attribute)
        self._index: Final = GlobIndex({number: globs.literal_parts for number, globs in named.items()})
        self._rules: Final = [number for number, globs in named.items() for _ in globs.globs]
        """Number of a glob -> the number of its rule."""
        self._globs: Final[dict[int, list[int]]] = {}
        for glob, number in enumerate(self._rules):
            self._globs.setdefault(number, []).append(glob)
        self._automaton: Final = GlobAutomaton([glob for globs in named.values() for glob in globs.globs])

    def find(self, context: RuleContext) -> Iterable[int]:
        """Return the numbers of the rules that may match, unsorted, and some more than once."""
        text = fold(self._text(context))
        found = self._index.find(text)
        if len(found) <= MANY:
            return found
        candidates = {glob for number in found for glob in self._globs[number]}
        context.work += len(candidates) * len(text) // STEPS_PER_RULE
        return [self._rules[glob] for glob in self._automaton.find(text, candidates)]


class RuleIndex:
    """Finds the numbers of the rules that may match a context."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        remaining = dict(enumerate(rules))
        self._texts: Final = _text_indexes(remaining)
        self._headers: Final = _header_index(remaining)
        self._windows: Final = _window_index(remaining)
        self._sizes: Final = _size_index(remaining)
        self._unindexed: Final = tuple(remaining)
        self.is_useful: Final = len(remaining) < len(rules)
        """Whether it spares trying any rule."""

    @property
    def looks_up_texts(self) -> bool:
        """Whether the length of addresses and names matters, as parts of them are looked up."""
        return bool(self._texts)

    def candidates(self, context: RuleContext) -> Iterable[int]:
        """Return the numbers of the rules that may match, in their order."""
        found = [*self._unindexed]
        for index in self._texts:
            found += index.find(context)
        for condition in context.header_matches:
            found += self._headers.get(condition, ())
        for window, numbers in self._windows.items():
            if window.share(context.elapsed):
                found += numbers
        if self._sizes is not None:
            found += self._sizes.find(context.size)
        return sorted({*found}) if len(found) > 1 else found


def useful_index(rules: Sequence[Rule]) -> RuleIndex | None:
    """Return an index of rules; None where all of them would have to be tried."""
    index = RuleIndex(rules)
    return index if index.is_useful else None


def _take(remaining: Remaining, named: Mapping[int, Named]) -> Mapping[int, Named]:
    """Take the rules of an index away from those that remain; return none where they are too few for one."""
    if len(named) < INDEX_THRESHOLD:
        return {}
    for number in named:
        del remaining[number]
    return named


def _text_indexes(remaining: Remaining) -> list[_TextIndex]:
    """Return an index for each text that enough rules name."""
    indexes = []
    for key, attribute in INDEXED_TEXTS.items():
        named = {
            number: globs
            for number, rule in remaining.items()
            if (globs := condition_globs(rule, key)) is not None and globs.literal_parts
        }
        if taken := _take(remaining, named):
            indexes.append(_TextIndex(attribute, taken))
    return indexes


def _header_index(remaining: Remaining) -> dict[GlobSet, tuple[int, ...]]:
    """Return the numbers of the rules with each condition on header fields."""
    conditions = {
        number: globs for number, rule in remaining.items() if (globs := condition_globs(rule, "header"))
    }
    index: dict[GlobSet, tuple[int, ...]] = {}
    for number, globs in _take(remaining, conditions).items():
        index[globs] = (*index.get(globs, ()), number)
    return index


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


def header_globs(rule: Rule) -> Iterator[GlobSet]:
    """Yield the globs of all conditions of a rule on header fields, negated or not."""
    for test in rule.conditions:
        if test.key == "header" and isinstance(test.operand, GlobSet):
            yield test.operand


def condition_globs(rule: Rule, key: str) -> GlobSet | None:
    """Return the globs of a rule's condition with this key that is not negated; None where it has none."""
    found = (
        test.index_key for test in rule.conditions if test.key == key and isinstance(test.index_key, GlobSet)
    )
    return next(found, None)
