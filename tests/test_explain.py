"""What explain says, what the pages say of scenarios, and the profiles that come with Blackhole."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from blackhole import options
from blackhole.rules import explain, scenario
from blackhole.rules.context import RuleContext
from blackhole.rules.faults import FAULTS
from blackhole.rules.listener_rules import ListenerRules
from blackhole.rules.rule_keys import FILE_KEYS, RULE_KEYS, WINDOW_KEYS
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import OperatorError
from blackhole.smtp.state import PHASES
from blackhole.tls_menu import CERTIFICATES, HANDSHAKE_FAULTS
from tests.program import ROOT, run

pytestmark = pytest.mark.pure

PAGE = (ROOT / "docs" / "scenarios.md").read_text("utf-8")

EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)

SEEDED = next(text for text in EXAMPLES if text.startswith("seed = "))
"""The example that the page explains."""


# Pages


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split("\n")[0])
def test_every_example_of_the_page_is_a_valid_scenario(text: str) -> None:
    assert parse_rules(text, "page")


def test_every_key_is_documented() -> None:
    for key in (*RULE_KEYS, *WINDOW_KEYS, *FILE_KEYS):
        assert f"`{key}`" in PAGE or key in ("about", "rule"), key
    for word in (*FAULTS, *HANDSHAKE_FAULTS, *CERTIFICATES):
        assert f'"{word}"' in PAGE, word
    for phase in PHASES:
        assert f"`{phase}`" in PAGE, phase
    for flag in options.EXPLAIN_OPTIONS:
        assert f"`--{flag}`" in PAGE, flag


def test_documents_show_the_output_of_explain(tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(SEEDED)
    shown = re.search(r"\$ blackhole --scenario slow.toml (.*)\n((?: {4}.*\n)+)", PAGE)
    assert shown is not None
    wanted = "".join(line.removeprefix("    ") for line in shown[2].splitlines(keepends=True))
    done = run(f"--scenario={tmp_path / 'slow.toml'}", *shown[1].split())
    assert (done.stdout, done.returncode) == (wanted, 0)


# What it says


def explain_lines(text: str, *flags: str) -> list[str]:
    """The lines that explain prints."""
    described = dict(flag.split("=", 1) for flag in flags)
    rules = parse_rules(text, "test.toml")
    return list(explain.explain(rules, "bounce", explain.read_context(described, "127.0.0.1:25"), Random(7)))


ALL = """
[[rule]]
name = "connect"
phase = "CONNECT"
client = "192.0.2.0/24"
then = "stall"

[[rule]]
phase = "EHLO"
hide = ["SIZE", "DSN"]
add = "XFUTURE"

[[rule]]
phase = "STARTTLS"
certificate = "expired"
tls_max = "1.2"

[[rule]]
phase = "MAIL"
sender = "<>"
tls = true
listener = 25
reply = "550 5.7.1 No\\nnull senders"

[[rule]]
phase = "RCPT"
attempt = "<= 2"
helo = ["a", "b"]
delay = 2
then = { drip = 3 }

[[rule]]
phase = "."
size = "> 1k"
reply = "552 5.3.4 Too large"

[[rule]]
phase = "."
header = "Subject: *x*"
reply = "accept"

[[rule]]
phase = "DATA"
window = "w"
reply = "451 4.3.0 Now"

[[window]]
name = "w"
at = "1m"
for = "1m"
"""


OWN_REPLY = "Result: the command's own reply"

NO_RULE = "Result: no rule matches; mode bounce: reject every message at its end, with a random code"


@pytest.mark.parametrize(
    ("flags", "last"),
    [
        (["client=192.0.2.1"], ["  rule 1 (connect) matches", "Result: stall"]),
        (["client=192.0.3.1"], [NO_RULE]),
        (["helo=x"], ["  rule 2 matches", f"{OWN_REPLY}, without SIZE DSN, with XFUTURE"]),
        (["phase=starttls"], [f"{OWN_REPLY}, certificate expired, tls_max 1.2"]),
        (["sender=<>", "tls=yes"], ["  rule 4 matches", "Result: 550-5.7.1 No | 550 5.7.1 null senders"]),
        (["rcpt=b@x", "helo=A"], ["  rule 5 matches", f"{OWN_REPLY}, after 2 s, drip"]),
        (["size=2000"], ["  rule 6 matches", "Result: 552 5.3.4 Too large"]),
        (["header=subject: x"], ["  rule 6 does not match: size is not > 1k", "  rule 7 matches", OWN_REPLY]),
        (["phase=other"], [NO_RULE]),
        (["phase=DATA", "at=61"], ["  rule 8 matches", "Result: 451 4.3.0 Now"]),
        (["phase=DATA", "at=1.5m"], ["  rule 8 matches", "Result: 451 4.3.0 Now"]),
    ],
)  # fmt: skip
def test_explain_shows_the_rule_that_matches(flags: list[str], last: list[str]) -> None:
    assert explain_lines(ALL, *flags)[-len(last) :] == last


def test_explain_says_why_rules_do_not_match() -> None:
    assert explain_lines(ALL, "rcpt=b@x", "helo=b", "attempt=3", "at=5") == [
        "RCPT from 127.0.0.1 at 127.0.0.1:25, HELO b, RCPT b@x, attempt 3, 5 s after the start",
        "  rule 1 (connect) does not match: only at CONNECT",
        "  rule 2 does not match: only at EHLO",
        "  rule 3 does not match: only at STARTTLS",
        "  rule 4 does not match: only at MAIL",
        "  rule 5 does not match: attempt is not <= 2",
        "  rule 6 does not match: only at .",
        "  rule 7 does not match: only at .",
        "  rule 8 does not match: only at DATA",
        NO_RULE,
    ]
    assert "  rule 8 does not match: window w is closed" in explain_lines(ALL, "phase=DATA")
    assert (
        explain_lines(ALL, "sender=<>", "tls=yes", "listener=0.0.0.0:26")[4]
        == "  rule 4 does not match: listener is not 25"
    )
    assert explain_lines(ALL, "sender=<>")[4] == "  rule 4 does not match: tls is not true"


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("phase=RSVP", "--phase: expected one of CONNECT, "),
        ("tls=perhaps", "--tls: expected yes, no, or one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3, not 'perhaps'"),
        ("tls=>1.1", "--tls: expected yes, no, or one of TLSv1, "),
        ("extension=SIZE,PIPELINING", "--extension: expected one of SIZE, 8BITMIME, "),
        ("message=0", "--message: expected a whole number from 1, not '0'"),
        ("recipients=all", "--recipients: expected a whole number from 1, not 'all'"),
        ("attempt=0", "--attempt: expected a whole number from 1, not '0'"),
        ("size=-1", f"--size: expected a size from 0 to {2**63 - 1}, as 1000, 64k, 50M or 1G, not '-1'"),
        ("at=soon", "--at: expected a time, as 90, "),
    ],
)
def test_mistake_in_an_option_of_explain_is_a_usage_error(flag: str, wrong: str) -> None:
    with pytest.raises(OperatorError) as found:
        explain_lines(ALL, flag)
    assert str(found.value).startswith(wrong)
    assert found.value.code == 64


SESSION = """
[[rule]]
phase = ["MAIL", "RCPT"]
extension = "SMTPUTF8"
reply = "550 5.6.7 ASCII only"
[[rule]]
phase = "RCPT"
recipients = "> 1"
reply = "452 4.5.3 One only"
[[rule]]
phase = ["MAIL", "RCPT"]
message = "> 1"
not = { tls_version = "1.3" }
reply = "421 4.7.0 One message only"
"""


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["extension=SIZE,smtputf8"], 1),
        (["recipients=2"], 2),
        (["message=2"], 3),
        (["message=2", "tls=1.2"], 3),
        (["message=2", "tls=yes"], 0),
        (["message=2", "tls=TLSv1.3"], 0),
        (["extension="], 0),
        (["rcpt=bob@x"], 0),
    ],
)
def test_explain_knows_what_only_the_session_knows(flags: list[str], rule: int) -> None:
    matching = [line for line in explain_lines(SESSION, *flags) if line.endswith(" matches")]
    assert matching == ([f"  rule {rule} matches"] if rule else [])


def test_explain_says_which_negated_condition_holds_against_a_rule() -> None:
    text = "[[rule]]\nphase = 'RCPT'\nrecipient = '!bob@*'\nreply = '550 5.1.1 Only bob'"
    assert explain_lines(text, "rcpt=bob@x")[1] == "  rule 1 does not match: recipient is bob@*"
    assert explain_lines(text, "rcpt=eve@x")[1] == "  rule 1 matches"


GATES = """
[[rule]]
throttle = { recipients = 3, per = "hour" }
reply = "452 4.5.3 Too many"
[[rule]]
greylist = true
[[rule]]
throttle = { bytes = 100, per = "hour" }
reply = "451 4.7.1 Too much"
[[rule]]
throttle = { concurrent = 2 }
reply = "421 4.7.0 Too many"
"""


@pytest.mark.parametrize(
    ("flags", "last"),
    [
        (["rcpt=b@x"], ["  rule 2 matches", "Result: 450 4.7.1 Greylisted, try again later"]),
        (["rcpt=b@x", "attempt=2"], ["  rule 2 does not match: greylist accepts retries after 300 s"]),
        (["rcpt=b@x", "attempt=3"], ["  rule 1 does not match: throttle allows 3 recipients"]),
        (["rcpt=b@x", "attempt=4"], ["  rule 1 matches", "Result: 452 4.5.3 Too many"]),
        (["size=50", "attempt=2"], ["  rule 3 does not match: throttle allows 100 bytes"]),
        (["size=50", "attempt=3"], ["  rule 3 matches", "Result: 451 4.7.1 Too much"]),
        (["attempt=2"], ["  rule 4 does not match: throttle allows 2 connections at once"]),
        (["attempt=3"], ["  rule 4 matches", "Result: 421 4.7.0 Too many"]),
    ],
)  # fmt: skip
def test_explain_assumes_the_earlier_attempts(flags: list[str], last: list[str]) -> None:
    """As if all attempts were those of one client, and each as long after the other as a greylist wants."""
    assert set(last) <= set(explain_lines(GATES, *flags))


def test_explain_uses_the_mode_of_the_listener() -> None:
    listeners = ("--listen=127.0.0.1:2525", "--listen=127.0.0.1:2526,mode=offline")
    assert "mode accept" in run(*listeners, "explain").stdout
    assert "mode offline" in run(*listeners, "explain", "--listener=127.0.0.1:2526").stdout


def test_options_of_explain_need_the_action_explain() -> None:
    done = run("--rcpt=bob@example.com", "-t")
    assert (done.returncode, done.stderr) == (64, "blackhole: --rcpt: only for the action explain\n")


MANY = "".join(
    f'[[rule]]\nphase = ["RCPT", "DATA"]\nreply = "450 4.2.1 {number}"\n{conditions}\n'
    for number, conditions in enumerate(
        (
            'recipient = "bob@a.example"\nchance = 0.5',
            'recipient = "*@b.example"',
            'recipient = ["*@c.example", "ann@a.example"]\nsender = "*@s.example"',
            'recipient = "*@*.example"\nchance = 0.2',
            'recipient = "ann@*"\ntls = true',
            'recipient = "*@a.example"\nattempt = "> 1"',
            'client = "192.0.2.0/24"\nrecipient = "eve@a.example"',
            'sender = "<>"',
        )
    )
)


def test_explain_agrees_with_the_rule_table() -> None:
    """`explain` asks rule by rule, the server takes short ways; they agree in every case."""
    rules = parse_rules(MANY, "test.toml")
    policy = ListenerRules(rules, "accept", "127.0.0.1:25")
    asked = 0
    for name in ("bob", "ann", "eve", "Bob"):
        for domain in ("a.example", "b.example", "c.example", "B.EXAMPLE", "x.test", ""):
            for sender in (b"", b"ann@s.example", b"x@y"):
                for attempt in (1, 2, 3):
                    for client in ("192.0.2.9", "198.51.100.1"):
                        context = RuleContext("127.0.0.1:25", client, secure=attempt == 3)
                        context.phase, context.sender, context.attempt = "RCPT", sender, attempt
                        context.recipient = f"{name}@{domain}".encode() if domain else name.encode()
                        found = policy.tables_for(context)["RCPT"].find(context, Random(7))
                        *_, last = explain.explain(rules, "accept", context, Random(7))
                        if found is None:
                            assert last.startswith("Result: no rule matches")
                        else:
                            assert (
                                last
                                == f"Result: {explain.describe_effect(found.effect, found.draws, context)}"
                            )
                            asked += 1
    assert asked > 100


# Profiles


@pytest.mark.parametrize("name", scenario.profiles())
def test_profile_has_a_description(name: str) -> None:
    assert scenario.load_rules([f"profile:{name}"])
    assert re.fullmatch(r"[A-Z][ -~]+\.", scenario.about(scenario.read_source(f"profile:{name}")))
    assert all(rule.name for rule in scenario.load_rules([f"profile:{name}"]))


def test_documents_say_that_profiles_are_not_the_official_behaviour_of_a_provider() -> None:
    for page in ("scenarios.md", "reference/profiles.md"):
        text = " ".join((ROOT / "docs" / page).read_text("utf-8").split())
        assert "None of them is the official behaviour of a provider." in text
