"""Rules that can never match, and EHLO keywords that do not exist: what is probably a mistake in a scenario.

A rule is shadowed if others before it match whatever it would match. Only what is certain is reported: rules
with a chance, a window, a limiter or a number of attempts shadow nothing. In a scenario of many thousand
rules not all pairs are compared.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from blackhole.addresses import network
from blackhole.rules.comparisons import COMPARISONS, Comparison
from blackhole.rules.context import RuleContext
from blackhole.rules.globs import Glob, GlobSet
from blackhole.rules.letters import fold
from blackhole.rules.model import Condition, Rule
from blackhole.smtp.extensions import EXTENSIONS
from blackhole.values import did_you_mean

WILDCARDS: Final = frozenset("*?")

MAX_PAIRS: Final = 500_000
"""Pairs of rules that are compared one by one: a second."""

MAX_GLOB_WORK: Final = 1 << 14
"""Product of the lengths of two globs that are compared."""

OFFERED: Final = frozenset(row.keyword for row in EXTENSIONS) | {"HELP"}
"""Keywords that EHLO lists, if the listener offers them."""

REGISTERED: Final = OFFERED | {
    *("ATRN", "BURL", "CHECKPOINT", "CONNEG", "CONPERM", "DELIVERBY", "ETRN", "EXPN", "FUTURERELEASE"),
    *("LIMITS", "MT-PRIORITY", "MTRK", "NO-SOLICITING", "REQUIRETLS", "RRVS", "SAML", "SEND", "SOML"),
    *("SUBMITTER", "TURN", "UTF8SMTP", "VERB"),
}
"""The registry of SMTP service extensions (RFC 5321 2.2.2). Keywords that begin with X are local."""


class NumberedRule(NamedTuple):
    """A rule and its number, from 1, in its scenario."""

    number: int
    rule: Rule

    def __str__(self) -> str:
        name = self.rule.name
        return f"rule {self.number}" + (f" ({name})" if name != str(self.number) else "")


def find_mistakes(rules: Sequence[Rule], listeners: Collection[str], has_tls: bool) -> Iterator[str]:
    """Yield a line for each rule that can never match, and for each keyword that does not exist.

    `listeners` are the addresses of the listeners as the operator wrote them; `has_tls`: there is a
    certificate.

    >>> from blackhole.rules.scenario_file import parse_rules
    >>> text = '[[rule]]\\nphase = "EHLO"\\nhide = "PIPELINNG"'
    >>> list(find_mistakes(parse_rules(text, "example"), [":25"], True))
    ['rule 1: hides PIPELINNG, which EHLO never lists (did you mean PIPELINING?)']
    """
    shadows = PrecedingRules()
    for numbered in map(NumberedRule, range(1, len(rules) + 1), rules):
        reason = _impossible(numbered.rule, listeners, has_tls) or shadows.covering(numbered.rule)
        if reason:
            yield f"{numbered}: can never match: {reason}"
        else:
            shadows.add(numbered)
        yield from (f"{numbered}: {mistake}" for mistake in _keyword_mistakes(numbered.rule))


def _impossible(rule: Rule, listeners: Collection[str], has_tls: bool) -> str:
    """Return which condition of a rule no client can fulfil; empty if there is none."""
    if not rule.chance:
        return "its chance is 0"
    for condition in rule.conditions:
        if condition.key == "listener":
            if not any(condition.matches(RuleContext(listener)) for listener in listeners):
                return f"no listener is {'not ' if condition.negated else ''}{condition.text}"
        elif (
            not has_tls
            and condition.key in ("tls", "tls_version")
            and condition.negated is (condition.text == "false")
            and not (condition.negated and condition.key == "tls_version")
        ):
            return "there is no TLS without ssl_cert"
        elif condition.negated:
            excluded = condition._replace(negated=False)
            same = (one for one in rule.conditions if one.key == condition.key and not one.negated)
            for one in same:
                if _implies(one, excluded):
                    return f"{one.key} cannot be {one.text} and not {condition.text}"
    return ""


def _keyword_mistakes(rule: Rule) -> Iterator[str]:
    for keyword in rule.effect.hide:
        if keyword.upper() not in OFFERED:
            close = did_you_mean(keyword.upper(), sorted(OFFERED))
            yield f"hides {keyword}, which EHLO never lists{close}"
    for line in rule.effect.add:
        keyword = line.split(" ")[0].upper()
        if keyword not in REGISTERED and not keyword.startswith("X"):
            close = did_you_mean(keyword, sorted(REGISTERED))
            yield f"adds {keyword}, which is no registered EHLO keyword{close}"


class PrecedingRules:
    """The rules so far that match for certain where their conditions do."""

    def __init__(self, max_pairs: int = MAX_PAIRS) -> None:
        self._literals: Final[dict[tuple[str, str, str], NumberedRule]] = {}
        """Phase, key and text -> the rule whose only condition names this text, alone or among others."""
        self._others: Final[dict[str, list[NumberedRule]]] = {}
        """Phase -> the other rules."""
        self.pairs_left = max_pairs

    def add(self, numbered: NumberedRule) -> None:
        """Take in a rule that comes before those that follow."""
        rule = numbered.rule
        certain = rule.chance >= 1 and rule.window is None and rule.limiter is None
        if not certain or any(one.key == "attempt" or one.has_parts for one in rule.conditions):
            return
        only = rule.conditions[0] if len(rule.conditions) == 1 else None
        literals = () if only is None or only.negated else _globs(only)
        if only is not None and literals and not any(map(WILDCARDS.intersection, literals)):
            for phase in rule.phases:
                for literal in literals:
                    self._literals.setdefault((phase, only.key, literal), numbered)
        else:
            for phase in rule.phases:
                self._others.setdefault(phase, []).append(numbered)

    def covering(self, rule: Rule) -> str:
        """Return which rules match before a rule in each of its phases; empty if it can match in one."""
        found: dict[int, NumberedRule] = {}
        for phase in rule.phases:
            covering = self._covering_at(phase, rule)
            if not covering:
                return ""
            found |= {numbered.number: numbered for numbered in covering}
        names = [str(found[number]) for number in sorted(found)]
        return f"{' and '.join(names)} {'matches' if len(names) == 1 else 'match'} before it"

    def _covering_at(self, phase: str, rule: Rule) -> Sequence[NumberedRule]:
        """Return the rules that match in a phase whatever a rule matches."""
        for condition in rule.conditions:
            if condition.negated:
                continue
            found = [self._literals.get((phase, condition.key, glob)) for glob in _globs(condition)]
            if found and all(found):
                return [one for one in found if one is not None]
        for numbered in self._others.get(phase, ()):
            self.pairs_left -= 1
            if self.pairs_left < 0:
                break
            if all(_is_implied(condition, rule.conditions) for condition in numbered.rule.conditions):
                return [numbered]
        return []


def _is_implied(wide: Condition, conditions: Sequence[Condition]) -> bool:
    """Return whether a condition holds wherever all others hold."""
    return any(_implies(narrow, wide) for narrow in conditions if narrow.key == wide.key)


def _implies(narrow: Condition, wide: Condition) -> bool:
    """Return whether one condition holds wherever another one with the same key holds; False if not sure."""
    if narrow.negated is not wide.negated:
        return False
    if narrow.negated:
        return _implies(wide._replace(negated=False), narrow._replace(negated=False))
    if narrow.text == wide.text:
        return True
    if isinstance(narrow.operand, partial) and isinstance(wide.operand, partial):
        (least, most), (lowest, highest) = _interval(narrow.operand), _interval(wide.operand)
        return lowest <= least and most <= highest
    if narrow.key == "client":
        return _is_part(narrow, wide)
    narrow_globs, wide_globs = _globs(narrow), _globs(wide)
    return bool(narrow_globs) and all(any(_covers(w, n) for w in wide_globs) for n in narrow_globs)


def _globs(condition: Condition) -> Sequence[str]:
    """Return the globs of a condition; none if it has none."""
    if isinstance(condition.operand, GlobSet):
        return condition.operand.globs
    if condition.key != "listener":
        return ()
    globs = condition.text.split(" or ")
    return [fold((f"*:{glob}" if glob.isdecimal() else glob).encode()) for glob in globs]


def _interval(compare: Comparison) -> tuple[float, float]:
    """Return the least and the greatest whole number for which a comparison is true."""
    (limit,) = compare.args
    sign = next(sign for sign, function in COMPARISONS.items() if function is compare.func)
    return {
        "<=": (0, limit),
        ">=": (limit, math.inf),
        "<": (0, limit - 1),
        ">": (limit + 1, math.inf),
        "=": (limit, limit),
    }[sign]


def _is_part(narrow: Condition, wide: Condition) -> bool:
    """Return whether all networks of a condition on the client are parts of those of another one."""
    wide_networks = [network(text, strict=False) for text in wide.text.split(" or ")]
    return all(
        any(
            outer.version == inner.version
            and outer.prefixlen <= inner.prefixlen
            and inner.network_address in outer
            for outer in wide_networks
        )
        for inner in (network(text, strict=False) for text in narrow.text.split(" or "))
    )


def _covers(wide: str, narrow: str) -> bool:
    """Return whether a glob matches all that another one matches; False if that takes too long to find out.

    >>> _covers("*@example.com", "b?b@example.com"), _covers("b?b@*", "*@example.com")
    (True, False)
    """
    if not WILDCARDS.intersection(narrow):
        return Glob(wide).match(narrow)
    if len(wide) * len(narrow) > MAX_GLOB_WORK:
        return False
    # Of the other glob, `*` stands for any text, which only `*` covers, and `?` for any character.
    reached = {0}
    for sign in wide:
        if sign == "*":
            reached = set(range(min(reached), len(narrow) + 1)) if reached else reached
        else:
            reached = {
                place + 1
                for place in reached
                if place < len(narrow) and narrow[place] != "*" and sign in ("?", narrow[place])
            }
    return len(narrow) in reached
