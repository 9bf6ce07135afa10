"""An explanation: which rule of a scenario answers in a given case, and why those before it do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from blackhole.rules.context import RuleContext
from blackhole.rules.effects import Effect
from blackhole.rules.model import NO_DRAWS, Draws, Rule
from blackhole.rules.patterns import comparison
from blackhole.rules.value_readers import read_seconds
from blackhole.settings import MODES, OperatorError
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.state import PHASES


def context(given: Mapping[str, str], listener: str) -> RuleContext:
    """The case that an operator has described. Raises OperatorError."""
    address = given.get("rcpt", "")
    found = RuleContext(given.get("listener", listener), given.get("client", "127.0.0.1"))
    found.helo, found.sender, found.recipient = (
        text.strip().removeprefix("<").removesuffix(">").encode()
        for text in (given.get("helo", ""), given.get("sender", ""), address)
    )
    last = (("header", "."), ("size", "."), ("rcpt", "RCPT"), ("sender", "MAIL"), ("helo", "EHLO"))
    found.phase = given.get("phase") or next((phase for key, phase in last if key in given), "CONNECT")
    if found.phase.upper() in PHASES:
        found.phase = found.phase.upper()
    elif found.phase not in PHASES:
        raise OperatorError(f"--phase: expected one of {', '.join(PHASES)}, not {found.phase!r}", 64)
    if given.get("tls", "no").lower() not in ("yes", "no"):
        raise OperatorError(f"--tls: expected yes or no, not {given['tls']!r}", 64)
    found.secure = given.get("tls", "no").lower() == "yes"
    found.header = [given["header"].encode()] if "header" in given else ()
    for key, least in (("size", 0), ("attempt", 1)):
        text = given.get(key, str(least))
        if not (text.isascii() and text.isdigit() and comparison(">=", least)(int(text))):
            raise OperatorError(f"--{key}: expected a whole number from {least}, not {text!r}", 64)
        setattr(found, key, int(text))
    at = given.get("at", "0")
    try:
        found.elapsed = read_seconds(float(at) if at.replace(".", "", 1).isdigit() else at)
    except ValueError as error:
        raise OperatorError(f"--at: {error}", 64) from None
    return found


def explain(
    rules: Sequence[Rule], mode: str, told: RuleContext, random_source: RandomSource
) -> Iterator[str]:
    """A line for each rule up to the one that answers, and one for the answer.

    It asks rules one by one and in full, where `Table.find` takes short ways; tests compare the two.
    """
    yield f"{told.phase} {' '.join(described(told))}"
    for number, rule in enumerate(rules, 1):
        name = f"rule {number}" + (f" ({rule.name})" if rule.name != str(number) else "")
        reason, draws = evaluate_rule(rule, told, random_source)
        pending = unknown(rule, told, random_source)
        if reason:
            yield f"  {name}: no, {reason}{pending}"
        else:
            yield f"  {name}: yes{pending}"
            yield f"The answer: {answer(rule.effect, draws, told)}"
            return
    yield f"The answer: no rule holds; the mode is {mode}: {MODES[mode]}"


def described(told: RuleContext) -> Iterator[str]:
    """What is known of the case, in words."""
    yield f"from {told.client}{' under TLS' if told.secure else ''} at {told.listener},"
    for word, text in (("HELO", told.helo), ("MAIL", told.sender), ("RCPT", told.recipient)):
        if text:
            yield f"{word} {text.decode()},"
    yield f"attempt {told.attempt}, {told.elapsed:g} s after the start"


def evaluate_rule(rule: Rule, told: RuleContext, random_source: RandomSource) -> tuple[str, Draws]:
    """Why a rule does not speak, empty if it does; and what was drawn."""
    if told.phase not in rule.phases:
        return f"it is for {' '.join(phase for phase in PHASES if phase in rule.phases)}", NO_DRAWS
    for condition in rule.conditions:
        if not condition.matches(told):
            return f"{condition.key} is not {condition.text}", NO_DRAWS
    probability = rule.probability(told.elapsed)
    if rule.window is not None and not probability:
        return f"window {rule.window.name} is not open", NO_DRAWS
    draws = rule.draw(told.draw_key, random_source) if rule.is_random else NO_DRAWS
    if draws[0] >= probability:
        return f"chance is {probability:g} and {draws[0]:.4f} was drawn", draws
    if rule.limiter is not None and not rule.limiter.would_block(told):
        return str(rule.limiter), draws
    return "", draws


def unknown(rule: Rule, told: RuleContext, random_source: RandomSource) -> str:
    """What a rule says where the memory has no answer, if it says anything."""
    if rule.when_unknown is None:
        return ""
    tests = tuple(test for test in rule.conditions if test.key != "attempt")
    reason, draws = evaluate_rule(replace(rule, conditions=tests, limiter=None), told, random_source)
    return "" if reason else f"; where nobody knows: {answer(rule.when_unknown, draws, told)}"


def answer(effect: Effect, draws: Draws, told: RuleContext) -> str:
    """What a rule says, with all that is drawn."""
    said = effect.choose_reply(draws[1], told)
    words = []
    if said is not None:
        words.append(said.wire.decode().strip().replace("\r\n", " | "))
    elif not effect.replaces_command:
        words.append("what the command itself says")
    if effect.hide:
        words.append(f"without {' '.join(effect.hide)}")
    if effect.add:
        words.append(f"with {', '.join(effect.add)}")
    if effect.certificate:
        words.append(f"certificate {effect.certificate}")
    if effect.delay is not None:
        words.append(f"after {effect.delay.draw(draws[2], draws[3]):.3g} s")
    if effect.fault is not None:
        words.append(effect.fault.name)
    return ", ".join(words)
