"""Readers of the values of `greylist` and `throttle` in a scenario file.

As `blackhole.rules.value_readers`: they take a value as TOML has it, and raise ValueError that says what was
expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from blackhole.rules.conduct import MAX_GROWN, MAX_PERIODS, MAX_REFUSED, MAX_STEPS, Growth, RefusalLimit
from blackhole.rules.limiters import TRIPLET, ConcurrencyLimit, Greylist, RateLimit
from blackhole.rules.modes import DEFAULT_GREYLIST
from blackhole.rules.quota_owners import QUOTA_OWNERS, Owners
from blackhole.rules.quotas import MAX_BURST, MAX_SLIDING
from blackhole.rules.value_readers import is_whole, read_chance, read_number, read_seconds
from blackhole.values import SIZE_UNITS, did_you_mean, expected, shown, unknown_word

PERIODS: Final = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "connection": 0.0}

THROTTLED_AT: Final[Mapping[str, tuple[str, ...]]] = {
    "connections": ("CONNECT",),
    "concurrent": ("CONNECT", "MAIL", "RCPT", "HELO", "EHLO", "AUTH"),
    "messages": ("MAIL", "DATA", "."),
    "recipients": ("RCPT",),
    "bytes": (".", "MAIL"),
    "refused": ("RCPT", "MAIL", "CONNECT", "HELO", "EHLO"),
}
"""What a throttle limits -> the phases in which it can be counted. The first in which all is known of what it
is counted for is the default."""

THROTTLE_KEYS: Final = ("per", "by", "window", "burst", "grows", "every", "to", "share")
"""Keys of a throttle beside what it limits."""

GREYLIST_KEYS: Final = ("min", "max", "by")
"""Keys of a greylist."""

WINDOW_KINDS: Final = ("fixed", "sliding")
"""Values of the `window` of a throttle."""


def read_owners(value: Any, default: Owners) -> Owners:
    """Read `by`: what a limit is counted for, or a list of it."""
    if value is None:
        return default
    owners = tuple(value) if isinstance(value, list) else (value,)
    for name in owners:
        if not isinstance(name, str) or name not in QUOTA_OWNERS:
            raise ValueError(f"by: {unknown_word(name, QUOTA_OWNERS)}")
    if not owners or len({*owners}) < len(owners) or ("all" in owners and len(owners) > 1):
        raise ValueError(f"by: {expected('one or more, each once, and all by itself', value)}")
    return owners


def read_greylist(value: Any) -> Greylist:
    """Read the bounds of a greylist. Any may be left out, and with `true` all."""
    if value is True:
        return DEFAULT_GREYLIST
    if not isinstance(value, dict) or not value.keys() <= {*GREYLIST_KEYS}:
        raise expected('{ min = "5m", max = "2d", by = WHOSE }', value)
    least = read_seconds(value.get("min", DEFAULT_GREYLIST.least))
    most = read_seconds(value.get("max", DEFAULT_GREYLIST.most))
    if least > most:
        raise expected("a min that is less than max", value)
    return Greylist(least, most, read_owners(value.get("by"), TRIPLET))


def read_throttle(value: Any) -> tuple[str, RateLimit | ConcurrencyLimit | RefusalLimit]:
    """Read a throttle, and return what it limits, and the limiter."""
    limited = [key for key in value if key in THROTTLED_AT] if isinstance(value, dict) else []
    if len(limited) != 1:
        raise expected(f"{{ WHAT = N, per = TIME, by = WHOSE }} with one of {', '.join(THROTTLED_AT)}", value)
    (what,) = limited
    for key in value.keys() - {what, *THROTTLE_KEYS}:
        hint = did_you_mean(key, THROTTLE_KEYS)
        raise ValueError(f'unknown key "{shown(key)}", expected {", ".join(THROTTLE_KEYS)}{hint}')
    limit = _read_quota(value[what])
    by = read_owners(value.get("by"), ("client",))
    if what == "concurrent":
        for key in sorted(value.keys() & {*THROTTLE_KEYS} - {"by"}):
            raise ValueError(f"{key}: not with concurrent, which has no period")
        return what, ConcurrencyLimit(limit, by)
    if what == "refused":
        return what, _read_refusals(value, limit, by)
    if "share" in value:
        raise ValueError("share: only with refused")
    period = _read_period(value.get("per"), what)
    sliding = _read_window(value.get("window", "fixed"), limit, period)
    burst = _read_burst(value.get("burst"), limit, period)
    if burst and "window" in value:
        raise ValueError("burst: not with window; a bucket of tokens has none")
    growth = _read_growth(value, limit, period)
    if growth and not value.keys().isdisjoint(("window", "burst")):
        raise ValueError("grows: not with window or burst")
    return what, RateLimit(what, limit, period, by, sliding, burst, growth)


def _read_refusals(value: Mapping[str, Any], limit: int, by: Owners) -> RefusalLimit:
    """Read a limit of refused recipients."""
    for key in sorted(value.keys() & {"window", "burst", "grows", "every", "to"}):
        raise ValueError(f"{key}: not with refused")
    period = _read_period(value.get("per"), "refused")
    if not period:
        raise ValueError(f"per: {expected('a time above 0', value['per'])}")
    if not 1 <= limit <= MAX_REFUSED:
        raise ValueError(f"refused: {expected(f'a whole number from 1 to {MAX_REFUSED}', limit)}")
    return RefusalLimit(limit, period, by, read_chance(value.get("share", 0)))


def _read_growth(value: Mapping[str, Any], limit: int, period: float) -> Growth | None:
    """Read how a limit grows; None for one that does not."""
    if "grows" not in value:
        for key in sorted(value.keys() & {"every", "to"}):
            raise ValueError(f"{key}: only with grows")
        return None
    factor, most = read_number(value["grows"]), _read_quota(value.get("to", 0))
    if not 1 < factor <= 100:
        raise ValueError(f"grows: {expected('a factor above 1, up to 100', factor)}")
    if not 1 <= limit < most <= MAX_GROWN:
        raise ValueError(f"to: {expected(f'a whole number above the limit, up to {MAX_GROWN}', most)}")
    if not period:
        raise ValueError("grows: not with per = connection")
    every = read_seconds(value.get("every", period))
    if not period <= every <= period * MAX_PERIODS:
        raise ValueError(f"every: {expected(f'a time from per to {MAX_PERIODS} times as long', every)}")
    steps = next((step for step in range(MAX_STEPS + 1) if limit * factor**step >= most), None)
    if steps is None:
        raise ValueError(f"grows: more than {MAX_STEPS} times from {limit} to {most}")
    return Growth(factor, every, most, steps)


def _read_period(value: Any, what: str) -> float:
    """Read the seconds of a throttle's period; 0 is a connection."""
    if value is None:
        raise ValueError(f"per: missing; expected one of {', '.join(PERIODS)}, or a time")
    period = PERIODS[value] if isinstance(value, str) and value in PERIODS else read_seconds(value)
    if not period and (value != "connection" or what == "connections"):
        raise ValueError(f"per: {expected('a time above 0', value)}")
    return period


def _read_window(value: Any, limit: int, period: float) -> bool:
    """Read whether a window slides."""
    if value not in WINDOW_KINDS:
        raise ValueError(f"window: {unknown_word(value, WINDOW_KINDS)}")
    if value != "sliding":
        return False
    if not period:
        raise ValueError("window: not with per = connection, which does not slide")
    if limit > MAX_SLIDING:
        raise ValueError(f"window: slides with a limit of at most {MAX_SLIDING}; use burst")
    return True


def _read_burst(value: Any, limit: int, period: float) -> int:
    """Read the tokens of a bucket; 0 for none."""
    if value is None:
        return 0
    burst = _read_quota(value)
    if not 1 <= burst <= MAX_BURST:
        raise ValueError(f"burst: {expected(f'a whole number from 1 to {MAX_BURST}', value)}")
    if not period or not limit:
        raise ValueError("burst: needs a limit above 0 and a period, by which tokens come")
    return burst


def _read_quota(value: Any) -> int:
    if isinstance(value, str) and (match := re.fullmatch("([0-9]{1,9})([kmgKMG])", value)):
        return int(match[1]) * SIZE_UNITS[match[2].lower()]
    if is_whole(value, 0, 2**48 - 1):
        return int(value)
    raise expected("a whole number from 0, or one with its unit, as 10M", value)
