"""Explaining a decision: which rule of a scenario matches a described context, and why others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from blackhole.addresses import canonical
from blackhole.rules.context import RuleContext
from blackhole.rules.draws import NO_DRAWS, Draws
from blackhole.rules.effects import Effect
from blackhole.rules.model import Rule
from blackhole.rules.session_facts import TLS_VERSIONS
from blackhole.rules.value_readers import read_extensions, read_seconds, read_tls_versions
from blackhole.settings import MODES, OperatorError
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.state import PHASES
from blackhole.tls_menu import USUAL_TLS
from blackhole.values import octets

USAGE_ERROR: Final = 64
"""EX_USAGE of sysexits.h."""

LATEST_PHASE: Final = (
    ("header", "."),
    ("size", "."),
    ("rcpt", "RCPT"),
    ("recipients", "RCPT"),
    ("extension", "MAIL"),
    ("message", "MAIL"),
    ("sender", "MAIL"),
    ("login", "AUTH"),
    ("helo", "EHLO"),
)
"""Options that imply a phase, the latest phase first."""


BEFORE_RCPT: Final = frozenset(PHASES[: PHASES.index("RCPT")])
"""Phases before the first recipient."""


def read_context(options: Mapping[str, str], listener: str) -> RuleContext:
    """Return the context that the options of `explain` describe. Raises OperatorError."""
    context = RuleContext(options.get("listener", listener), canonical(options.get("client", "127.0.0.1")))
    context.phase = _read_phase(options)
    context.tls_version = _read_tls(options.get("tls", "no").lower())
    context.secure = context.tls_version != ""
    context.helo, context.sender, context.recipient = (
        _octets(options.get(name, "").strip().removeprefix("<").removesuffix(">"))
        for name in ("helo", "sender", "rcpt")
    )
    context.user, context.server_name = (_octets(options.get(name, "")) for name in ("login", "sni"))
    context.header = [_octets(options["header"])] if "header" in options else ()
    context.size = _read_size(options.get("size", "0"))
    context.extensions = _read_keywords(options.get("extension", ""))
    context.recipients = _read_whole_number(options, "recipients", 0 if context.phase in BEFORE_RCPT else 1)
    context.message = _read_whole_number(options, "message", 1)
    context.attempt = _read_whole_number(options, "attempt", 1)
    at = options.get("at", "0")
    try:
        context.elapsed = read_seconds(float(at) if at.replace(".", "", 1).isdigit() else at)
    except ValueError as error:
        raise OperatorError(f"--at: {error}", USAGE_ERROR) from None
    return context


def _octets(argument: str) -> bytes:
    """Return an argument of the command line as it was typed, UTF-8 or not."""
    return argument.encode(errors="surrogateescape")


def _wrong(option: str, expected: str, found: str) -> OperatorError:
    return OperatorError(f"--{option}: expected {expected}, not {found!r}", USAGE_ERROR)


def _read_tls(text: str) -> str:
    """Return the version of TLS; empty for none."""
    if text == "no":
        return ""
    if text == "yes":
        return TLS_VERSIONS[-1]
    try:
        (version,) = read_tls_versions(text.replace("tlsv", "TLSv"))
    except ValueError:
        raise _wrong("tls", f"yes, no, or one of {', '.join(TLS_VERSIONS)}", text) from None
    return str(version)


def _read_keywords(text: str) -> frozenset[str]:
    """Return the keywords of extensions, with commas or blanks between."""
    words = text.replace(",", " ").split()
    try:
        return read_extensions(words) if words else frozenset()
    except ValueError as error:
        raise OperatorError(f"--extension: {error}", USAGE_ERROR) from None


def _read_phase(options: Mapping[str, str]) -> str:
    implied = next((phase for option, phase in LATEST_PHASE if option in options), "CONNECT")
    phase = options.get("phase") or implied
    for known in (phase.upper(), phase):
        if known in PHASES:
            return known
    raise _wrong("phase", f"one of {', '.join(PHASES)}", phase)


def _read_whole_number(options: Mapping[str, str], option: str, least: int) -> int:
    text = options.get(option, str(least))
    if text.isascii() and text.isdigit() and int(text) >= least:
        return int(text)
    raise _wrong(option, f"a whole number from {least}", text)


def _read_size(text: str) -> int:
    try:
        return octets(0, 2**63 - 1)(text)
    except ValueError as error:
        raise OperatorError(f"--size: {error}", USAGE_ERROR) from None


def explain(
    rules: Sequence[Rule], mode: str, context: RuleContext, random_source: RandomSource
) -> Iterator[str]:
    """Yield a line for each rule up to the one that matches, and one for what it does.

    Each rule is evaluated in full, where `RuleTable.find` uses an index; tests compare the two.
    """
    yield f"{context.phase} {' '.join(_described(context))}"
    for number, rule in enumerate(rules, 1):
        name = f"rule {number}" + (f" ({rule.name})" if rule.name != str(number) else "")
        reason, draws = evaluate_rule(rule, context, random_source)
        if_unknown = _effect_if_unknown(rule, context, random_source)
        if not reason:
            parts = " and ".join(f"{part} {text}" for part, text in rule.effect.parts.find(context).items())
            yield f"  {name} matches{' with ' if parts else ''}{parts}{if_unknown}"
            yield f"Result: {describe_effect(rule.effect, draws, context)}"
            return
        yield f"  {name} does not match: {reason}{if_unknown}"
    yield f"Result: no rule matches; mode {mode}: {MODES[mode]}"


def _described(context: RuleContext) -> Iterator[str]:
    """Yield what is known of a context, in words."""
    yield f"from {context.client}{' under TLS' if context.secure else ''} at {context.listener},"
    for word, text in (
        ("SNI", context.server_name),
        ("HELO", context.helo),
        ("AUTH", context.user),
        ("MAIL", context.sender),
        ("RCPT", context.recipient),
    ):
        if text:
            yield f"{word} {text.decode(errors='backslashreplace')},"
    yield f"attempt {context.attempt}, {context.elapsed:g} s after the start"


def evaluate_rule(rule: Rule, context: RuleContext, random_source: RandomSource) -> tuple[str, Draws]:
    """Return why a rule does not match, empty if it does; and what was drawn."""
    if context.phase not in rule.phases:
        return f"only at {' '.join(phase for phase in PHASES if phase in rule.phases)}", NO_DRAWS
    for condition in rule.conditions:
        if not condition.matches(context):
            verb = "is" if condition.negated else "is not"
            return f"{condition.key} {verb} {condition.text}", NO_DRAWS
    probability = rule.probability(context.elapsed)
    if rule.window is not None and not probability:
        return f"window {rule.window.name} is closed", NO_DRAWS
    draws = NO_DRAWS
    if rule.is_random:
        draws = rule.draw_all(rule.draw_chance(context, random_source), context, random_source)
    if draws[0] >= probability:
        return f"the chance is {probability:g} and {draws[0]:.4f} was drawn", draws
    if rule.limiter is not None and not rule.limiter.would_block(context):
        return str(rule.limiter), draws
    return "", draws


def _effect_if_unknown(rule: Rule, context: RuleContext, random_source: RandomSource) -> str:
    """Return what a rule does if the attempt store does not answer; empty if nothing."""
    if rule.when_unknown is None:
        return ""
    others = tuple(condition for condition in rule.conditions if condition.key != "attempt")
    reason, draws = evaluate_rule(replace(rule, conditions=others, limiter=None), context, random_source)
    if reason:
        return ""
    return f"; if the attempt store does not answer: {describe_effect(rule.when_unknown, draws, context)}"


def describe_effect(effect: Effect, draws: Draws, context: RuleContext) -> str:
    """Return what an effect does, with what was drawn for it."""
    reply = effect.choose_reply(draws[1], context)
    words = []
    if reply is not None:
        words.append(reply.wire.decode().strip().replace("\r\n", " | "))
    elif not effect.replaces_command:
        words.append("the command's own reply")
    if effect.hide:
        words.append(f"without {' '.join(effect.hide)}")
    if effect.add:
        words.append(f"with {', '.join(effect.add)}")
    if effect.tls != USUAL_TLS:
        words.append(str(effect.tls))
    delay = effect.choose_delay(draws, context)
    if delay is not None:
        words.append(f"after {delay:.3g} s")
    if effect.fault is not None:
        words.append(effect.fault.name)
    return ", ".join(words)
