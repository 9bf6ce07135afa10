"""A table of rules: what is found by addresses, fields and hours is what asking each of them would find."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackhole.rules.comparisons import COMPARISONS, MAX_SPANS, comparison
from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Effect
from blackhole.rules.glob_prefilter import FEW_ENDS, GlobPrefilter, can_prefilter
from blackhole.rules.globs import GlobSet
from blackhole.rules.listener_rules import ListenerRules
from blackhole.rules.model import Condition, Rule, RuleMatch, Window
from blackhole.rules.scenario_file import parse_rules
from blackhole.rules.table import RuleTable
from blackhole.smtp.header_section import ANY_NAME

pytestmark = pytest.mark.pure

TEXT = st.sampled_from(
    ("ann@example.com", "Bob.Bulk@example.com", "bob@bulk.example.com", "news+ann@example.com", "")
)


def with_wildcard(text: str, start: int, length: int, sign: str) -> str:
    """A glob that the text fits, whatever is in the place of what is hidden."""
    return text[:start] + sign + text[start + length :]


GLOB = st.one_of(
    TEXT,
    TEXT.map(lambda text: "*" + text[text.rfind("@") :]),
    st.tuples(TEXT, st.integers(1, 6)).map(lambda cut: cut[0][: cut[1]] + "*"),
    st.builds(with_wildcard, TEXT, st.integers(0, 16), st.integers(0, 12), st.just("*")),
    st.builds(with_wildcard, TEXT, st.integers(0, 9), st.just(1), st.just("?")),
    st.tuples(TEXT, st.integers(0, 5), st.integers(6, 14)).map(lambda cut: f"*{cut[0][cut[1] : cut[2]]}*"),
)
GLOBS = st.lists(GLOB, min_size=1, max_size=2)
NAME = st.sampled_from(["To", "Subject", "X-*", "T?"])
FIELDS = st.lists(st.tuples(NAME, GLOB).map(": ".join), min_size=1, max_size=2)


def text_condition(key: str, globs: Sequence[str]) -> Condition:
    made = GlobSet(globs)
    return Condition(key, "", lambda context: made.match(getattr(context, key)), made)


def header_condition(globs: Sequence[str]) -> Condition:
    made = GlobSet(globs)
    return Condition("header", "", lambda context: any(map(made.match, context.header)), made)


def size_condition(sign: str, limit: int) -> Condition:
    compare = comparison(sign, limit)
    return Condition("size", "", lambda context: compare(context.size), compare)


SIZES = st.builds(size_condition, st.sampled_from(sorted(COMPARISONS)), st.integers(0, 4))

Tests = tuple[Condition, ...]

KINDS: tuple[st.SearchStrategy[Tests], ...] = (
    st.just(()),
    GLOBS.map(lambda globs: (text_condition("recipient", globs),)),
    GLOBS.map(lambda globs: (text_condition("sender", globs),)),
    FIELDS.map(lambda globs: (header_condition(globs),)),
    st.tuples(GLOBS.map(lambda globs: text_condition("helo", globs)), FIELDS.map(header_condition)),
    SIZES.map(lambda size: (size,)),
)
HOURS = st.sampled_from([None, None, Window("night", 10, 10), Window("noon", 15, 10)])
RULES = st.sampled_from(KINDS).flatmap(
    lambda kind: st.lists(
        st.tuples(st.one_of(kind, kind, kind, kind, *KINDS[1:]), HOURS), min_size=4, max_size=9
    )
)


@settings(max_examples=400, deadline=None)
@given(
    RULES,
    TEXT,
    TEXT,
    TEXT,
    st.lists(st.tuples(NAME, TEXT), max_size=3),
    st.sampled_from([0, 12, 17, 22]),
    st.integers(0, 5),
)
def test_table_finds_the_first_rule_whose_conditions_match(
    made: list[tuple[Tests, Window | None]],
    sender: str,
    recipient: str,
    helo: str,
    header: list[tuple[str, str]],
    at: float,
    size: int,
) -> None:
    rules = [
        Rule(frozenset(("RCPT",)), Effect(), tests, window=window, counter=number)
        for number, (tests, window) in enumerate(made, 1)
    ]
    context = RuleContext()
    context.size = size
    context.sender, context.recipient, context.helo, context.elapsed = (
        sender.encode(),
        recipient.encode(),
        helo.encode(),
        at,
    )
    context.header = [f"{name}: {value}".encode() for name, value in header]
    wanted = [
        rule.counter
        for rule in rules
        if all(test.matches(context) for test in rule.conditions) and rule.probability(at)
    ]
    table = RuleTable(rules)
    for _ in table.compare_header(context):
        pass
    found = table.find(context, Random(7))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("index", "globs"):
            patch.setattr(f"blackhole.rules.{module}.MANY", 0)
        assert table.find(context, Random(7)) == found
    assert found is None or isinstance(found, RuleMatch)
    assert (found.counter if found else 0) == (wanted or [0])[0]
    narrowed = table.narrowed(context)
    if narrowed is None:
        assert not wanted
        return
    for _ in narrowed.compare_header(context):
        pass
    assert narrowed.find(context, Random(7)) == found


@pytest.mark.parametrize(
    "glob", ["bob@bulk.example.com", "*@bulk.example.com", "bob*", "*.example.com", "*bulk*", "b?b@*", "*"]
)
def test_indexed_rule_is_found_by_any_part_of_an_address(glob: str) -> None:
    globs = ["ann@other.test", "*@other.test", "ann*", "*.test", "*other*", glob]
    rules = [
        Rule(frozenset(("RCPT",)), Effect(), (text_condition("recipient", [one]),), counter=number)
        for number, one in enumerate(globs)
    ]
    context = RuleContext()
    context.recipient = b"Bob@BULK.example.com"
    found = RuleTable(rules).find(context, Random(7))
    assert isinstance(found, RuleMatch) and globs[found.counter] == glob


@pytest.mark.parametrize("count", [1, FEW_ENDS + 1])
@given(st.lists(GLOB, min_size=1, max_size=3), TEXT)
def test_screen_passes_every_text_that_a_glob_matches(count: int, globs: list[str], text: str) -> None:
    """However many other ends there are, of whatever length."""
    others = [f"{'x' * number}*" for number in range(1, count)] + [
        f"*{'y' * number}" for number in range(1, count)
    ]
    parts = [part for glob in (*globs, *others) for part in GlobSet([glob]).literal_parts]
    screened = [part for part in parts if can_prefilter([part])]
    prefilter = GlobPrefilter(screened)
    may_match = any(GlobSet([glob]).match(text.encode()) for glob in globs if _is_prefiltered(glob))
    assert prefilter.may_match(text.upper().encode()) or not may_match


def _is_prefiltered(glob: str) -> bool:
    return can_prefilter(GlobSet([glob]).literal_parts)


@pytest.mark.parametrize("count", [1, 1000])
def test_screen_stops_texts_that_have_none_of_the_parts(count: int) -> None:
    rules = parse_rules(
        "".join(
            f"[[rule]]\nphase = 'RCPT'\nrecipient = {recipient!r}\nreply = '550 5.1.1 No'\n"
            for number in range(count)
            for recipient in (f"user{number}@*", f"*@host{number}.test", f"*-{number}@lists.test")
        ),
        "test",
    )
    table, context = RuleTable(rules), RuleContext()
    for recipient, may_match in (
        ("USER0@a.example", True),
        ("ann@host0.test", True),
        ("ann-0@Lists.test", True),
        ("ann@a.example", False),
        ("usher0@host.test", False),
        ("", False),
    ):
        context.recipient = recipient.encode()
        assert (table.narrowed(context) is not None) is may_match


def test_rules_that_cannot_be_screened_are_left() -> None:
    texts = ("recipient = 'full@*'", "sender = '*'", "recipient = 'bob@*'\nsender = 'ann@*'", "chance = 0.5")
    rules = parse_rules(
        "".join(f"[[rule]]\nphase = 'RCPT'\n{text}\nreply = '550 5.1.1 No'\n" for text in texts), "test"
    )
    table, context = RuleTable(rules), RuleContext()
    context.recipient = b"eve@a.example"
    narrowed = table.narrowed(context)
    assert narrowed is not None
    assert [rule.name for rule in narrowed._rules] == ["2", "4"]


@pytest.mark.parametrize(("at", "matched"), [(9.0, None), (10.0, 2), (13.0, 2), (15.0, 4), (20.0, None)])
def test_indexed_rule_is_found_by_its_window(at: float, matched: int | None) -> None:
    hours = [
        Window("night", 0, 5),
        Window("night", 0, 5),
        Window("dawn", 10, 4),
        Window("dawn", 10, 4),
        Window("noon", 14, 6),
    ]
    rules = [
        Rule(frozenset(("RCPT",)), Effect(), window=window, counter=number)
        for number, window in enumerate(hours)
    ]
    context = RuleContext()
    context.elapsed = at
    table = RuleTable(rules)
    for _ in table.compare_header(context):
        pass
    found = table.find(context, Random(7))
    assert (found.counter if isinstance(found, RuleMatch) else found) == matched


@pytest.mark.parametrize(
    ("field", "matched"),
    [
        ("To: ann@example.com", 0),
        ("X-Load: ann@example.com", 3),
        ("Subject: nothing", 4),
        ("Subject: news, twice", 1),
        ("From: ann@example.com", None),
    ],
)
def test_indexed_rule_is_found_by_a_header_field(field: str, matched: int | None) -> None:
    kinds = [
        ["To: *@example.com"],
        ["Subject: *news*", "To: *@other.test"],
        ["To: *@third.test"],
        ["X-*: ann*"],
    ]
    rules = [
        Rule(frozenset(("RCPT",)), Effect(), (header_condition(globs),), counter=number)
        for number, globs in enumerate([*kinds, ["Subject: nothing"], ["From: bob@*"]])
    ]
    context = RuleContext()
    context.header = [field.encode()]
    table = RuleTable(rules)
    for _ in table.compare_header(context):
        pass
    found = table.find(context, Random(7))
    assert (found.counter if isinstance(found, RuleMatch) else found) == matched


def test_indexed_rule_is_found_by_the_size() -> None:
    wanted = [(">", 1000), ("=", 40), ("<", 10), (">=", 500), ("<=", 20), (">", 100)]
    rules = [
        Rule(frozenset((".",)), Effect(), (size_condition(*bound),), counter=number)
        for number, bound in enumerate(wanted)
    ]
    table = RuleTable(rules)
    context = RuleContext()
    for size in (*range(1100), 5000):
        context.size = size
        holds = [number for number, (sign, limit) in enumerate(wanted) if comparison(sign, limit)(size)]
        found = table.find(context, Random(7))
        assert [found.counter if isinstance(found, RuleMatch) else found] == (holds or [None])[:1]


def test_memory_of_the_size_index_is_bounded() -> None:
    table = RuleTable(
        Rule(frozenset(("MAIL",)), Effect(), (size_condition("=", 10 * limit),), counter=limit)
        for limit in range(1000)
    )
    context = RuleContext()
    for context.size in range(10000):
        found = table.find(context, Random(7))
        assert (found.counter if isinstance(found, RuleMatch) else None) == (
            None if context.size % 10 else context.size // 10
        )
        assert table._index is not None and table._index._sizes is not None
        assert len(table._index._sizes._spans) <= MAX_SPANS


def test_the_header_fields_that_rules_look_at_are_known_by_their_names() -> None:
    rules = parse_rules(
        "[[rule]]\nphase = '.'\nheader = ['Subject: *a*', 'X-Two: b']\nreply = '550 5.7.1 No'\n"
        "[[rule]]\nphase = '.'\nheader = 'X-*: c'\nreply = '550 5.7.1 No'\n",
        "test.toml",
    )
    assert ListenerRules(rules, "accept").header_names == {b"subject", b"x-two", ANY_NAME}
