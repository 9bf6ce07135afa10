"""A memory whose answers have to be fetched, as those of one on another machine have to be waited for."""

from __future__ import annotations

from blackhole.rules.attempt_store import Answer, PendingAnswer, Slot, Update
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.attempts import AttemptTable


class Told(PendingAnswer):
    """An answer that somebody has to fetch."""

    def __init__(self, known: object) -> None:
        self.known = known


class Elsewhere:
    """It is asked as if it were far away. One that knows nothing has no answers."""

    def __init__(self, knows: bool = True) -> None:
        self.memory = AttemptTable(sets=64)
        self.knows = knows
        self.left: list[Slot] = []

    def update(self, key: bytes, now: float, change: Update[Answer], alone: bool = False) -> PendingAnswer:
        return Told(self.memory.update(key, now, change, alone) if self.knows else None)

    def refuse_or_acquire(self, key: bytes, limit: int) -> PendingAnswer:
        return Told(self.memory.refuse_or_acquire(key, limit) if self.knows else None)

    def release(self, place: Slot) -> None:
        self.left.append(place)


class Silence:
    """It is known to have no answers, so nobody waits for them."""

    def update(self, key: bytes, now: float, change: Update[Answer], alone: bool = False) -> None:
        pass

    def refuse_or_acquire(self, key: bytes, limit: int) -> None:
        pass

    def release(self, place: Slot) -> None:
        raise AssertionError("nobody was let in")


def fetched(session: Session, out: bytes) -> bytes:
    """What a session says next, once it has all answers that it asks for."""
    while session.next_action is NextAction.LOOKUP:
        assert isinstance(session.pending_lookup, Told)
        out += session.resume_with_answer(session.pending_lookup.known)
    return out
