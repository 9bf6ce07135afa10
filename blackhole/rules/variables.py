"""Variables of a scenario: defaults in its table [set], used as "$name" or in texts as "${name}".

A value that is `$name` as a whole is replaced by the variable as it is, a number by a number; `${name}` in a
text is replaced by its text, and `$$` by a dollar sign. A scenario without [set] has no variables; its
texts stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from blackhole.values import VARIABLE_NAME, did_you_mean, expected, shown

Variables = Mapping[str, Any]
"""Name -> text, number, or true or false."""

WHOLE_VALUE: Final = re.compile(rf"\$(?:({VARIABLE_NAME})|\{{({VARIABLE_NAME})\}})")
IN_TEXT: Final = re.compile(rf"\$(?:\{{({VARIABLE_NAME})\}}|\$)")

LOOKS_LIKE_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def read_variables(value: Any) -> Variables:
    """Read the table [set]. Raises ValueError."""
    if not isinstance(value, dict):
        raise expected("a table of variables, as [set] with deferral = 0.01 below it", value)
    for name, default in value.items():
        if not re.fullmatch(VARIABLE_NAME, name):
            raise ValueError(f"{shown(name)}: expected a name of letters, digits, _ and -")
        if not isinstance(default, str | int | float):
            raise ValueError(f"{name}: {expected('a text, a number, or true or false', default)}")
    return value


def find(name: str, variables: Variables) -> Any:
    """Return the value of a variable. Raises ValueError for an unknown one."""
    if name not in variables:
        raise ValueError(f"unknown variable ${name}; {_known(variables)}{did_you_mean(name, variables)}")
    return variables[name]


def _known(variables: Variables) -> str:
    return f"[set] has {', '.join(variables) or 'none'}"


def fill_in(value: Any, variables: Variables) -> Any:
    """Return a value with its variables replaced. Raises ValueError.

    >>> fill_in(["$share", "450 ${words}"], {"share": 0.5, "words": "Later"})
    [0.5, '450 Later']
    """
    if isinstance(value, list):
        return [fill_in(one, variables) for one in value]
    if isinstance(value, dict):
        return {key: fill_in(one, variables) for key, one in value.items()}
    if not isinstance(value, str) or "$" not in value:
        return value
    if match := WHOLE_VALUE.fullmatch(value):
        return find(match[1] or match[2], variables)
    return IN_TEXT.sub(lambda found: as_text(find(found[1], variables)) if found[1] else "$", value)


def as_text(value: Any) -> str:
    """Return the value of a variable as a text.

    >>> as_text(True), as_text(0.05)
    ('true', '0.05')
    """
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(text: str, default: Any) -> Any:
    """Return the value for a text from outside the file, of the type that fits where the default does.

    >>> [typed("5", "1m"), typed("5", "mx1"), typed("yes", False), typed("0.5", 1)]
    [5, '5', True, 0.5]
    """
    words = {"true": True, "yes": True, "false": False, "no": False}
    if isinstance(default, bool):
        return words.get(text.lower(), text)
    number = LOOKS_LIKE_NUMBER.fullmatch(text)
    # A time or a size, as "5m", may be a number too.
    if number and (not isinstance(default, str) or re.match("[0-9]", default)):
        return float(text) if number[1] else int(text)
    return text


def with_values(text: str, variables: Variables, given: Mapping[str, str]) -> str:
    """Return the text of a scenario with other values of its variables, each in its line.

    Raises ValueError for a variable that has no line of its own below [set].
    """
    lines = text.splitlines(keepends=True)
    heading = next((place for place, line in enumerate(lines) if re.match(r"\s*\[\s*set\s*\]", line)), None)
    for name, value in given.items():
        place = None if heading is None else _line_of(name, lines, heading + 1)
        if place is None:
            raise ValueError(f"{name}: has no line of its own below [set], as {name} = 1")
        changed = typed(value, variables[name])
        shown_value = as_text(changed) if not isinstance(changed, str) else _quoted(changed)
        lines[place] = f"{name} = {shown_value}\n"
    return "".join(lines)


def _quoted(text: str) -> str:
    """Return a printable text as TOML has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _line_of(name: str, lines: list[str], first: int) -> int | None:
    """Return the line that sets a variable; None where there is none before the next table."""
    for place in range(first, len(lines)):
        if re.match(r"\s*\[", lines[place]):
            break
        if re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*=", lines[place]):
            return place
    return None
