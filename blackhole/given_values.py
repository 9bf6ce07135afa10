"""Given values: the value of an option that an operator gave, and where it was."""

from __future__ import annotations

from typing import Any, NamedTuple

from blackhole.settings import OperatorError


class GivenValue(NamedTuple):
    """A value that was given, and where."""

    value: Any
    origin: str
    """As --print-config shows it."""
    where: str
    """As errors and warnings begin."""
    exit_code: int
    """Of the program, if the value is wrong."""

    def error(self, message: str) -> OperatorError:
        """Return the error for a mistake in this value."""
        return OperatorError(f"{self.where}: {message}", self.exit_code)


GivenValues = dict[str, GivenValue]
"""By name of the option."""
