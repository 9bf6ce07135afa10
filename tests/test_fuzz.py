"""Random octets for the engine, random commands beside a model: small runs of what `fuzz/` does at length."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from blackhole.smtp import Then
from tests.fuzz import inputs, model
from tests.fuzz.inputs import KINDS, WORDS, Bench

BENCH = Bench()

CUTS = st.lists(st.integers(1, 300), max_size=12)


def pieces_of(said: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(said[:size])
        said = said[size:]
    return [piece for piece in (*pieces, said) if piece]


@settings(deadline=None, max_examples=150)
@given(kind=st.integers(0, len(KINDS) - 1), said=st.binary(max_size=600), cuts=CUTS)
def test_any_octets(kind: int, said: bytes, cuts: list[int]) -> None:
    BENCH.attempt(kind, said, pieces_of(said, cuts), 7)


@settings(deadline=None, max_examples=300)
@given(
    kind=st.integers(0, len(KINDS) - 1),
    said=st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=20).map(b"".join),
    cuts=CUTS,
)
def test_what_resembles_a_conversation(kind: int, said: bytes, cuts: list[int]) -> None:
    BENCH.attempt(kind, said, pieces_of(said, cuts), 7)


@pytest.mark.parametrize("path", inputs.corpus(), ids=lambda path: path.stem)
def test_what_was_kept(path: Path) -> None:
    said = path.read_bytes()
    for kind in range(len(KINDS)):
        for seed in range(4):
            BENCH.attempt(kind, said, inputs.cut(Random(seed), said) if said else [], seed)


def test_a_run_finds_nothing() -> None:
    done = inputs.run(2000, seed=7)
    assert done.inputs == 2000
    assert [finding for finding in done.findings if "took" not in finding[2]] == []


def test_a_run_would_find_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "LINE", 3)
    assert inputs.run(50, seed=7).findings


def test_engine_and_model_agree() -> None:
    assert model.run(2000, seed=7).examples == []


def test_a_forgotten_reset_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Model, "rset", lambda self, word: 250)
    assert model.run(500, seed=7).disagreements


class Talk(RuleBasedStateMachine):
    """A session and the model of it, which shrink together to the shortest talk that tells them apart."""

    @initialize(setting=st.sampled_from(model.SETTINGS))
    def greet(self, setting: dict[str, int]) -> None:
        self.model = model.Model(**setting)
        self.session = model.engine(**setting).session()
        self.session.greet()

    @precondition(lambda self: not self.model.body)
    @rule(word=st.sampled_from(list(model.SAID)))
    def command(self, word: str) -> None:
        self.hear(model.SAID[word], self.model.answer(word))
        if self.session.then is Then.SECURE:
            self.session.secured()

    @precondition(lambda self: self.model.body)
    @rule(word=st.sampled_from(list(model.BODIES)), cut=st.integers(0, 110))
    def body(self, word: str, cut: int) -> None:
        text = model.BODIES[word]
        assert not text[:cut] or cut >= len(text) or self.session.receive(text[:cut]) == b""
        self.hear(text[cut:] if cut < len(text) else text, self.model.end(word))

    def hear(self, said: bytes, wanted: str) -> None:
        assert model.codes(self.session.receive(said)) == [wanted]
        assert self.session.in_body == self.model.body


TestTalk = Talk.TestCase
TestTalk.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
