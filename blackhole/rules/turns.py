"""Turns: long work on one client's command stops from time to time, so that other clients are served."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from blackhole.rules.attempt_store import PendingAnswer


class NextTurn(PendingAnswer):
    """Lets other clients have their turn. Its answer, which is None, says nothing."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        yield


NEXT_TURN: Final = NextTurn()
