"""Making a rule of the values of its keys: what goes with what, and what is filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final

from blackhole.rules.conduct import RefusalLimit
from blackhole.rules.effects import CODE_OF_CLIENT, Effect, Template
from blackhole.rules.faults import INPUT_PHASES, REPLACES_COMMAND, REPLIES_IN_MESSAGE
from blackhole.rules.limiter_readers import THROTTLED_AT
from blackhole.rules.limiters import Greylist, Limiter
from blackhole.rules.model import Condition, Rule, Window
from blackhole.rules.modes import GREYLISTED
from blackhole.rules.named_parts import NamedGlobs, PartFinder
from blackhole.rules.rule_keys import (
    COMMAND_KNOWN_AT,
    CONDITION_KEYS,
    EFFECT_KEYS,
    EHLO_LIST_KEYS,
    LIMITER_KEYS,
    LISTED_BY,
    ONE_PHASE_KEYS,
    TLS_KEYS,
    named_parts_matcher,
    owners_known_at,
)
from blackhole.rules.value_readers import CLIENT_SECONDS, Operands, unknown_placeholder
from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import PHASES
from blackhole.tls_menu import USUAL_TLS, TLSParameters
from blackhole.values import did_you_mean

AT_RCPT: Final = frozenset(("RCPT",))

STORE_KEYS: Final = ("attempt", *LIMITER_KEYS)
"""Conditions that ask the attempt store."""


NAMED: Final = "\1"
"""Stands before a name that looks like a number in the key of a rule. No name contains it."""


class InvalidKey(Exception):
    """The value of a key does not go with the rest of its rule."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key: Final = key


def make_rule(
    values: dict[str, Any],
    windows: Mapping[str, Window],
    seed: int | None,
    number: str,
) -> Rule:
    """Return the rule of a block's values; `number` is its name where it has none.

    Raises InvalidKey.
    """
    if "blocklist" in values:
        _fill_in_blocklist(values)
    limiter = _limiter(values)
    if "phase" not in values:
        raise InvalidKey("phase", f"missing; expected one of {', '.join(PHASES)}")
    phases: frozenset[str] = values["phase"]
    _check_conditions(values, phases)
    window = values.get("window")
    if window is not None and window not in windows:
        raise InvalidKey("window", f'unknown window "{window}"{did_you_mean(window, windows)}')
    unknown = values.get("when_unknown")
    parts = _part_finder(values)
    if unknown:
        _check_parts("when_unknown", (unknown,), parts)
    return Rule(
        phases=phases,
        effect=_effect(values, phases, parts),
        conditions=tuple(_conditions(values)),
        chance=values.get("chance", 1.0),
        window=None if window is None else windows[window],
        name=values.get("name", number),
        key=_rule_key(values.get("name"), number),
        seed=seed,
        limiter=limiter,
        when_unknown=Effect((unknown,), parts=parts) if unknown else None,
    )


def _conditions(values: Mapping[str, Any]) -> Iterator[Condition]:
    """Yield the conditions of a rule, in the order in which they are asked."""
    none_of: Mapping[str, Operands] = values.get("not", {})
    for key, row in CONDITION_KEYS.items():
        operands: Operands | None = values.get(key)
        if operands is not None and operands.plain is not None:
            plain = operands.plain
            has_parts = isinstance(plain, NamedGlobs)
            matches, indexed = named_parts_matcher(key, plain) if has_parts else row.make(plain)
            yield Condition(key, _as_written(operands.plain_value), matches, indexed, False, has_parts)
        if operands is not None and operands.negated is not None:
            yield _negated(key, operands.negated, operands.negated_value)
        if key in none_of:
            yield _negated(key, none_of[key].plain, none_of[key].plain_value)


def _negated(key: str, operand: Any, value: Any) -> Condition:
    """Return the condition that holds where the one on this operand does not."""
    if isinstance(operand, NamedGlobs):
        raise InvalidKey(key, "named parts only where the text is wanted, without ! and not")
    matches, indexed = CONDITION_KEYS[key].make(operand)
    return Condition(key, _as_written(value), lambda context: not matches(context), indexed, True)


def _rule_key(name: str | None, number: str) -> str:
    """Return the key of a rule: its name, or its number where it has none."""
    if name is None:
        return number
    return NAMED + name if name.isdecimal() else name


def _as_written(value: Any) -> str:
    """Return the value of a condition as the operator wrote it, or nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _fill_in_blocklist(values: dict[str, Any]) -> None:
    """Give a rule with `blocklist` its reply, and its phase where it has none."""
    # Postfix too waits for RCPT, unless smtpd_delay_reject is off.
    values.setdefault("phase", AT_RCPT)
    if "reply" in values:
        raise InvalidKey("blocklist", "not with reply; a blocklist rule has a reply of its own")
    listed = next((words for key, words in LISTED_BY.items() if key in values), None)
    if listed is None:
        raise InvalidKey("blocklist", f"needs one of {', '.join(LISTED_BY)} to say what is listed")
    text = f"Service unavailable; {listed} blocked using {values['blocklist']}"
    values["reply"] = (Template(554, "5.7.1", text),)


def _limiter(values: dict[str, Any]) -> Limiter | None:
    """Return the limiter of a rule, and fill in the phase and the reply that the rule lacks."""
    if "greylist" in values:
        if "throttle" in values:
            raise InvalidKey("throttle", "not with greylist; make two rules of it")
        greylist: Greylist = values["greylist"]
        phases = values.setdefault("phase", AT_RCPT)
        _check_known("greylist", owners_known_at(greylist.by), phases)
        if values.keys().isdisjoint(EFFECT_KEYS):
            values["reply"] = (GREYLISTED,)
        return greylist
    if "throttle" not in values:
        return None
    what, throttle = values["throttle"]
    possible = THROTTLED_AT[what]
    known_at = owners_known_at(throttle.by)
    usable = [phase for phase in possible if phase in known_at]
    phases = values.setdefault("phase", frozenset(usable[:1] or possible[:1]))
    if not phases <= {*possible}:
        raise InvalidKey("throttle", f"{what} are counted at {' or '.join(possible)}")
    if isinstance(throttle, RefusalLimit) and throttle.share and "RCPT" not in phases:
        raise InvalidKey("throttle", "share needs RCPT as a phase, where recipients are counted")
    if not phases <= known_at:
        by = " and ".join(throttle.by)
        raise InvalidKey("throttle", f"by {by} {what} are counted at {' or '.join(usable) or 'no phase'}")
    limiter: Limiter = throttle
    return limiter


def _check_known(key: str, known_at: Set[str], phases: Set[str]) -> None:
    """Raise InvalidKey for a key about something that is not known in all phases of a rule."""
    if not phases <= known_at:
        early = next(phase for phase in PHASES if phase in phases - known_at)
        known = ", ".join(phase for phase in PHASES if phase in known_at)
        raise InvalidKey(key, f"not known at {early}; known at {known}")


def _check_conditions(values: Mapping[str, Any], phases: frozenset[str]) -> None:
    """Check that what the conditions look at is known in the phases."""
    asked = {*values, *values.get("not", ())}
    for key, known_at in COMMAND_KNOWN_AT.items():
        if key in asked:
            _check_known(key if key in values else "not", known_at, phases)
    if "when_unknown" in values and asked.isdisjoint(STORE_KEYS):
        raise InvalidKey("when_unknown", f"only with one of {', '.join(STORE_KEYS)}")


def _part_finder(values: Mapping[str, Any]) -> PartFinder:
    """Return what finds the named parts of a rule's conditions."""
    operands = ((key, values[key].plain) for key in CONDITION_KEYS if key in values)
    return PartFinder({key: plain for key, plain in operands if isinstance(plain, NamedGlobs)})


def _check_parts(key: str, replies: Sequence[Reply | Template], parts: PartFinder) -> None:
    """Check that a condition names all parts that the replies show."""
    for reply in replies:
        unknown = reply.part_names - parts.names if isinstance(reply, Template) else ()
        for name in sorted(unknown):
            named = "".join(f" {{{one}}}" for one in sorted(parts.names))
            raise InvalidKey(key, f"{unknown_placeholder(f'{{{name}}}')}{named}")
        if isinstance(reply, Template) and reply.code_of_client and "code" not in parts.certain_names:
            raise InvalidKey(key, f"needs {CODE_OF_CLIENT} in every glob of a condition")


def _effect(values: Mapping[str, Any], phases: frozenset[str], parts: PartFinder) -> Effect:
    if values.keys().isdisjoint(EFFECT_KEYS):
        raise InvalidKey("reply", f"missing; a rule needs one of {', '.join(EFFECT_KEYS)}")
    replies = values.get("reply", ())
    for key, phase in ONE_PHASE_KEYS.items():
        if key in values and phases != {phase}:
            raise InvalidKey(key, f'only with phase = "{phase}"')
    for key in EHLO_LIST_KEYS:
        if key in values and replies:
            raise InvalidKey(key, "not with reply, which replaces the list")
    _check_replies(replies, phases)
    _check_parts("reply", replies, parts)
    delay = values.get("delay")
    if delay == CLIENT_SECONDS and "seconds" not in parts.names:
        raise InvalidKey("delay", f'needs a condition as recipient = "delay-{CLIENT_SECONDS}@*"')
    tls = TLSParameters(**{key: values[key] for key in TLS_KEYS if key in values})
    fault = values.get("then")
    if isinstance(fault, str):
        if phases != {"STARTTLS"}:
            raise InvalidKey("then", f'{fault} only with phase = "STARTTLS"')
        tls, fault = tls._replace(fault=fault), None
    if tls != USUAL_TLS and any(reply.code >= 400 for reply in replies):
        raise InvalidKey("reply", "a refusal: there is no TLS handshake then")
    if fault is not None and fault.input is not None:
        _check_input_fault(fault, replies, phases)
    return Effect(
        replies=replies,
        delay=None if delay == CLIENT_SECONDS else delay,
        fault=_fault_after_reply(fault, replies) if fault and "reply" in values else fault,
        replaces_command=fault is not None and fault.name in REPLACES_COMMAND,
        hide=values.get("hide", ()),
        add=values.get("add", ()),
        tls=tls,
        shares=_shares(values.get("weights", ()), len(replies)),
        parts=parts,
        delay_of_client=delay == CLIENT_SECONDS,
    )


def _shares(weights: Sequence[float], replies: int) -> tuple[float, ...]:
    """Return the share of each reply together with those before it, but the last."""
    if weights and len(weights) != replies:
        raise InvalidKey("weights", f"{len(weights)} for {replies} replies; each reply needs one")
    return tuple(sum(weights[:number]) / sum(weights) for number in range(1, len(weights)))


def _check_replies(replies: Sequence[Reply | Template], phases: frozenset[str]) -> None:
    """Check that the replies fit the phases."""
    for reply in replies:
        if reply.code < 400 and reply.code != 354 and len(phases) > 1:
            raise InvalidKey("reply", f"{reply.code} cannot be right in several phases")
        if (reply.code == 354) is not (phases == {"DATA"}) and 300 <= reply.code < 400:
            raise InvalidKey("reply", "354 is the reply to DATA only")


def _check_input_fault(fault: Fault, replies: Sequence[Reply | Template], phases: frozenset[str]) -> None:
    """Check that the phases and the replies fit a fault in what comes behind the reply."""
    if not phases <= {*INPUT_PHASES}:
        raise InvalidKey("then", f"{fault.name} is possible at {', '.join(INPUT_PHASES)}")
    if fault.name not in REPLIES_IN_MESSAGE:
        if replies:
            raise InvalidKey("then", f"{fault.name} needs a command that is accepted; leave reply out")
    elif not replies or any(reply.code < 400 for reply in replies):
        raise InvalidKey("then", f"{fault.name} needs a reply to send in the message, from 400 on")


def _fault_after_reply(fault: Fault, replies: Sequence[Reply | Template]) -> Fault:
    """Return the fault of a rule with a reply, which leaves before a fault that replaces the command."""
    if fault.name not in REPLACES_COMMAND:
        if replies and fault.name == "close-before-reply":
            raise InvalidKey("then", "close-before-reply sends no reply; leave reply out, or use close")
        return fault
    if not replies:
        raise InvalidKey("then", f"{fault.name} replaces the command, which cannot be accepted too")
    return fault._replace(share=1)
