"""The warnings of a start: the operator sees them at once, the log file has them once it is open."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from blackhole.process.console import print_warning

log = logging.getLogger(__name__)


class StartWarnings:
    """Collects the warnings of a start, of which the operator has seen `lines` already."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._lines: Final = list(lines)

    def warn(self, line: str) -> None:
        """Show a warning to the operator, and keep it for the log."""
        print_warning(line)
        self._lines.append(line)

    def write_to_log(self) -> None:
        """Log all warnings."""
        for line in self._lines:
            log.warning("%s", line)
