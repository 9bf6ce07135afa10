"""Events: what a session has counted. Each is a number that the session was given and does not interpret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from blackhole.smtp.violations import SAMPLED, VIOLATIONS


class EventNumbers(Protocol):
    """Gives the numbers of events. It is asked once for each event of a listener. 0 is not counted."""

    def reply(self, phase: str, code: int) -> int:
        """Return the number of a reply with this code in this phase."""

    def violation(self, name: str) -> int:
        """Return the number of a violation of this name that was counted."""

    def sampled_violation(self, name: str) -> int:
        """Return the number of a violation of this name that was found in a sample."""

    def inspection(self, what: str) -> int:
        """Return the number of the inspection of one of the `sessions` or `messages`."""

    def limit(self, name: str) -> int:
        """Return the number of a limit on clients of this name."""


class Uncounted:
    """Numbers for sessions whose events nobody tells apart."""

    __slots__ = ()

    def reply(self, phase: str, code: int) -> int:
        return 1

    def violation(self, name: str) -> int:
        return 1

    def limit(self, name: str) -> int:
        return 1

    def sampled_violation(self, name: str) -> int:
        return 1

    def inspection(self, what: str) -> int:
        return 1


UNCOUNTED: Final = Uncounted()


class ReplyEvents(dict[int, int]):
    """The numbers of the replies of one phase, by reply code; each is resolved when it is first used."""

    def __init__(self, numbers: EventNumbers, phase: str) -> None:
        self._numbers = numbers
        self._phase = phase

    def __missing__(self, code: int) -> int:
        number = self[code] = self._numbers.reply(self._phase, code)
        return number


class LimitEvents(dict[str, int]):
    """The numbers of limits on clients, by name; each is resolved when it is first used."""

    def __init__(self, numbers: EventNumbers) -> None:
        self._numbers = numbers

    def __missing__(self, name: str) -> int:
        number = self[name] = self._numbers.limit(name)
        return number


def violation_events(numbers: EventNumbers) -> Mapping[str, int]:
    """Return the number of each violation by its name."""
    return {violation.name: numbers.violation(violation.name) for violation in VIOLATIONS}


def sampled_violation_events(numbers: EventNumbers) -> Mapping[str, int]:
    """Return the number of each violation that is found in a sample, by its name."""
    return {name: numbers.sampled_violation(name) for name in SAMPLED}
