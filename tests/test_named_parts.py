"""Named parts of globs: what a client writes in an address, and what the reply and the delay make of it."""

from __future__ import annotations

import time
from random import Random

import pytest

from blackhole.rules import explain
from blackhole.rules.context import RuleContext
from blackhole.rules.named_parts import MAX_PART_LENGTH, NamedGlob, NamedGlobs
from blackhole.rules.scenario_file import parse_rule, parse_rules
from blackhole.rules.unreachable import find_mistakes
from blackhole.settings import OperatorError
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from tests.engines import make_engine

pytestmark = pytest.mark.pure


def say(session: Session, line: str) -> str:
    return session.receive(line.encode() + b"\r\n").decode().strip()


def explained(text: str, recipient: bytes) -> list[str]:
    context = RuleContext()
    context.phase, context.recipient = "RCPT", recipient
    return list(explain.explain(parse_rules(text, "test"), "accept", context, Random(7)))


def rule(recipient: str, effect: str) -> str:
    return f"[[rule]]\nphase = 'RCPT'\nrecipient = {recipient}\n{effect}\n"


@pytest.mark.parametrize(
    ("glob", "text", "parts"),
    [
        ("reply-{code}@*", "reply-450@a", {"code": "450"}),
        ("reply-{code}@*", "reply-350@a", None),
        ("reply-{code}@*", "reply-4500@a", None),
        ("reply-{code}@*", "reply-٤50@a", None),
        ("{code}_{status}@*", "550_5.1.1@a", {"code": "550", "status": "5.1.1"}),
        ("{code}_{status}@*", "550_5.1.1000@a", None),
        ("*{code}*@a", "x450y@a", {"code": "450"}),
        ("*-{code}-*@a", "1-2-450-550-x@a", {"code": "450"}),
        ("{word}-{code}@*", "one-450@a", {"word": "one", "code": "450"}),
        ("{word}-{code}@*", "one-two-450@a", None),
        ("{word}@*", "x" * MAX_PART_LENGTH + "@a", {"word": "x" * MAX_PART_LENGTH}),
        ("{word}@*", "x" * (MAX_PART_LENGTH + 1) + "@a", None),
        ("{word}@*", "@a", None),
        ("?{seconds}@{domain}", "d2.5@a.b", {"seconds": "2.5", "domain": "a.b"}),
        ("a.{code}@b?c", "ax450@b.c", None),
    ],
)
def test_glob_with_named_parts_finds_them(glob: str, text: str, parts: dict[str, str] | None) -> None:
    assert NamedGlob(glob).find(text) == parts
    globs = NamedGlobs([glob])
    assert globs.find(text.encode(), "RCPT") == parts
    if parts:
        assert globs.globs.match(text.encode()), "the index finds what matches"


@pytest.mark.parametrize(
    ("text", "phase", "found"),
    [
        (b"450-4.1.1@a", "RCPT", True),
        (b"450-5.1.1@a", "RCPT", False),
        (b"at-DATA@a", "DATA", True),
        (b"at-data@a", "RCPT", False),
        (b"at-end-of-data@a", ".", True),
        (b"for-3600@a", "RCPT", True),
        (b"for-3600.1@a", "RCPT", False),
    ],
)
def test_parts_that_do_not_go_together_match_nothing(text: bytes, phase: str, found: bool) -> None:
    globs = NamedGlobs(["{code}-{status}@*", "at-{phase}@*", "for-{seconds}@*"])
    assert (globs.find(text, phase) is not None) is found


def test_reply_shows_what_the_client_wrote() -> None:
    text = rule(
        '["{code}-{status}-{why}@*", "{code}-{why}@*"]', 'reply = "{code} {status} {why}, {recipient}"'
    )
    session = make_engine(hostname="mx.test", rules=parse_rules(text, "test")).session()
    say(session, "MAIL FROM:<ann@a>")
    assert (
        say(session, "RCPT TO:<450-4.2.0-Käse!@b>".replace("ä", "+")) == "450 4.2.0 k+se!, 450-4.2.0-K+se!@b"
    )
    assert say(session, "RCPT TO:<550-full@b>") == "550 full, 550-full@b"
    assert say(session, "RCPT TO:<250-fine@b>") == "250 fine, 250-fine@b"
    assert say(session, "RCPT TO:<550@b>") == "250 2.1.5 Recipient OK"
    assert say(session, "RCPT TO:<421-bye@b>") == "421 bye, 421-bye@b"
    assert session.next_action is NextAction.CLOSE


def test_status_of_another_class_than_a_fixed_code_is_left_out() -> None:
    text = rule('"*-{status}@*"', 'reply = "550 {status} No"')
    session = make_engine(hostname="mx.test", rules=parse_rules(text, "test")).session()
    say(session, "MAIL FROM:<ann@a>")
    replies = [say(session, f"RCPT TO:<x-{status}@b>") for status in ("5.7.1", "4.7.1")]
    assert replies == ["550 5.7.1 No", "550 No"]


def test_single_rule_delays_as_long_as_the_client_says() -> None:
    block = {"phase": "RCPT", "recipient": ["wait-{seconds}@*", "wait@*"], "delay": "{seconds}"}
    session = make_engine(hostname="mx.test", rules=[parse_rule(block, "test")]).session()
    say(session, "MAIL FROM:<ann@a>")
    say(session, "RCPT TO:<wait-2.5@b>")
    assert (session.next_action, session.wait) == (NextAction.SLEEP, 2.5)
    session.resume()
    say(session, "RCPT TO:<wait@b>")
    assert session.wait == 0
    assert session.resume().startswith(b"250")


def test_parts_of_several_conditions_go_into_one_reply() -> None:
    text = (
        "[[rule]]\nphase = 'RCPT'\nrecipient = '{code}@*'\nsender = '{who}@*'\nhelo = 'x-{name}'\n"
        "user = ['<>', '{login}']\nreply = '{code} {who} {name} {login}{helo}'\n"
    )
    session = make_engine(hostname="mx.test", rules=parse_rules(text, "test")).session()
    say(session, "HELO x-Y")
    say(session, "MAIL FROM:<ann@a>")
    assert say(session, "RCPT TO:<451@b>") == "451 ann y x-Y"


def test_when_unknown_has_the_parts_too() -> None:
    text = rule('"{code}@*"', "attempt = 2\nreply = '{code} A'\nwhen_unknown = '{code} 4.3.0 B'")
    with pytest.raises(OperatorError, match=r"4\.3\.0 does not go with \{code\}"):
        parse_rules(text, "test")
    (found,) = parse_rules(text.replace(" 4.3.0", ""), "test")
    context = RuleContext()
    context.phase, context.recipient = "RCPT", b"451@b"
    assert found.when_unknown is not None
    reply = found.when_unknown.choose_reply(0, context)
    assert reply is not None
    assert reply.wire == b"451 B\r\n"


@pytest.mark.parametrize(
    ("recipient", "effect", "error"),
    [
        ('"{code}{code}@*"', "delay = 1", "recipient: at most 8 named parts, each once"),
        ('"{word}*@*"', "delay = 1", "{word} is any text, so a character that ends it has to follow"),
        ('"{word}{code}@*"', "delay = 1", "{word} is any text, so a character that ends it has to follow"),
        ('"{sender}@*"', "delay = 1", "{sender} is the whole text; call the part something else"),
        ('"!{code}@*"', "delay = 1", "named parts only where the text is wanted"),
        ('"a{word}@*"', "reply = '450 {wort}'", "reply: {wort} is none of {client} {helo} {user} {sender} "),
        ('"a{word}@*"', "reply = '450 {wort}'", "{id} {word}"),
        ('"*"', "reply = '{code} No'", "reply: {code} is none of"),
        ('["{code}@*", "x@*"]', "reply = '{code} No'", "reply: needs {code} in every glob of a condition"),
        ('"*"', "reply = '450 {status} No'", "reply: {status} is none of"),
        ('"*"', "attempt = 1\nwhen_unknown = '450 {x}'\ndelay = 1", "when_unknown: {x} is none of"),
        ('"*"', "delay = '{seconds}'", 'delay: needs a condition as recipient = "delay-{seconds}@*"'),
    ],
)
def test_mistake_in_named_parts_is_reported(recipient: str, effect: str, error: str) -> None:
    with pytest.raises(OperatorError) as found:
        parse_rules(rule(recipient, effect), "test")
    assert error in str(found.value)


def test_explain_shows_the_parts() -> None:
    text = rule('"{code}-{why}@*"', "reply = '{code} {why}'") + rule('"x{seconds}@*"', "delay = '{seconds}'")
    lines = explained(text, recipient=b"450-busy@b")
    assert lines[-2:] == ["  rule 1 matches with code 450 and why busy", "Result: 450 busy"]
    assert explained(text, recipient=b"x7@b")[-1] == "Result: the command's own reply, after 7 s"


def test_rule_with_named_parts_shadows_none_behind_it() -> None:
    text = rule('"{code}@*"', "delay = 1") + rule('"abc@*"', "delay = 2")
    assert list(find_mistakes(parse_rules(text, "test"), [":25"], True)) == []


@pytest.mark.parametrize("text", ["a" * 5000, "-" * 5000, "450" * 2000, "-450-" * 1000, "1.1" * 2000])
def test_long_texts_take_no_longer_with_named_parts(text: str) -> None:
    globs = NamedGlobs(
        [
            "*-{word}-*-{code}-*-{status}@*",
            "*{word}-{other}-{third}-*-{code}*x",
            "{phase}*{seconds}*{status}?*y",
        ]
    )
    begin = time.process_time()
    for _ in range(20):
        assert globs.find(text.encode(), "RCPT") is None
        for glob in globs._globs:
            glob.find(text)
    assert time.process_time() - begin < 5
