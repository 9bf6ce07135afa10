"""What the fleet's store replies, checked: it is input like any other, and may be of any type and size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES
from blackhole.store.redis_replies import InvalidReply, ReplyParser

MAX_ORDER_TEXT: Final = 1 << 16
"""Octets of the text of a scenario."""

MAX_ORDER_NAME: Final = 4096
"""Characters of the name of a scenario, which may be a path."""

MAX_STORED_NUMBER: Final = 1 << 63
"""What a number of machines, messages or orders is below."""

MAX_LATE_MACHINES: Final = 100
"""Machines of which a run tells that they were late."""

MAX_LATE_NAME: Final = 200
"""Characters of the name of each."""

MAX_SHARED_ID: Final = 64
"""Characters of what the uses of a one-shot rule are counted for."""


class StoreError(Exception):
    """The store does not answer, or has answered what it should not."""


class FleetReplyParser(ReplyParser):
    """A parser with room for ten thousand machines, and for an order."""

    max_string = 1 << 19
    max_elements = 1 << 17
    max_octets = 1 << 24


class FleetOrder(NamedTuple):
    """What all machines of a fleet are to obey, beside their configurations."""

    number: int = 0
    """0 before the first."""
    name: str = ""
    """Name of the scenario; empty for that of each machine's configuration."""
    text: str = ""
    """Text of the scenario."""
    at: float = 0.0
    """When the scenario was ordered, by the store's clock, in seconds since 1970."""
    rules: tuple[SharedRule, ...] = ()
    """The one-shot rules."""


class SharedRule(NamedTuple):
    """A one-shot rule of a fleet."""

    id: str
    times: int
    """Number of uses over all machines."""
    rule: Mapping[str, Any]
    """The rule, as in a scenario file."""


class FleetRun(NamedTuple):
    """A named measurement of a fleet: its counters at the beginning and at the end."""

    name: str
    started: float
    """By the store's clock, in seconds since 1970, as all times of it."""
    ended: float
    """0 while it is running."""
    first: Mapping[str, int]
    """The sum of all machines when it began, by field."""
    last: Mapping[str, int]
    """The sum when it ended; empty before."""
    late: tuple[str, ...] = ()
    """The machines that had not written, at its beginning or its end, what they had counted by then."""

    def text(self) -> str:
        """Return it as it is stored, without its name."""
        words = self._asdict()
        del words["name"]
        return json.dumps(words, separators=(",", ":"))


def checked_fields(reply: object) -> dict[bytes, bytes]:
    """Return a hash. Raises InvalidReply for any other reply."""
    if not isinstance(reply, list) or len(reply) % 2 or not all(isinstance(one, bytes) for one in reply):
        raise InvalidReply("expected a hash")
    words = iter(reply)
    return dict(zip(words, words, strict=True))


def checked_scores(reply: object) -> dict[bytes, float]:
    """Return the members of a sorted set with their scores. Raises InvalidReply for any other reply."""
    return {member: checked_number(score) for member, score in checked_fields(reply).items()}


def checked_time(reply: object) -> float:
    """Return a time in seconds since 1970. Raises InvalidReply for anything but seconds and microseconds."""
    if not isinstance(reply, list) or len(reply) != 2:
        raise InvalidReply("expected seconds and microseconds")
    seconds, microseconds = map(checked_number, reply)
    return seconds + microseconds / 1e6


def checked_number(text: object) -> float:
    """Return a finite number. Raises InvalidReply for anything else."""
    try:
        number = float(text) if isinstance(text, bytes) else math.nan
    except ValueError:
        number = math.nan
    if not abs(number) < MAX_STORED_NUMBER:
        raise InvalidReply("expected a number")
    return number


def checked_octets(found: object) -> bytes:
    """Return a string. Raises InvalidReply for anything else."""
    if not isinstance(found, bytes):
        raise InvalidReply("expected a string")
    return found


def checked_count(number: object) -> int:
    """Return a number that is not negative, and has at most 63 bits. Raises InvalidReply otherwise."""
    text = str(number).encode() if isinstance(number, int) else number
    if not (isinstance(text, bytes) and text.isdigit() and len(text) < 20 and int(text) < MAX_STORED_NUMBER):
        raise InvalidReply("expected a count")
    return int(text)


def parse_order(found: Mapping[bytes, bytes]) -> FleetOrder:
    """Return an order as it is stored. Raises StoreError."""
    try:
        rules = tuple(SharedRule(*rule) for rule in json.loads(found[b"rules"]))
        order = FleetOrder(
            checked_count(found[b"number"]),
            found.get(b"name", b"").decode(),
            found.get(b"text", b"").decode(),
            checked_number(found.get(b"at", b"0")),
            rules,
        )
        valid = len(rules) <= MAX_ONE_SHOT_RULES and all(map(_is_valid, rules))
        valid &= len(order.name) <= MAX_ORDER_NAME and len(order.text) <= MAX_ORDER_TEXT
        valid &= len({rule.id for rule in rules}) == len(rules)
    except (InvalidReply, ValueError, TypeError, KeyError, RecursionError):
        valid = False
    if not valid:
        raise StoreError("the order in the store is none")
    return order


def parse_run(name: bytes, text: bytes) -> FleetRun | None:
    """Return a run as it is stored; None for what is none."""
    try:
        found = json.loads(text)
        run = FleetRun(
            name.decode("ascii"),
            _seconds(found["started"]),
            _seconds(found["ended"]),
            _counts(found["first"]),
            _counts(found["last"]),
            tuple(str(late)[:MAX_LATE_NAME] for late in found["late"][:MAX_LATE_MACHINES]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return run


def _seconds(number: object) -> float:
    if not (isinstance(number, int | float) and 0 <= number < MAX_STORED_NUMBER):
        raise ValueError
    return number


def _counts(found: Mapping[str, object]) -> dict[str, int]:
    counts = {name: count for name, count in found.items() if type(count) is int}
    if len(counts) < len(found) or not all(0 <= count < MAX_STORED_NUMBER for count in counts.values()):
        raise ValueError
    return counts


def _is_valid(rule: SharedRule) -> bool:
    return (
        isinstance(rule.id, str)
        and rule.id.isascii()
        and 0 < len(rule.id) <= MAX_SHARED_ID
        and type(rule.times) is int
        and 0 < rule.times < 1 << 32
        and isinstance(rule.rule, dict)
    )
