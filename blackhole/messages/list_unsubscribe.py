"""List-Unsubscribe (RFC 2369 3.2) and its one-click form (RFC 8058)."""

from __future__ import annotations

import re
from typing import Final

from blackhole.messages.field_syntax import MAX_JUDGED_OCTETS, without_comments

_BRACKETED_URI: Final = rb"<[ \t]*+[A-Za-z][A-Za-z0-9+.-]*+:[^<>]++>"

URI_LIST: Final = re.compile(
    _BRACKETED_URI + rb"(?:[ \t]*+,[ \t]*+" + _BRACKETED_URI + rb")*+[ \t]*+"
).fullmatch

HTTPS_URI: Final = re.compile(rb"<[ \t]*+https:", re.IGNORECASE).search

ONE_CLICK: Final = b"List-Unsubscribe=One-Click"
"""The value of List-Unsubscribe-Post (RFC 8058 3.1)."""


def is_uri_list(value: bytes) -> bool:
    """Return whether a value is a list of URIs in angle brackets, separated by commas."""
    if len(value) > MAX_JUDGED_OCTETS:
        return True
    text = without_comments(value)
    return text is not None and URI_LIST(text) is not None


def one_click_fault(unsubscribe: bytes, post: bytes) -> str:
    """Return what is wrong with List-Unsubscribe-Post and the List-Unsubscribe it belongs to; empty: nothing.

    >>> one_click_fault(b"<mailto:off@a.test>", ONE_CLICK)
    'List-Unsubscribe has no https URI'
    """
    if post != ONE_CLICK:
        return "List-Unsubscribe-Post is not List-Unsubscribe=One-Click"
    return "" if HTTPS_URI(unsubscribe) else "List-Unsubscribe has no https URI"
