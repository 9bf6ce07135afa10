"""What schemathesis must know of the HTTP API beside its description; it loads this module by its name."""

from __future__ import annotations

from typing import Any

import schemathesis

from blackhole.web.handlers import MAX_WAIT_SECONDS


@schemathesis.serializer("application/toml")
def as_toml(_: Any, value: Any) -> bytes:
    """Return the body of a request with a scenario: any text, which seldom is one."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.hook
def before_call(_: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let no valid request wait for mail, which never comes."""
    if case.path.endswith("/wait"):
        try:
            is_valid = 0 <= float(case.query.get("timeout", 0)) <= MAX_WAIT_SECONDS
        except (TypeError, ValueError):
            is_valid = False
        if is_valid:
            case.query["timeout"] = 0
