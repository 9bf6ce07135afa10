"""Providers: those who say what they expect of messages, and since when."""

from __future__ import annotations

from typing import Final, NamedTuple


class Provider(NamedTuple):
    """A provider that says what it expects of messages."""

    title: str
    source: str
    """Where it says so."""
    date: str
    """Since when that holds, or when it was last changed: year, month and day."""


PROVIDERS: Final = {
    "gmail": Provider("Gmail", "https://support.google.com/a/answer/81126", "2024-02-01"),
    "yahoo": Provider("Yahoo", "https://senders.yahooinc.com/best-practices/", "2024-02-01"),
    "microsoft": Provider(
        "Outlook.com",
        'Microsoft\'s announcement "Strengthening Email Ecosystem"',
        "2025-05-05",
    ),
    "orange": Provider("Orange", "https://postmaster.orange.fr/", "2026-05-15"),
}
"""Providers by name. The rules are modelled on what they publish, and are not official."""

OF_PROVIDER: Final = "provider:"
"""What the value of --fail-on for the rules of a provider begins with."""
