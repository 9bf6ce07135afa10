"""The modules that a compiled build makes extension modules of, and whether this is such a build.

Python is the default everywhere. With BLACKHOLE_COMPILE=1, `setup.py` hands the files of this table to mypyc.
They are what every message goes through; a class is compiled together with all of its subclasses.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

COMPILED_MODULES: Final = (
    "blackhole.rules.chances",
    "blackhole.rules.context",
    "blackhole.rules.evaluator",
    "blackhole.rules.message_identity",
    "blackhole.rules.model",
    "blackhole.rules.quota_owners",
    "blackhole.rules.retry_tracker",
    "blackhole.rules.search",
    "blackhole.rules.table",
    "blackhole.smtp.actions",
    "blackhole.smtp.arguments",
    "blackhole.smtp.body_reader",
    "blackhole.smtp.delivery",
    "blackhole.smtp.engine",
    "blackhole.smtp.engine_tables",
    "blackhole.smtp.error_budget",
    "blackhole.smtp.execution",
    "blackhole.smtp.fast_path",
    "blackhole.smtp.framing",
    "blackhole.smtp.input_reader",
    "blackhole.smtp.inspection",
    "blackhole.smtp.message_body",
    "blackhole.smtp.offer",
    "blackhole.smtp.recorded_session",
    "blackhole.smtp.replies",
    "blackhole.smtp.sequence",
    "blackhole.smtp.session",
    "blackhole.smtp.state",
)
"""The names of the modules, in the order of the alphabet."""


def source_of(module: str) -> str:
    """Return the path of a module's source in a checkout."""
    return module.replace(".", "/") + ".py"


def is_compiled() -> bool:
    """Return whether this is a compiled build."""
    spec = find_spec(COMPILED_MODULES[-1])
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
