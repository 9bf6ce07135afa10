"""A scenario: files of TOML that say how the server misbehaves, read into rules.

Each table of this module is one vocabulary: the keys of a file, of a rule, of a window. A key is
read by one function, which returns what it read or raises ValueError with what was expected.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore
from blackhole.rules.context import RuleContext
from blackhole.rules.delays import LONGEST, DelayDistribution, Lognormal, Percentiles, Uniform
from blackhole.rules.effects import BLANKS, CERTIFICATES, Effect, Template, action_after
from blackhole.rules.faults import FAULTS, REPLACES_COMMAND, Fault
from blackhole.rules.limiters import BY, ConcurrencyLimit, Greylist, Limiter, RateLimit
from blackhole.rules.model import Condition, Rule, Window
from blackhole.rules.modes import DEFAULT_GREYLIST, GREYLISTED
from blackhole.rules.patterns import Comparison, GlobSet, Networks, comparison
from blackhole.settings import OperatorError
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import PHASES

if TYPE_CHECKING:
    import ssl

    from blackhole.rules.retries import OutcomeStore

PROFILES: Final = os.path.join(os.path.dirname(__file__), "profiles")
"""Where the files of `profile:NAME` are."""

PROFILE: Final = "profile:"


class ScenarioSource(NamedTuple):
    """A scenario as it was written."""

    name: str
    """A path, or `profile:NAME`; errors begin with it."""
    text: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """What was read, what was made for it, and when its clock began."""

    rules: tuple[Rule, ...] = ()
    began: float = 0.0
    """On the monotonic clock, which all processes share."""
    memory: AttemptStore = NULL_STORE
    """Of attempts, which all processes share too."""
    past: OutcomeStore | None = None
    """Of what became of messages."""
    certificates: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    """What rules have clients shown in place of ours, by the names of CERTIFICATES."""

    sources: tuple[ScenarioSource, ...] = ()
    """What the rules were read from."""
    at: float = 0.0
    """Seconds since 1970 when that was."""

    @property
    def wants(self) -> frozenset[str]:
        """The certificates that its rules name."""
        return frozenset(rule.effect.certificate for rule in self.rules) - {""}


NONE: Final = Scenario()


def profiles() -> list[str]:
    """The names of those that come with Blackhole."""
    return sorted(name.removesuffix(".toml") for name in os.listdir(PROFILES) if name.endswith(".toml"))


def read_source(name: str) -> ScenarioSource:
    """A file, or a `profile:NAME`. Raises OperatorError."""
    path = name
    if name.startswith(PROFILE):
        profile = name.removeprefix(PROFILE)
        known = profiles()
        if profile not in known:
            raise OperatorError(
                f"scenario {name}: no such profile, there are {', '.join(known)}{_meant(profile, known)}"
            )
        path = os.path.join(PROFILES, f"{profile}.toml")
    try:
        with open(path, "rb") as file:
            return ScenarioSource(name, decoded(file.read(), f"scenario {name}"))
    except OSError as error:
        raise OperatorError(f"scenario {name}: {error.strerror}") from None


def decoded(octets: bytes, source: str) -> str:
    """The text of a file. Raises OperatorError, which names `source`."""
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise OperatorError(f"{source}: not UTF-8 text") from None


def about(source: ScenarioSource) -> str:
    """What a scenario is, in its own words, if it has any."""
    return str(tomllib.loads(source.text).get("about", ""))


def parse_sources(sources: Iterable[ScenarioSource]) -> tuple[Rule, ...]:
    """The rules of several scenarios, one behind the other. Raises OperatorError."""
    rules: list[Rule] = []
    for source in sources:
        rules += parse_rules(source.text, source.name, len(rules))
    return tuple(rules)


def load_rules(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of several files, or of `profile:NAME`s, one behind the other. Raises OperatorError."""
    return parse_sources(map(read_source, names))


def parse_rules(text: str, source: str, before: int = 0) -> list[Rule]:
    """The rules of one file's text; so many are before them. Raises OperatorError, which names `source`."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # all mistakes, and whole numbers of thousands of digits
        raise OperatorError(f"{source}: {error}") from None
    except RecursionError:
        raise OperatorError(f"{source}: nested too deeply") from None
    return _File(text, source, data).rules(before)


def parse_rule(block: Mapping[str, Any], source: str) -> Rule:
    """The rule that a block without windows and gates says. Raises OperatorError, which names `source`."""
    file = _File("", source, {"rule": [block]})
    for key in block:
        if key in NOT_SINGLE:
            raise OperatorError(f"{source}: {key}: {NOT_SINGLE[key]}")
    (rule,) = file.rules(0)
    return rule


class _File:
    """One file being read: knows where it is, for errors."""

    def __init__(self, text: str, source: str, data: dict[str, Any]) -> None:
        self._lines: Final = text.splitlines()
        self._source: Final = source
        self._data: Final = data

    def rules(self, before: int) -> list[Rule]:
        data = self._data
        for key in data:
            if key not in FILE_KEYS:
                self._fail("", 0, "", f"{_shown(key)}: no such key{_meant(key, FILE_KEYS)}", key)
        seed = self._read("", 0, data, "seed", _seed, 0)
        windows: dict[str, Window] = {}
        for number, block in enumerate(self._blocks("window"), 1):
            window = self._window(number, block)
            if window.name in windows:
                self._fail(
                    "window", number, window.name, f"name: a window {window.name!r} was before", "name"
                )
            windows[window.name] = window
        rules = []
        for number, block in enumerate(self._blocks("rule"), 1):
            rules.append(self._rule(number, block, seed, windows, before + number))
        if not rules:
            self._fail("", 0, "", "there is no [[rule]] in it", "")
        return rules

    def _blocks(self, kind: str) -> list[dict[str, Any]]:
        blocks = self._data.get(kind, [])
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            self._fail("", 0, "", f"{kind}: expected [[{kind}]] in double brackets", kind)
        return blocks

    def _window(self, number: int, block: dict[str, Any]) -> Window:
        name = block.get("name", "")
        self._known("window", number, block, WINDOW_KEYS)
        found = {
            key: self._read("window", number, block, key, parse_rules, 0.0)
            for key, parse_rules in WINDOW_KEYS.items()
        }
        for key in ("name", "for"):
            if not found[key]:
                self._fail("window", number, name, f"{key}: missing, or nothing", key)
        if found["every"] and found["every"] < found["for"]:
            self._fail("window", number, name, "every: shorter than for", "every")
        if found["ramp"] > found["for"]:
            self._fail("window", number, name, "ramp: longer than for", "ramp")
        return Window(found["name"], found["at"], found["for"], found["every"], found["ramp"])

    def _rule(
        self, number: int, block: dict[str, Any], seed: int, windows: Mapping[str, Window], place: int
    ) -> Rule:
        def fail(key: str, message: str) -> NoReturn:
            self._fail("rule", number, name, f"{key}: {message}", key)

        self._known("rule", number, block, RULE_KEYS)
        name = self._read("rule", number, block, "name", _text, "")
        found = {
            key: self._read("rule", number, block, key, RULE_KEYS[key], None)
            for key in block
            if key != "name"
        }
        if "blocklist" in found:
            # Postfix too waits for RCPT, unless it is told not to (smtpd_delay_reject).
            found.setdefault("phase", frozenset(("RCPT",)))
            if "reply" in found:
                fail("blocklist", "has a reply of its own; leave reply out")
            if not (what := [words for key, words in LISTED.items() if key in found]):
                fail("blocklist", f"needs one of {', '.join(LISTED)}: who is on the list")
            text = f"Service unavailable; {what[0]} blocked using {found['blocklist']}"
            found["reply"] = (Template(554, "5.7.1", text),)
        gate = self._gate(found, fail)
        if "phase" not in found:
            fail("phase", f"missing; one of {', '.join(PHASES)}")
        phases: frozenset[str] = found["phase"]
        for key, where in KNOWN_AT.items():
            if key in found and not phases <= where:
                first = next(phase for phase in PHASES if phase in phases - where)
                fail(key, f"not known at {first}, but at {', '.join(p for p in PHASES if p in where)}")
        if "when_unknown" in found and found.keys().isdisjoint(("attempt", *GATES)):
            fail(
                "when_unknown", f"only with {_listed(('attempt', *GATES))}, which ask the memory of attempts"
            )
        window = found.get("window")
        if window is not None and window not in windows:
            fail("window", f"there is no window {window!r}{_meant(window, windows)}")
        tests = tuple(
            Condition(key, _wanted(block[key]), *CONDITIONS[key][1](found[key]))
            for key in CONDITIONS
            if key in found
        )
        return Rule(
            phases=phases,
            effect=self._verdict(found, phases, fail),
            conditions=tests,
            chance=found.get("chance", 1.0),
            window=windows[window] if window is not None else None,
            name=name or str(place),
            seed=seed,
            limiter=gate,
            when_unknown=Effect((found["when_unknown"],)) if found.get("when_unknown") else None,
        )

    def _gate(self, found: dict[str, Any], fail: Callable[[str, str], NoReturn]) -> Limiter | None:
        """The condition that remembers; the rule gets the phase and the reply that it lacks."""
        if "greylist" in found:
            if "throttle" in found:
                fail("throttle", "not with greylist; make two rules of it")
            found.setdefault("phase", frozenset(("RCPT",)))
            if found.keys().isdisjoint(VERDICT_KEYS):
                found["reply"] = (GREYLISTED,)
            return found["greylist"]  # type: ignore[no-any-return]
        if "throttle" in found:
            what, gate = found["throttle"]
            first, *_ = where = COUNTED[what]
            phases = found.setdefault("phase", frozenset((first,)))
            if not phases <= {*where}:
                fail("throttle", f"{what} are counted at {' or '.join(where)}")
            if not phases <= (at := KNOWN_AT.get(gate.by.removesuffix("-domain"), phases)):
                later = [phase for phase in where if phase in at]
                fail("throttle", f"by {gate.by} {what} are counted at {' or '.join(later) or 'no phase'}")
            return gate  # type: ignore[no-any-return]
        return None

    def _verdict(
        self, found: Mapping[str, Any], phases: frozenset[str], fail: Callable[[str, str], NoReturn]
    ) -> Effect:
        if found.keys().isdisjoint(VERDICT_KEYS):
            fail("reply", f"missing; a rule needs one of {', '.join(VERDICT_KEYS)}")
        replies, fault = found.get("reply", ()), found.get("then")
        for key, phase in ONLY_AT.items():
            if key in found and phases != {phase}:
                fail(key, f'only with phase = "{phase}"')
        for key in ("hide", "add"):
            if key in found and replies:
                fail(key, "not with a reply, which comes in place of the list")
        for said in replies:
            if said.code < 400 and said.code != 354 and len(phases) > 1:
                fail("reply", f"{said.code} cannot be right in several phases")
            if (said.code == 354) is not (phases == {"DATA"}) and 300 <= said.code < 400:
                fail("reply", "354 is the answer to DATA alone")
        instead = fault is not None and fault.name in REPLACES_COMMAND
        if fault is not None and "reply" in found:
            if replies and fault.name == "close-before-reply":
                fail("then", "close-before-reply loses the reply; leave reply out, or say close")
            if instead and not replies:
                fail("then", f"{fault.name} comes in place of the command, which cannot be accepted too")
            if instead:
                fault = fault._replace(share=1)
        return Effect(
            replies=replies,
            delay=found.get("delay"),
            fault=fault,
            replaces_command=instead,
            hide=found.get("hide", ()),
            add=found.get("add", ()),
            certificate=found.get("certificate", ""),
        )

    # Errors

    def _known(self, kind: str, number: int, block: dict[str, Any], keys: Iterable[str]) -> None:
        for key in block:
            if key not in keys:
                message = f"{_shown(key)}: no such key{_meant(key, keys)}"
                if key in ("regex", "regexp", "match", "re"):
                    message = f"{key}: no such key; there are globs of * and ?, and no regular expressions"
                self._fail(kind, number, block.get("name", ""), message, key)

    def _read(
        self,
        kind: str,
        number: int,
        block: dict[str, Any],
        key: str,
        parse_rules: Callable[[Any], Any],
        default: Any,
    ) -> Any:
        if key not in block:
            return default
        try:
            return parse_rules(block[key])
        except ValueError as error:
            self._fail(kind, number, block.get("name", ""), f"{key}: {error}", key)

    def _fail(self, kind: str, number: int, name: object, message: str, key: str) -> NoReturn:
        place = f"{kind} {number}" if kind and self._lines else ""
        if isinstance(name, str) and name:
            place += f" ({_shown(name)})"
        where = f"{self._source}{self._line(kind, number, key)}"
        raise OperatorError(": ".join(filter(None, (where, place, message))))

    def _line(self, kind: str, number: int, key: str) -> str:
        """ ":12", where the key stands, if that can be told without a parser that keeps lines."""
        heads = [place for place, line in enumerate(self._lines) if re.match(r"\s*\[", line)]
        ours = [place for place in heads if re.match(rf"\s*\[\[\s*{kind}\s*\]\]", self._lines[place])]
        if not kind:
            first, last = -1, heads[0] if heads else len(self._lines)
        elif len(ours) == len(self._data[kind]):
            first = ours[number - 1]
            last = next((place for place in heads if place > first), len(self._lines))
        else:
            return ""
        for place in range(first + 1, last):
            if key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", self._lines[place]):
                return f":{place + 1}"
        return f":{first + 1}" if kind else ""


# Readers: a value as TOML has it -> what rules are made of, or a ValueError that says what was expected.


def _shown(word: str) -> str:
    return word if word.isprintable() and len(word) <= 60 else repr(word[:60])


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word)[:60], list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _wanted(value: Any) -> str:
    """As the operator wrote it, or nearly."""
    if isinstance(value, bool):
        return str(value).lower()
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _expected(what: str, value: Any) -> ValueError:
    return ValueError(f"expected {what}, not {str(value)[:60]!r}")


def _text(value: Any) -> str:
    if isinstance(value, str) and value and value.isprintable() and len(value) <= 512:
        return value
    raise _expected("printable text", value)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("expected at least one")
    return tuple(map(_text, values))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _expected("a number", value)
    return float(value)


def _seed(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    raise _expected("a whole number from 0", value)


UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: Any) -> float:
    """A time: a number of seconds, or one with its unit, as "90s", "5m", "250ms"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d)\s*", value)
        if not match:
            raise _expected('a time, as 90, "90s", "5m", "250ms" or "1h"', value)
        return float(match[1]) * UNITS[match[2]]
    if _number(value) < 0:
        raise _expected("no time before 0", value)
    return float(value)


def _wait(value: Any) -> float:
    found = seconds(value)
    if found > LONGEST:
        raise _expected(f"at most {LONGEST:g} seconds", value)
    return found


def _delay(value: Any) -> DelayDistribution:
    if isinstance(value, list):
        if len(value) != 2:
            raise _expected("[MIN, MAX]", value)
        least, most = map(_wait, value)
        if least > most:
            raise _expected("[MIN, MAX] with the lesser first", value)
        return Uniform(least, most)
    if isinstance(value, dict):
        if value.keys() == {"lognormal"} and isinstance(value["lognormal"], dict):
            inner = value["lognormal"]
            if inner.keys() != {"median", "p99"}:
                raise _expected("lognormal = { median = S, p99 = S }", inner)
            median, p99 = _wait(inner["median"]), _wait(inner["p99"])
            if not 0 < median <= p99:
                raise _expected("a median above 0 and a p99 above it", inner)
            return Lognormal(median, p99)
        points = []
        for key, wait in value.items():
            if not re.fullmatch("p[1-9][0-9]?|p100", key):
                known = ("lognormal", "p50", "p90", "p99")
                raise ValueError(
                    f"{_shown(key)}: no such key, there are {', '.join(known)}{_meant(key, known)}"
                )
            points.append((int(key[1:]) / 100, _wait(wait)))
        points.sort()
        if not points or [wait for _, wait in points] != sorted(wait for _, wait in points):
            raise _expected("{ p50 = S, p90 = S, p99 = S } that rise", value)
        return Percentiles(tuple(points))
    wait = _wait(value)
    return Uniform(wait, wait)


REPLY: Final = re.compile(
    r"([245][0-5][0-9]|354)(?: ([245])(\.[0-9]{1,3}\.[0-9]{1,3}))?(?: (.*))?", re.DOTALL
)


def _reply(value: Any) -> Reply | Template:
    """One reply as it goes over the wire; further lines of text behind a line end."""
    match = REPLY.fullmatch(value) if isinstance(value, str) else None
    if not match or not match[4]:
        raise _expected('a reply with its code, as "450 4.2.1 Try again later"', value)
    code, enhanced = int(match[1]), f"{match[2]}{match[3]}" if match[2] else ""
    if enhanced and enhanced[0] != match[1][0]:
        raise ValueError(f"{enhanced} does not go with {code}")
    lines = match[4].split("\n")
    for line in lines:
        if not re.fullmatch("[ -~]*", line) or len(line) > 500:
            raise _expected("lines of at most 500 characters of ASCII", line)
        if not BLANKS.search(line) and (blank := re.search(r"\{[^{}]*\}", line)):
            raise ValueError(f"{blank[0]} is none of {{client}} {{helo}} {{sender}} {{recipient}} {{id}}")
    if any(BLANKS.search(line) for line in lines):
        return Template(code, enhanced, *lines)
    return Reply(code, enhanced, *lines, next_action=action_after(code))


def _replies(value: Any) -> tuple[Reply | Template, ...]:
    """One, a list to pick from, or none for "accept"."""
    if value == "accept":
        return ()
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _expected("at least one reply", value)
    replies = tuple(map(_reply, values))
    if len({said.code < 400 for said in replies}) > 1:
        raise ValueError("a list has refusals or acceptances, not both; use two rules and chance")
    return replies


def _when_unknown(value: Any) -> Reply | Template | None:
    """What to say where nobody knows, None for "accept"."""
    if value == "accept":
        return None
    said = _reply(value)
    if said.code < 400:
        raise _expected('"accept", or a refusal, as "451 4.3.0 Try again later"', value)
    return said


def _then(value: Any) -> Fault:
    if isinstance(value, dict) and value.keys() == {"drip"}:
        rate = value["drip"]
        if isinstance(rate, int) and not isinstance(rate, bool) and 1 <= rate <= 65536:
            return Fault("drip", 1, rate=rate)
        raise _expected("drip = octets a second, from 1 to 65536", rate)
    if value == "drip":
        raise ValueError("drip has a rate: then = { drip = 10 } is ten octets a second")
    if isinstance(value, str) and value in FAULTS:
        return FAULTS[value]
    known = ", ".join((*FAULTS, "{ drip = N }"))
    raise ValueError(f"{_expected(f'one of {known}', value)}{_meant(str(value), FAULTS)}")


def _phases(value: Any) -> frozenset[str]:
    if value == "*":
        return frozenset(PHASES)
    known = ", ".join(PHASES)
    for phase in _texts(value):
        if phase not in PHASES:
            raise ValueError(f"{_expected(f'one of {known}', phase)}{_meant(phase.upper(), PHASES)}")
    return frozenset(_texts(value))


def _chance(value: Any) -> float:
    if 0 < _number(value) <= 1:
        return float(value)
    raise _expected("a probability above 0, at most 1", value)


def _certificate(value: Any) -> str:
    if value in CERTIFICATES:
        return str(value)
    raise _expected(f"one of {', '.join(CERTIFICATES)}", value)


def _header(value: Any) -> GlobSet:
    """Globs for whole fields: "Subject: *invoice*"."""
    globs = []
    for text in _texts(value):
        name, colon, glob = text.partition(":")
        if not colon or not re.fullmatch("[!-9;-~]+", name):
            raise _expected('a header field, as "Subject: *invoice*"', text)
        globs.append(f"{name}: {glob.strip()}")
    return _globs(globs)


def _zone(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value):
        return value
    raise _expected("the name of a list, as zen.example.org", value)


def _keywords(value: Any) -> tuple[str, ...]:
    for line in _texts(value):
        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9-]*( [!-~]+)*", line):
            raise _expected("an EHLO keyword, as PIPELINING or SIZE 1000", line)
    return _texts(value)


def _globs(value: Any) -> GlobSet:
    globs = _texts(value)
    for glob in globs:
        if len(glob) > 1 and glob.startswith(("/", "^")) and glob.endswith(("/", "$")):
            raise _expected("a glob of * and ?; there are no regular expressions", glob)
    return GlobSet("" if glob == "<>" else glob for glob in globs)


def _listener(value: Any) -> GlobSet:
    return (
        GlobSet([f"*:{value}"]) if isinstance(value, int) and not isinstance(value, bool) else _globs(value)
    )


def _networks(value: Any) -> Networks:
    networks = []
    for text in _texts(value):
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError:
            raise _expected("an address or a network, as 192.0.2.0/24", text) from None
    return Networks(networks)


SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _compared(value: Any) -> Comparison:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return comparison("=", value)
    match = (
        re.fullmatch(r"\s*(<=|>=|<|>|=)?=?\s*([0-9]{1,15})([kKmMgG]?)\s*", value)
        if isinstance(value, str)
        else None
    )
    if not match:
        raise _expected('a comparison, as "<= 2" or "> 10M"', value)
    return comparison(match[1] or "=", int(match[2]) * SIZES[match[3].lower()])


def _greylist(value: Any) -> Greylist:
    """Either bound may be left out, and with `true` both."""
    if value is True:
        return DEFAULT_GREYLIST
    if not isinstance(value, dict) or not value.keys() <= {"min", "max"}:
        raise _expected('{ min = "5m", max = "2d" }', value)
    least = seconds(value.get("min", DEFAULT_GREYLIST.least))
    most = seconds(value.get("max", DEFAULT_GREYLIST.most))
    if least > most:
        raise _expected("a min that is less than max", value)
    return Greylist(least, most)


PERIODS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "connection": 0.0}

COUNTED: Final[Mapping[str, tuple[str, ...]]] = {
    "connections": ("CONNECT",),
    "concurrent": ("CONNECT",),
    "messages": ("MAIL", "DATA", "."),
    "recipients": ("RCPT",),
    "bytes": (".", "MAIL"),
}
"""What a throttle limits, and in which phases it can be counted; the first is that of a rule without one."""


def _throttle(value: Any) -> tuple[str, RateLimit | ConcurrencyLimit]:
    """What is limited, and how."""
    what = [key for key in value if key in COUNTED] if isinstance(value, dict) else []
    if len(what) != 1:
        raise _expected(f"{{ WHAT = N, per = TIME, by = WHOSE }} with one of {', '.join(COUNTED)}", value)
    for key in value.keys() - {*what, "per", "by"}:
        raise ValueError(f"{_shown(key)}: no such key, there are per and by{_meant(key, ('per', 'by'))}")
    counted, per, by = what[0], value.get("per"), str(value.get("by", "client"))
    limit = _quota(value[counted])
    if by not in BY:
        raise ValueError(f"by: {_expected(f'one of {_listed(BY)}', by)}{_meant(by, BY)}")
    if counted == "concurrent":
        if per is not None:
            raise ValueError("per: not with concurrent, which is at one moment")
        return counted, ConcurrencyLimit(limit, by)
    if per is None:
        raise ValueError(f"per: missing; one of {_listed(PERIODS)}, or a time")
    period = PERIODS[per] if isinstance(per, str) and per in PERIODS else seconds(per)
    if not period and (per != "connection" or counted == "connections"):
        raise ValueError(f"per: {_expected('a time above 0', per)}")
    return counted, RateLimit(counted, limit, period, by)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _quota(value: Any) -> int:
    if isinstance(value, str) and (match := re.fullmatch("([0-9]{1,9})([kmgKMG])", value)):
        return int(match[1]) * SIZES[match[2].lower()]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48:
        return value
    raise _expected("a whole number from 0, or one with its unit, as 10M", value)


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _expected("true or false", value)


# Conditions: what was read -> (does it hold, how it compares if rules can be found by that).

Holds = tuple[Callable[[RuleContext], bool], GlobSet | Comparison | None]


def _of_listener(globs: GlobSet) -> Holds:
    return lambda context: globs.match(context.listener.encode()), None


def _of_client(networks: Networks) -> Holds:
    return lambda context: networks.match(context.client), None


def _of_tls(wanted: bool) -> Holds:
    return lambda context: context.secure is wanted, None


def _of_helo(globs: GlobSet) -> Holds:
    return lambda context: globs.match(context.helo), globs


def _of_sender(globs: GlobSet) -> Holds:
    return lambda context: globs.match(context.sender), globs


def _of_recipient(globs: GlobSet) -> Holds:
    return lambda context: globs.match(context.recipient), globs


def _of_size(compare: Comparison) -> Holds:
    return lambda context: compare(context.size), compare


def _of_header(globs: GlobSet) -> Holds:
    return lambda context: any(map(globs.match, context.header)), globs


def _of_attempt(compare: Callable[[int], bool]) -> Holds:
    return lambda context: compare(context.attempt), None


CONDITIONS: Final[Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Holds]]]] = {
    "listener": (_listener, _of_listener),
    "client": (_networks, _of_client),
    "tls": (_switch, _of_tls),
    "helo": (_globs, _of_helo),
    "sender": (_globs, _of_sender),
    "recipient": (_globs, _of_recipient),
    "size": (_compared, _of_size),
    "header": (_header, _of_header),
    "attempt": (_compared, _of_attempt),
}
"""Key -> how its value is read, and the test that is made of it. Tests are asked in this order."""

VERDICT_KEYS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "reply": _replies,
    "delay": _delay,
    "then": _then,
    "hide": _keywords,
    "add": _keywords,
    "certificate": _certificate,
    "blocklist": _zone,
}

ONLY_AT: Final = {"hide": "EHLO", "add": "EHLO", "certificate": "STARTTLS"}

LISTED: Final = {
    "client": "Client host [{client}]",
    "helo": "Helo command [{helo}]",
    "sender": "Sender address [{sender}]",
    "recipient": "Recipient address [{recipient}]",
}
"""What `blocklist` calls what is on the list, by the condition that names it: in the words of Postfix."""

GATES: Final[Mapping[str, Callable[[Any], Any]]] = {"greylist": _greylist, "throttle": _throttle}
"""Conditions that remember."""

RULE_KEYS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": _text,
    "phase": _phases,
    **{key: reader for key, (reader, _) in CONDITIONS.items()},
    **GATES,
    "when_unknown": _when_unknown,
    "chance": _chance,
    "window": _text,
    **VERDICT_KEYS,
}

WINDOW_KEYS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": _text,
    "at": seconds,
    "for": seconds,
    "every": seconds,
    "ramp": seconds,
}

NOT_SINGLE: Final[Mapping[str, str]] = {
    "window": "not here, where there are no windows",
    "chance": "not here; it is for certain",
    **dict.fromkeys(GATES, "not here; put it into a scenario"),
}
"""Keys of a rule that stand in files only, and why."""

FILE_KEYS: Final = ("seed", "about", "rule", "window")

IN_MAIL: Final = frozenset(("MAIL", "RCPT", "DATA", "BDAT", "."))

KNOWN_AT: Final[Mapping[str, frozenset[str]]] = {
    "helo": frozenset(PHASES) - {"CONNECT"},
    "sender": IN_MAIL,
    "recipient": IN_MAIL - {"MAIL"},
    "greylist": IN_MAIL - {"MAIL"},
    "size": IN_MAIL,
    "header": frozenset("."),
}
"""Conditions that look at what a client says, and when it has said it. (`sender` at DATA is that of MAIL.)"""
