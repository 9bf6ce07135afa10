"""Stores of attempts that behave as if they were on another machine."""

from __future__ import annotations

from blackhole.rules.attempt_store import Answer, HeldSlot, PendingAnswer, Update
from blackhole.rules.turns import NextTurn
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable


class PendingLookup(PendingAnswer):
    """An answer that a test hands on when it likes."""

    def __init__(self, answer: object) -> None:
        self.answer = answer


class RemoteStore:
    """A store whose answers arrive later; without `answers` each of them is that there is none."""

    def __init__(self, answers: bool = True) -> None:
        self.table = AttemptTable(sets=64)
        self.answers = answers
        self.released: list[HeldSlot] = []

    def update(self, key: bytes, now: float, change: Update[Answer]) -> PendingAnswer:
        return PendingLookup(self.table.update(key, now, change) if self.answers else None)

    def refuse_or_acquire(self, key: bytes, limit: int) -> PendingAnswer:
        return PendingLookup(self.table.refuse_or_acquire(key, limit) if self.answers else None)

    def release(self, slot: HeldSlot) -> None:
        self.released.append(slot)


class UnavailableStore:
    """A store that is known to have no answers, so that nothing waits for them."""

    def update(self, key: bytes, now: float, change: Update[Answer]) -> None:
        pass

    def refuse_or_acquire(self, key: bytes, limit: int) -> None:
        pass

    def release(self, slot: HeldSlot) -> None:
        raise AssertionError("no slot was acquired")


def with_lookups(session: Session, out: bytes) -> bytes:
    """Return the output of a session after it was given all answers, and all turns, that it waits for."""
    while session.next_action is NextAction.LOOKUP:
        lookup = session.pending_lookup
        assert isinstance(lookup, PendingLookup | NextTurn)
        out += session.resume_with_answer(lookup.answer if isinstance(lookup, PendingLookup) else None)
    return out
