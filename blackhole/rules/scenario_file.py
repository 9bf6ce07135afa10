"""The format of a scenario file: its tables, their keys, and where in the file a mistake is."""

from __future__ import annotations

# For `did_you_mean`, which imports it when it is called: by then a worker has dropped root, and may not
# be able to read the standard library any more.
import difflib  # noqa: F401
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, TypeVar

from blackhole.rules.model import Rule, Window
from blackhole.rules.rule_keys import FILE_KEYS, NOT_IN_SINGLE_RULE, RULE_KEYS, WINDOW_KEYS, place_hint
from blackhole.rules.rule_parser import InvalidKey, make_rule
from blackhole.rules.value_readers import read_seed
from blackhole.rules.variables import Variables, fill_in, read_variables
from blackhole.settings import OperatorError
from blackhole.values import did_you_mean, shown

REGEX_KEYS: Final = frozenset(("regex", "regexp", "match", "re"))
"""Keys that an operator may expect regular expressions under."""

MAX_NESTING: Final = 16
"""Tables and arrays in one another, from the file itself to the innermost value. The keys need six."""

MAX_BITS: Final = 64
"""Bits of the largest whole number, such as a seed."""

Value = TypeVar("Value")

REPEATED: Final = "\2"
"""Stands in a rule's key before the number of its name, if rules before it have the same name."""


def parse_rules(text: str, source: str, rules_before: Sequence[Rule] = ()) -> tuple[Rule, ...]:
    """Return the rules of a scenario's text, numbered after those of the scenarios before it.

    Raises OperatorError, which names `source`, the line and the rule.

    >>> [rule] = parse_rules('[[rule]]\\nphase = "MAIL"\\nsender = "<>"\\nreply = "550 5.7.1 No"', "example")
    >>> [(condition.key, condition.text) for condition in rule.conditions]
    [('sender', '<>')]
    """
    return make_rules(parse_toml(text, source), source, text, rules_before)


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the tables of a scenario's text. Raises OperatorError, which names `source`.

    For some texts it takes time that grows with the square of their size: a key of 17,000 parts takes 14 s.
    """
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # all mistakes, and whole numbers of thousands of digits
        raise OperatorError(f"{source}: {error}") from None
    except RecursionError:
        raise OperatorError(f"{source}: nested too deeply") from None
    check_values(data, source)
    return data


def check_values(tables: Mapping[str, Any], source: str) -> None:
    """Raise OperatorError, which names `source`, for a value that is out of all proportion.

    That is one that is nested more than MAX_NESTING deep, or a whole number of more than MAX_BITS bits. TOML
    need not have such numbers, and Python refuses to write one of thousands of digits.
    """
    level: list[Any] = [tables]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for value in level:
            match value:
                case Mapping():
                    inner += value.values()
                case list():
                    inner += value
                case int() if value.bit_length() > MAX_BITS:
                    raise OperatorError(f"{source}: a whole number of more than {MAX_BITS} bits")
        level = inner
    if level:
        raise OperatorError(f"{source}: nested too deeply")


def make_rules(
    tables: Mapping[str, Any], source: str, text: str = "", rules_before: Sequence[Rule] = ()
) -> tuple[Rule, ...]:
    """Return the rules of a scenario's tables, numbered after those of the scenarios before it.

    The time that it takes grows with their size alone. Raises OperatorError, which names `source`, the rule,
    and the line of the `text` where there is one.
    """
    return _File(text, source, tables).rules(rules_before)


def parse_rule(block: Mapping[str, Any], source: str) -> Rule:
    """Return the rule of a block without windows and limiters. Raises OperatorError, which names `source`."""
    check_values(block, source)
    file = _File("", source, {"rule": [block]})
    for key in block:
        if key in NOT_IN_SINGLE_RULE:
            raise OperatorError(f"{source}: {key}: {NOT_IN_SINGLE_RULE[key]}")
    (rule,) = file.rules(())
    return rule


class _File:
    """One file being read."""

    def __init__(self, text: str, source: str, data: Mapping[str, Any]) -> None:
        self._lines: Final = text.splitlines()
        self._source: Final = source
        self._data: Final = data
        self.variables: Variables | None = None
        """None for a file without [set]."""

    def rules(self, rules_before: Sequence[Rule]) -> tuple[Rule, ...]:
        """Return the rules of the file. Raises OperatorError."""
        top = _Block(self, "", 0, self._data)
        top.check_keys(FILE_KEYS)
        self.variables = top.read("set", read_variables, None)
        seed = top.read("seed", read_seed, None)
        windows: dict[str, Window] = {}
        for block in self._blocks(top, "window"):
            window = _window(block)
            if window.name in windows:
                block.fail("name", f'window "{window.name}" is defined twice')
            windows[window.name] = window
        rules = [_rule(block, windows, seed, len(rules_before)) for block in self._blocks(top, "rule")]
        if not rules:
            top.fail("", "no [[rule]] in the file")
        return _with_own_keys(rules, rules_before)

    def _blocks(self, top: _Block, kind: str) -> list[_Block]:
        blocks = self._data.get(kind, [])
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            top.fail(kind, f"expected [[{kind}]] in double brackets")
        return [_Block(self, kind, number, block) for number, block in enumerate(blocks, 1)]

    def fail(self, kind: str, number: int, name: object, key: str, message: str) -> NoReturn:
        """Raise the OperatorError for a mistake in a block: source, line, block, key and message."""
        place = f"{kind} {number}" if kind and self._lines else ""
        if kind and isinstance(name, str) and name:
            place += f" ({shown(name)})"
        where = f"{self._source}{self._line(kind, number, key)}"
        raise OperatorError(": ".join(filter(None, (where, place, message))))

    def _line(self, kind: str, number: int, key: str) -> str:
        """Return ":12" for the line of a key; empty where it is unknown, as tomllib keeps no lines."""
        first, end = self._lines_of(kind, number)
        if first is None:
            return ""
        assignment = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
        for place in range(first + 1, end):
            if key and assignment.match(self._lines[place]):
                return f":{place + 1}"
        return f":{first + 1}" if kind else ""

    def _lines_of(self, kind: str, number: int) -> tuple[int | None, int]:
        """Return the line of a block's heading, and the line after the block; None if unknown."""
        headings = [place for place, line in enumerate(self._lines) if re.match(r"\s*\[", line)]
        if not kind:
            return -1, min(headings, default=len(self._lines))
        same = [place for place in headings if re.match(rf"\s*\[\[\s*{kind}\s*\]\]", self._lines[place])]
        if len(same) != len(self._data[kind]):
            return None, 0
        first = same[number - 1]
        return first, min((place for place in headings if place > first), default=len(self._lines))


def _with_own_keys(rules: Iterable[Rule], rules_before: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules with keys of their own, where rules before them have the same name."""
    seen = Counter(rule.key.partition(REPEATED)[0] for rule in rules_before)
    found = []
    for rule in rules:
        seen[rule.key] += 1
        number = seen[rule.key]
        found.append(rule if number == 1 else replace(rule, key=f"{rule.key}{REPEATED}{number}"))
    return tuple(found)


class _Block:
    """A [[rule]] or [[window]] of a file, or what stands before the first of them."""

    def __init__(self, file: _File, kind: str, number: int, data: Mapping[str, Any]) -> None:
        self._file: Final = file
        self._kind: Final = kind
        self.number: Final = number
        self.data: Final = data

    def check_keys(self, known: Iterable[str]) -> None:
        """Raise OperatorError for a key that is not known."""
        for key in self.data:
            if key not in known:
                hint = (place_hint(key) if self._kind == "rule" else "") or did_you_mean(key, known)
                if key in REGEX_KEYS:
                    hint = "; patterns are globs of * and ?, there are no regular expressions"
                self.fail(key, f'unknown key "{shown(key)}"{hint}', with_key=False)

    def read(self, key: str, reader: Callable[[Any], Value], default: Value) -> Value:
        """Return the value of a key. Raises OperatorError with what the reader expected."""
        if key not in self.data:
            return default
        written = self.data[key]
        variables = self._file.variables
        value = written
        try:
            value = written if variables is None else fill_in(written, variables)
            return reader(value)
        except ValueError as error:
            origin = "" if value == written else f", from {shown(str(written))}"
            self.fail(key, f"{error}{origin}")

    def fail(self, key: str, message: str, with_key: bool = True) -> NoReturn:
        """Raise the OperatorError for a mistake in the value of a key."""
        if key and with_key:
            message = f"{key}: {message}"
        self._file.fail(self._kind, self.number, self.data.get("name", ""), key, message)


def _window(block: _Block) -> Window:
    block.check_keys(WINDOW_KEYS)
    found: dict[str, Any] = {key: block.read(key, reader, 0.0) for key, reader in WINDOW_KEYS.items()}
    for key in ("name", "for"):
        if not found[key]:
            block.fail(key, "missing or empty")
    if found["every"] and found["every"] < found["for"]:
        block.fail("every", "shorter than for")
    if found["ramp"] > found["for"]:
        block.fail("ramp", "longer than for")
    return Window(found["name"], found["at"], found["for"], found["every"], found["ramp"])


def _rule(block: _Block, windows: Mapping[str, Window], seed: int | None, rules_before: int) -> Rule:
    block.check_keys(RULE_KEYS)
    values = {key: block.read(key, RULE_KEYS[key], None) for key in block.data}
    try:
        return make_rule(values, windows, seed, str(rules_before + block.number))
    except InvalidKey as error:
        block.fail(error.key, str(error))
