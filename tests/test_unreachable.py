"""Rules that can never match: which are reported, and that nothing that can match is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.rules.context import RuleContext
from blackhole.rules.globs import Glob
from blackhole.rules.model import Rule
from blackhole.rules.scenario_file import parse_rules
from blackhole.rules.unreachable import MAX_GLOB_WORK, NumberedRule, PrecedingRules, _covers, find_mistakes
from tests.program import run

pytestmark = pytest.mark.pure

REFUSE = 'reply = "550 5.7.1 No"'


def mistakes(text: str, *listeners: str, has_tls: bool = True) -> list[str]:
    return list(find_mistakes(parse_rules(text, "test"), listeners or ("0.0.0.0:25",), has_tls))


def two(first: str, second: str, phases: str = '"RCPT"') -> list[str]:
    """Return what is said of two rules with these conditions."""
    return mistakes("".join(f"[[rule]]\nphase = {phases}\n{one}\n{REFUSE}\n" for one in (first, second)))


SHADOWED = ["rule 2: can never match: rule 1 matches before it"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("", 'recipient = "bob@*"'),
        ('recipient = "bob@example.com"', 'recipient = "BOB@example.com"'),
        ('recipient = ["bob@*", "ann@*"]', 'recipient = "ann@*"'),
        ('recipient = "*@example.com"', 'recipient = ["b?b@example.com", "ann@example.com"]'),
        ('recipient = "*"', 'recipient = "*@*"'),
        ('recipient = "b*"', 'recipient = "b*b"'),
        ('size = "> 10M"', 'size = "> 20M"'),
        ('size = ">= 5"', "size = 5"),
        ('size = "<= 5"', 'size = "< 6"'),
        ('client = "192.0.2.0/24"', 'client = ["192.0.2.7", "192.0.2.128/25"]'),
        ('client = "2001:db8::/32"', 'client = "2001:db8::1"'),
        ("tls = true", "tls = true"),
        ('listener = "*:25"', "listener = 25"),
        ('sender = "ann@*"', 'sender = "ann@example.com"\nrecipient = "bob@*"\nsize = "> 5"'),
        ('helo = "*.example.com"', 'helo = "mx.example.com"\nchance = 0.5'),
        ('recipient = "bob@*"', 'recipient = "bob@*"\ngreylist = true'),
        ('recipient = "!bob@example.com"', 'recipient = "!bob@*"'),
        ('not = { size = "> 5" }', 'not = { size = "> 3" }'),
        ('recipient = "!bob@*"', 'recipient = "!bob@*"\nsender = "ann@*"'),
        ("recipients = 2", 'recipients = 2\nsize = "> 5"'),
        ('extension = "DSN"', 'extension = "DSN"'),
    ],
)
def test_rule_behind_one_that_matches_all_it_matches_is_reported(first: str, second: str) -> None:
    assert two(first, second) == SHADOWED


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('recipient = "bob@*"', ""),
        ('recipient = "bob@example.com"', 'recipient = ["bob@example.com", "ann@example.com"]'),
        ('recipient = "b?b@*"', 'recipient = "b*b@*"'),
        ('recipient = "*@example.com"', 'recipient = "*"'),
        ('recipient = "bob@*"', 'sender = "bob@*"'),
        ('size = "> 10M"', 'size = "> 5M"'),
        ('size = "< 6"', 'size = "<= 6"'),
        ('client = "192.0.2.0/24"', 'client = "192.0.0.0/16"'),
        ('client = "192.0.2.0/24"', 'client = "2001:db8::1"'),
        ("tls = true", "tls = false"),
        ("chance = 0.5", ""),
        ("attempt = 1", "attempt = 1"),
        ("greylist = true", ""),
        ('throttle = { recipients = 5, per = "minute" }', ""),
    ],
)
def test_rule_that_can_match_is_not_reported(first: str, second: str) -> None:
    assert two(first, second) == []


def test_rule_in_a_window_shadows_nothing() -> None:
    window = '[[window]]\nname = "late"\nat = 60\nfor = 60\n'
    rule = f'[[rule]]\nphase = "RCPT"\n{REFUSE}\n'
    assert mistakes(f'{window}{rule}window = "late"\n{rule}') == []
    assert mistakes(rule * 2) == SHADOWED


def test_rule_is_reported_only_if_it_is_shadowed_in_all_its_phases() -> None:
    first = f'[[rule]]\nphase = "MAIL"\n{REFUSE}\n'
    second = f'[[rule]]\nname = "rcpt"\nphase = "RCPT"\n{REFUSE}\n'
    third = f'[[rule]]\nname = "both"\nphase = ["MAIL", "RCPT"]\n{REFUSE}\n'
    assert mistakes(first + third) == []
    assert mistakes(first + second + third) == [
        "rule 3 (both): can never match: rule 1 and rule 2 (rcpt) match before it"
    ]


def test_rules_for_single_addresses_shadow_one_for_several_together() -> None:
    rules = "".join(
        f'[[rule]]\nphase = "RCPT"\nrecipient = {who}\n{REFUSE}\n'
        for who in ('"a@x.example"', '"b@x.example"', '["a@x.example", "b@x.example"]')
    )
    assert mistakes(rules) == ["rule 3: can never match: rule 1 and rule 2 match before it"]


def test_condition_that_nothing_fulfils_is_reported() -> None:
    rule = f'[[rule]]\nphase = "RCPT"\nlistener = 2526\n{REFUSE}\n'
    assert mistakes(rule, "0.0.0.0:25") == ["rule 1: can never match: no listener is 2526"]
    assert mistakes(rule, "0.0.0.0:25", "127.0.0.1:2526") == []
    rule = f'[[rule]]\nphase = "RCPT"\ntls = true\n{REFUSE}\n'
    assert mistakes(rule, has_tls=False) == ["rule 1: can never match: there is no TLS without ssl_cert"]
    assert mistakes(rule.replace("true", "false"), has_tls=False) == []


@pytest.mark.parametrize(
    ("effect", "wanted"),
    [
        (
            'hide = "PIPELINNG"',
            ["hides PIPELINNG, which EHLO never lists (did you mean PIPELINING?)"],
        ),
        ('hide = ["PIPELINING", "size"]', []),
        ('hide = "ETRN"', ["hides ETRN, which EHLO never lists"]),
        (
            'add = "CHUNKNIG"',
            ["adds CHUNKNIG, which is no registered EHLO keyword (did you mean CHUNKING?)"],
        ),
        ('add = ["ETRN", "SIZE 5", "XCLIENT NAME ADDR", "LIMITS RCPTMAX=5"]', []),
    ],
)
def test_ehlo_keyword_that_does_not_exist_is_reported(effect: str, wanted: list[str]) -> None:
    assert mistakes(f'[[rule]]\nphase = "EHLO"\n{effect}\n') == [f"rule 1: {one}" for one in wanted]


GLOBS = st.text("ab*?", max_size=6)


@given(GLOBS, GLOBS, st.lists(st.text("ab", max_size=6), max_size=30))
def test_glob_covers_another_only_if_it_matches_all_texts_of_it(
    wide: str, narrow: str, texts: list[str]
) -> None:
    if _covers(wide, narrow):
        assert all(Glob(wide).match(text) for text in texts if Glob(narrow).match(text))
    assert _covers("*", narrow)
    assert _covers(narrow, narrow)


def test_long_globs_are_not_compared() -> None:
    half = "*" + "a" * (MAX_GLOB_WORK // 100)
    assert not _covers("*a" * 60, half)


RECIPIENTS = (
    "",
    'recipient = "bob@x"',
    'recipient = "b*"',
    'recipient = ["ann@x", "bob@x"]',
    'recipient = "*@x"',
)
SIZES = "", 'size = "> 5"', 'size = "<= 9"', "size = 7"
CLIENTS = "", 'client = "192.0.2.0/24"', 'client = "192.0.2.1"'


@given(
    st.lists(st.tuples(*map(st.sampled_from, (RECIPIENTS, SIZES, CLIENTS))), min_size=1, max_size=6),
    st.sampled_from([b"bob@x", b"ann@x", b"b@y", b"eve@z"]),
    st.sampled_from([0, 6, 7, 10]),
    st.sampled_from(["192.0.2.1", "192.0.2.9", "198.51.100.1"]),
)
def test_no_rule_that_is_reported_ever_matches(
    rows: list[tuple[str, ...]], recipient: bytes, size: int, client: str
) -> None:
    text = "".join("\n".join(('[[rule]]\nphase = "RCPT"', *row, REFUSE, "")) for row in rows)
    rules = parse_rules(text, "test")
    reported = {int(line.split()[1].rstrip(":")) for line in find_mistakes(rules, [":25"], True)}
    context = RuleContext("", client)
    context.update("MAIL", b"ann@x", size)
    context.update("RCPT", recipient)
    for number in reported:
        before, (rule, *_) = rules[: number - 1], rules[number - 1 :]
        if matches(rule, context):
            assert any(matches(one, context) for one in before)


def matches(rule: Rule, context: RuleContext) -> bool:
    return all(condition.matches(context) for condition in rule.conditions)


def test_many_rules_are_checked_without_comparing_all_pairs() -> None:
    rule = '[[rule]]\nphase = "RCPT"\nrecipient = "*{:04}@x"\n' + REFUSE
    rules = parse_rules("\n".join(map(rule.format, range(1500))), "test")
    shadows = PrecedingRules(max_pairs=1000)
    for numbered in map(NumberedRule, range(1, 1501), rules):
        assert shadows.covering(numbered.rule) == ""
        shadows.add(numbered)
    assert shadows.pairs_left < 0
    assert PrecedingRules(max_pairs=0).covering(rules[0]) == ""


def test_checking_the_configuration_warns_and_succeeds(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(f'[[rule]]\nphase = "RCPT"\n{REFUSE}\n[[rule]]\nphase = "RCPT"\n{REFUSE}\n')
    done = run("-t", f"--scenario={file}", "--port=2525")
    assert (done.returncode, done.stdout) == (os.EX_OK, "The configuration is good.\n")
    assert done.stderr == "blackhole: scenario: rule 2: can never match: rule 1 matches before it\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('recipient = "!bob@*"', 'recipient = "bob@*"'),
        ('recipient = "bob@*"', 'recipient = "!bob@*"'),
        ('recipient = "!bob@*"', 'recipient = "!bob@example.com"'),
        ('not = { size = "> 3" }', 'not = { size = "> 5" }'),
        ('recipient = "!bob@example.com"', 'recipient = ["ann@example.com", "!eve@example.com"]'),
        ("recipients = 2", "recipients = 3"),
    ],
)
def test_rule_behind_one_that_excludes_something_can_match(first: str, second: str) -> None:
    assert two(first, second) == []


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (
            'recipient = ["bob@example.com", "!*@example.com"]',
            "recipient cannot be bob@example.com and ",
        ),
        ("size = 5\nnot = { size = '> 3' }", "size cannot be 5 and not > 3"),
        (
            "client = '192.0.2.1'\nnot = { client = '192.0.2.0/24' }",
            "client cannot be 192.0.2.1 and not 192.",
        ),
        ("tls = true\nnot = { tls = true }", "tls cannot be true and not true"),
        ('listener = "!*:25"', "no listener is not *:25"),
        ("chance = 0", "its chance is 0"),
    ],
)
def test_conditions_that_exclude_each_other_are_reported(conditions: str, reason: str) -> None:
    (found,) = mistakes(f"[[rule]]\nphase = 'RCPT'\n{conditions}\n{REFUSE}\n")
    assert found.startswith(f"rule 1: can never match: {reason}")


@pytest.mark.parametrize("condition", ['tls_version = "1.3"', "tls = true", "not = { tls = false }"])
def test_condition_that_needs_tls_cannot_match_without_a_certificate(condition: str) -> None:
    text = f"[[rule]]\nphase = 'RCPT'\n{condition}\n{REFUSE}\n"
    assert mistakes(text, has_tls=False) == ["rule 1: can never match: there is no TLS without ssl_cert"]
    assert mistakes(text) == []


@pytest.mark.parametrize(
    "condition", ["not = { tls = true }", 'tls_version = "!1.3"', "tls = false", 'not = { sender = "<>" }']
)
def test_negated_condition_can_match_without_tls(condition: str) -> None:
    assert mistakes(f"[[rule]]\nphase = 'RCPT'\n{condition}\n{REFUSE}\n", has_tls=False) == []
