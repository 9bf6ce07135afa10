"""Readers of the values in a scenario file.

A reader takes a value as TOML has it, returns what rules are made of, and raises ValueError that says
what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from blackhole.addresses import NetworkSet, network
from blackhole.rules.comparisons import Comparison, comparison
from blackhole.rules.delays import LONGEST_DELAY, DelayDistribution, Lognormal, Percentiles, Uniform
from blackhole.rules.effects import (
    CODE_OF_CLIENT,
    MAX_REPLY_LINE,
    STATUS_OF_CLIENT,
    Template,
    action_after,
)
from blackhole.rules.faults import FAULTS, NUMBERED_FAULTS
from blackhole.rules.globs import GlobSet
from blackhole.rules.named_parts import NAMED_PART, NamedGlobs
from blackhole.rules.session_facts import TLS_VERSIONS, USABLE_EXTENSIONS
from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import PHASES
from blackhole.tls_menu import HANDSHAKE_FAULTS
from blackhole.values import SIZE_UNITS, TIME_UNITS, did_you_mean, expected, shown, unknown_word

# Texts, numbers and times


def read_text(value: Any) -> str:
    if isinstance(value, str) and value and value.isprintable() and len(value) <= 512:
        return value
    raise expected("printable text", value)


def read_texts(value: Any) -> tuple[str, ...]:
    """Read one text, or a list of them."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("expected at least one")
    return tuple(map(read_text, values))


def read_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise expected("true or false", value)


def is_whole(value: Any, least: int, most: float) -> bool:
    """Return whether a value is a whole number from `least` to `most`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def read_number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise expected("a number", value)
    return float(value)


def read_seed(value: Any) -> int:
    if is_whole(value, 0, 2**64 - 1):
        return int(value)
    raise expected("a whole number from 0", value)


def read_chance(value: Any) -> float:
    if 0 <= read_number(value) <= 1:
        return float(value)
    raise expected("a probability from 0 to 1", value)


def read_seconds(value: Any) -> float:
    """Read a time: a number of seconds, or text with its unit, and return seconds.

    >>> [read_seconds(value) for value in (90, "90s", "5m", "250ms")]
    [90.0, 90.0, 300.0, 0.25]
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d)\s*", value)
        if not match:
            raise expected('a time, as 90, "90s", "5m", "250ms" or "1h"', value)
        return float(match[1]) * TIME_UNITS[match[2]]
    if read_number(value) < 0:
        raise expected("no time before 0", value)
    return float(value)


def read_comparison(value: Any) -> Comparison:
    if is_whole(value, 0, math.inf):
        return comparison("=", value)
    pattern = r"\s*(<=|>=|<|>|=)?=?\s*([0-9]{1,15})([kKmMgG]?)\s*"
    match = re.fullmatch(pattern, value) if isinstance(value, str) else None
    if not match:
        raise expected('a comparison, as "<= 2" or "> 10M"', value)
    return comparison(match[1] or "=", int(match[2]) * SIZE_UNITS[match[3].lower()])


# Where and whom: phases, patterns, networks


def read_phases(value: Any) -> frozenset[str]:
    if value == "*":
        return frozenset(PHASES)
    phases = read_texts(value)
    for phase in phases:
        if phase not in PHASES:
            error = expected(f"one of {', '.join(PHASES)}", phase)
            raise ValueError(f"{error}{did_you_mean(phase.upper(), PHASES)}")
    return frozenset(phases)


def read_globs(value: Any) -> GlobSet:
    return GlobSet(_read_glob_texts(value))


def _read_glob_texts(value: Any) -> list[str]:
    globs = read_texts(value)
    for glob in globs:
        if len(glob) > 1 and glob.startswith(("/", "^")) and glob.endswith(("/", "$")):
            raise expected("a glob of * and ?; there are no regular expressions", glob)
    return ["" if glob == "<>" else glob for glob in globs]


def read_named_globs(value: Any) -> GlobSet | NamedGlobs:
    """Read globs that may have named parts, as "reply-{code}@*"."""
    globs = _read_glob_texts(value)
    return NamedGlobs(globs) if any(map(NAMED_PART.search, globs)) else GlobSet(globs)


def read_listener(value: Any) -> GlobSet:
    """Read a port, or globs for addresses with ports."""
    return GlobSet([f"*:{value}"]) if is_whole(value, 0, math.inf) else read_globs(value)


def read_header(value: Any) -> GlobSet:
    """Read globs for whole header fields, as "Subject: *invoice*"."""
    globs = []
    for text in read_texts(value):
        name, colon, glob = text.partition(":")
        if not colon or not re.fullmatch("[!-9;-~]+", name):
            raise expected('a header field, as "Subject: *invoice*"', text)
        globs.append(f"{name}: {glob.strip()}")
    return read_globs(globs)


def read_networks(value: Any) -> NetworkSet:
    """Read addresses and networks, or `unix`; bits after the prefix are ignored."""
    networks = []
    for text in read_texts(value):
        try:
            networks.append(str(network(text, strict=False)))
        except ValueError:
            raise expected("an address or a network, as 192.0.2.0/24, or unix", text) from None
    return NetworkSet(networks)


def read_extensions(value: Any) -> frozenset[str]:
    """Read keywords of extensions whose use can be seen."""
    keywords = [text.upper() for text in read_texts(value)]
    for keyword in keywords:
        if keyword not in USABLE_EXTENSIONS:
            raise unknown_word(keyword, USABLE_EXTENSIONS)
    return frozenset(keywords)


def read_tls_versions(value: Any) -> frozenset[str]:
    """Read versions of TLS, or a comparison with one, as "< 1.3".

    >>> sorted(read_tls_versions("<= TLSv1.1"))
    ['TLSv1', 'TLSv1.1']
    """
    found: set[str] = set()
    for text in read_texts(value):
        match = re.fullmatch(r"\s*(<=|>=|<|>|=)?\s*(?:TLSv)?(1(?:\.[0-3])?)\s*", text)
        if not match:
            raise expected(f'one of {", ".join(TLS_VERSIONS)}, or a comparison, as "< 1.3"', text)
        number = TLS_VERSIONS.index(f"TLSv{match[2].removesuffix('.0')}")
        compare = comparison(match[1] or "=", number)
        found |= {version for place, version in enumerate(TLS_VERSIONS) if compare(place)}
    return frozenset(found)


class Operands(NamedTuple):
    """What a condition compares with: it holds for the plain operand, and not for the negated one."""

    plain: Any
    """None: only the negated one counts."""
    plain_value: Any = None
    """As the operator wrote it."""
    negated: Any = None
    """None: only the plain one counts."""
    negated_value: Any = None


def read_operands(read: Callable[[Any], Any], value: Any) -> Operands:
    """Read one text or a list of them, each of which a "!" before it negates.

    >>> read_operands(read_texts, ["one", "!two"])
    Operands(plain=('one',), plain_value=['one'], negated=('two',), negated_value=['two'])
    """
    values = value if isinstance(value, list) else [value]
    negated = [one[1:].lstrip() for one in values if isinstance(one, str) and one.startswith("!")]
    if not negated:
        return Operands(read(value), value)
    plain = [one for one in values if not (isinstance(one, str) and one.startswith("!"))]
    return Operands(read(plain) if plain else None, plain, read(negated), negated)


def read_zone(value: Any) -> str:
    """Read the name of a DNS blocklist."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value):
        return value
    raise expected("the name of a list, as zen.example.org", value)


# Effects


REPLY: Final = re.compile(
    r"([245][0-5][0-9]|354|\{code\})(?: ([245]\.[0-9]{1,3}\.[0-9]{1,3}|\{status\}))?(?: (.*))?", re.DOTALL
)

CLIENT_SECONDS: Final = "{seconds}"
"""The delay that the client wrote."""

DELAY_KEYS: Final = ("lognormal", "p50", "p90", "p99")
"""Keys of a table that is a delay; other percentiles are keys too."""


def read_reply(value: Any) -> Reply | Template:
    """Read one reply as it goes over the wire; its text may have several lines.

    >>> read_reply("450 4.2.1 Try again later").wire
    b'450 4.2.1 Try again later\\r\\n'
    """
    match = REPLY.fullmatch(value) if isinstance(value, str) else None
    if not match or not match[3]:
        raise expected('a reply with its code, as "450 4.2.1 Try again later"', value)
    enhanced = match[2] or ""
    code = None if match[1] == CODE_OF_CLIENT else int(match[1])
    if enhanced and enhanced != STATUS_OF_CLIENT and enhanced[0] != match[1][0]:
        raise ValueError(f"{enhanced} does not go with {match[1]}")
    lines = match[3].split("\n")
    for line in lines:
        _check_reply_line(line)
    if code is None or enhanced == STATUS_OF_CLIENT or NAMED_PART.search(match[3]):
        return Template(code, enhanced, *lines)
    return Reply(code, enhanced, *lines, next_action=action_after(code))


def _check_reply_line(line: str) -> None:
    if not re.fullmatch("[ -~]*", line) or len(line) > MAX_REPLY_LINE:
        raise expected(f"lines of at most {MAX_REPLY_LINE} characters of ASCII", line)
    if not NAMED_PART.search(line) and (braces := re.search(r"\{[^{}]*\}", line)):
        raise ValueError(unknown_placeholder(braces[0]))


def unknown_placeholder(braces: str) -> str:
    """Return what is wrong with a text in braces that stands for nothing."""
    return f"{braces} is none of {{client}} {{helo}} {{user}} {{sender}} {{recipient}} {{id}}"


def read_replies(value: Any) -> tuple[Reply | Template, ...]:
    """Read one reply, or a list to draw from; none for "accept"."""
    if value == "accept":
        return ()
    values = value if isinstance(value, list) else [value]
    if not values:
        raise expected("at least one reply", value)
    replies = tuple(map(read_reply, values))
    if len({reply.code < 400 for reply in replies}) > 1:
        raise ValueError("a list has refusals or acceptances, not both; use two rules and chance")
    return replies


def read_weights(value: Any) -> tuple[float, ...]:
    """Read the weights of a list of replies."""
    weights = tuple(map(read_number, value)) if isinstance(value, list) else ()
    if not sum(weights) > 0 or min(weights) < 0:
        raise expected("a list of numbers from 0, as [8, 1, 1]", value)
    return weights


def read_when_unknown(value: Any) -> Reply | Template | None:
    """Read the reply for an attempt that the store has no answer for; None for "accept"."""
    if value == "accept":
        return None
    reply = read_reply(value)
    if reply.code < 400:
        raise expected('"accept", or a refusal, as "451 4.3.0 Try again later"', value)
    return reply


def _read_wait(value: Any) -> float:
    """Read the seconds of a delay."""
    wait = read_seconds(value)
    if wait > LONGEST_DELAY:
        raise expected(f"at most {LONGEST_DELAY:g} seconds", value)
    return wait


def read_delay(value: Any) -> DelayDistribution | str:
    """Read a time, a range of times, percentiles, or the parameters of a lognormal distribution.

    Return CLIENT_SECONDS for the time that the client wrote.
    """
    if value == CLIENT_SECONDS:
        return CLIENT_SECONDS
    if isinstance(value, list):
        if len(value) != 2:
            raise expected("[MIN, MAX]", value)
        least, most = map(_read_wait, value)
        if least > most:
            raise expected("[MIN, MAX] with the lesser first", value)
        return Uniform(least, most)
    if isinstance(value, dict):
        if value.keys() == {"lognormal"} and isinstance(value["lognormal"], dict):
            return _read_lognormal(value["lognormal"])
        return _read_percentiles(value)
    wait = _read_wait(value)
    return Uniform(wait, wait)


def _read_lognormal(value: Mapping[str, Any]) -> Lognormal:
    if value.keys() != {"median", "p99"}:
        raise expected("lognormal = { median = S, p99 = S }", value)
    median, p99 = _read_wait(value["median"]), _read_wait(value["p99"])
    if not 0 < median <= p99:
        raise expected("a median above 0 and a p99 above it", value)
    return Lognormal(median, p99)


def _read_percentiles(value: Mapping[str, Any]) -> Percentiles:
    points = []
    for key, wait in value.items():
        if not re.fullmatch("p[1-9][0-9]?|p100", key):
            hint = did_you_mean(key, DELAY_KEYS)
            raise ValueError(f'unknown key "{shown(key)}", expected one of {", ".join(DELAY_KEYS)}{hint}')
        points.append((int(key[1:]) / 100, _read_wait(wait)))
    points.sort()
    waits = [wait for _, wait in points]
    if not points or waits != sorted(waits):
        raise expected("{ p50 = S, p90 = S, p99 = S } that rise", value)
    return Percentiles(tuple(points))


def read_fault(value: Any) -> Fault | str:
    """Read the name of a fault, or a table with the number of one that needs a number.

    Return the name alone of a fault of TLS handshakes.
    """
    if isinstance(value, dict) and len(value) == 1 and (name := next(iter(value))) in NUMBERED_FAULTS:
        row = NUMBERED_FAULTS[name]
        if is_whole(value[name], 1, row.most):
            return row.make(name, value[name])
        raise expected(f"{name} = {row.unit}, from 1 to {row.most}", value[name])
    if isinstance(value, str) and value in NUMBERED_FAULTS:
        unit = NUMBERED_FAULTS[value].unit
        raise ValueError(f"{value} needs a number; then = {{ {value} = 10 }} is ten {unit}")
    if isinstance(value, str) and value in FAULTS:
        return FAULTS[value]
    if isinstance(value, str) and value in HANDSHAKE_FAULTS:
        return value
    known = ", ".join((*FAULTS, *(f"{{ {name} = N }}" for name in NUMBERED_FAULTS), *HANDSHAKE_FAULTS))
    hint = did_you_mean(value, (*FAULTS, *HANDSHAKE_FAULTS))
    raise ValueError(f"{expected(f'one of {known}', value)}{hint}")


def read_ehlo_keywords(value: Any) -> tuple[str, ...]:
    lines = read_texts(value)
    for line in lines:
        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9-]*( [!-~]+)*", line):
            raise expected("an EHLO keyword, as PIPELINING or SIZE 1000", line)
    return lines
