"""Variables of scenarios: defaults in [set], other values from outside, and weights of replies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from blackhole.metrics.status import server_lines
from blackhole.rules import scenario
from blackhole.rules.context import RuleContext
from blackhole.rules.scenario_file import parse_rules
from blackhole.rules.variables import typed, with_values
from blackhole.settings import OperatorError, ScenarioVariable
from blackhole.values import variables
from tests.engines import make_engine
from tests.program import run, scenario_option

TEXT = """\
[set]
deferral = 0.0
busy = "5m"
words = "Later"
tls = false
most = 2

[[rule]]
name = "deferral"
phase = "RCPT"
chance = "$deferral"
reply = ["450 4.2.1 ${words} by $$${most}", "450 4.2.1 $words"]
weights = ["${most}", 0]

[[rule]]
throttle = { messages = "$most", per = "$busy", by = "all" }
not = { tls = "$tls", sender = ["$words@*"] }
reply = "450 4.7.1 Wait ${busy}"
"""


def source(**values: str) -> scenario.ScenarioSource:
    (found,) = scenario.set_variables(
        [scenario.parse_source("test.toml", TEXT)], [ScenarioVariable(*one) for one in values.items()]
    )
    return found


def replies(found: scenario.ScenarioSource) -> list[bytes]:
    engine = make_engine(rules=scenario.parse_sources([found]))
    session = engine.session()
    return [session.receive(b"RCPT TO:<bob@example.com>\r\n") for _ in range(20)]


def test_values_of_variables_have_the_type_of_the_key() -> None:
    first, second = scenario.parse_sources([source()])
    assert first.chance == 0
    assert (second.limiter.limit, second.limiter.period) == (2, 300)  # type: ignore[union-attr]
    assert [reply.lines for reply in second.effect.replies] == [("Wait 5m",)]
    assert [(one.key, one.text) for one in second.conditions] == [("tls", "false"), ("sender", "$words@*")]
    assert {*replies(source())} == {b"250 2.1.5 Recipient OK\r\n"}


def test_values_from_outside_take_the_place_of_defaults() -> None:
    found = source(deferral="1", words="Not now", most="3", busy="90", tls="yes")
    assert {*replies(found)} == {b"450 4.2.1 Not now by $3\r\n"}
    _, second = scenario.parse_sources([found])
    assert (second.limiter.limit, second.limiter.period) == (3, 90)  # type: ignore[union-attr]
    assert [one.text for one in second.conditions] == ["true", "$words@*"]
    assert found.variables == {"deferral": 1, "words": "Not now", "most": 3, "busy": 90, "tls": True}
    assert found.text.count("\n") == TEXT.count("\n"), "lines of errors stay the same"


def test_file_without_variables_keeps_its_dollar_signs() -> None:
    (rule,) = parse_rules('[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 $$ $x $5"', "test.toml")
    assert [reply.lines for reply in rule.effect.replies] == [("$$ $x $5",)]


def test_variable_that_no_scenario_has_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(OperatorError) as found:
        source(deferal="1")
    assert str(found.value) == (
        "set: deferal: unknown variable; there are busy, deferral, most, tls, words (did you mean deferral?)"
    )
    with pytest.raises(OperatorError, match=r"set: x: unknown variable; the scenario has no table \[set\]"):
        scenario.set_variables([], [ScenarioVariable("x", "1")])


def test_value_that_does_not_fit_is_an_error_with_its_line() -> None:
    with pytest.raises(OperatorError) as found:
        scenario.parse_sources([source(deferral="often")])
    assert str(found.value) == (
        "test.toml:11: rule 1 (deferral): chance: expected a number, not 'often', from $deferral"
    )


def test_variable_without_a_line_of_its_own_cannot_be_set() -> None:
    for text in ("set = { a = 1 }\n", "set.a = 1\n", "[set]\nb = 1\n[[rule]]\n"):
        with pytest.raises(ValueError, match=r"a: has no line of its own below \[set\], as a = 1"):
            with_values(text, {"a": 1}, {"a": "2"})
    with pytest.raises(ValueError, match="a: has no line of its own"):
        with_values("[set]\nb = 1", {"a": 1}, {"a": "2"})
    inline = scenario.parse_source("test.toml", "set = { a = 1 }\n")
    with pytest.raises(OperatorError, match=r"test.toml: a: has no line of its own below \[set\]"):
        inline.with_variables({"a": "2"})
    assert inline.with_variables({}) is inline
    lines = with_values('[ set ]\n# about\n"a" = 1 # one\nb = 1', {"a": 1, "b": 1}, {"a": "2", "b": "x"})
    assert lines == '[ set ]\n# about\na = 2\nb = "x"\n'


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("5", 1, 5),
        ("-5", 1.5, -5),
        ("0.5", 1, 0.5),
        ("5", "5m", 5),
        ("10M", 100, "10M"),
        ("5", "words", "5"),
        ("true", False, True),
        ("no", True, False),
        ("maybe", True, "maybe"),
        ("true", "words", "true"),
    ],
)
def test_type_of_a_value_is_the_one_that_fits(text: str, default: object, value: object) -> None:
    found = typed(text, default)
    assert (found, type(found)) == (value, type(value))


def test_values_are_separated_by_blanks_and_may_have_blanks() -> None:
    assert variables("a=1  b=x  y c-d=a=b") == (("a", "1"), ("b", "x y"), ("c-d", "a=b"))
    for wrong in ("a", "=1", "1=a", "a=", "a=\x07"):
        with pytest.raises(ValueError, match="expected NAME=VALUE"):
            variables(wrong)


def test_program_takes_values_from_everywhere(tmp_path: Path) -> None:
    option = scenario_option(tmp_path, TEXT)
    conf = tmp_path / "blackhole.conf"
    conf.write_text("set = deferral=1\nset = words=From the conf file\n")
    explained = run(option, f"--conf={conf}", "explain", "--rcpt=bob@example.com").stdout
    assert "Result: 450 4.2.1 From the conf file by $2" in explained
    words = ("--set=deferral=1", "--set=words=From here", "--set", "most=7")
    explained = run(option, f"--conf={conf}", *words, "explain", "--rcpt=bob@example.com").stdout
    assert "Result: 450 4.2.1 From here by $7" in explained
    environment = {"BLACKHOLE_SET": "deferral=1 words=From there"}
    explained = run(option, "explain", "--rcpt=bob@example.com", **environment).stdout
    assert "Result: 450 4.2.1 From there by $2" in explained
    shown = run(option, *words, "--print-config").stdout
    assert "set = deferral=1 words=From here most=7" in " ".join(shown.split())
    wrong = run(option, "--set=deferal=1", "-t")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (78, 1)
    assert "deferal: unknown variable" in wrong.stderr


def test_status_shows_what_was_set() -> None:
    facts = {"scenario": ["profile:gmail"], "set": ["deferral=0.05", "spam=0"]}
    assert list(server_lines(facts, "", 0)) == ["scenario profile:gmail with deferral=0.05, spam=0"]


# Weights


WEIGHED = """
seed = 5
[[rule]]
phase = "RCPT"
reply = ["450 4.2.1 One", "451 4.2.1 Two", "452 4.2.1 Three", "453 4.2.1 Four"]
weights = [8, 1.5, 0, 0.5]
"""


def codes(text: str, count: int) -> list[int]:
    session = make_engine(rules=parse_rules(text, "test.toml")).session()
    return [int(session.receive(b"RCPT TO:<%d@b>\r\n" % number)[:3]) for number in range(count)]


def test_weights_are_the_shares_of_replies() -> None:
    found = Counter(codes(WEIGHED, 4000))
    assert {*found} == {450, 451, 453}
    assert 3100 < found[450] < 3300
    assert 530 < found[451] < 670
    assert 150 < found[453] < 250
    assert codes(WEIGHED, 50) == codes(WEIGHED, 50), "the same in each run"


def test_what_a_seed_and_weights_give_stays_the_same() -> None:
    others = {number: code for number, code in enumerate(codes(WEIGHED, 24)) if code != 450}
    assert others == {2: 453, 8: 453, 11: 453, 17: 451, 21: 451}


def test_first_and_last_reply_of_weight_nothing_are_never_chosen() -> None:
    (rule,) = parse_rules(WEIGHED.replace("[8, 1.5, 0, 0.5]", "[0, 0.1, 0.1, 0]"), "test.toml")
    drawn = {
        reply.code
        for draw in (0.0, 0.25, 0.5, 0.75, 1 - 2**-53)
        if (reply := rule.effect.choose_reply(draw, RuleContext())) is not None
    }
    assert drawn == {451, 452}
