"""The faults that rules may have, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from blackhole.smtp.faults import Fault
from blackhole.smtp.replies import NextAction

FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        fault.name: fault
        for fault in (
            Fault("close", 0, NextAction.CLOSE),
            Fault("reset", 0, NextAction.ABORT),
            Fault("stall", 0, NextAction.HANG),
            Fault("half-reply", 0.5, NextAction.CLOSE),
            Fault("close-before-reply", 0, NextAction.CLOSE),
            Fault("close-after-reply", 1, NextAction.CLOSE),
        )
    }
)
"""Value of `then` -> fault."""

REPLACES_COMMAND: Final = frozenset(("close", "reset", "stall"))
"""Faults that replace the command: it is not done, and a reply of the rule leaves before them."""
