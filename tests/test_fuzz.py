"""Random octets for the engine, random commands beside a model: small runs of what `fuzz/` does at length."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from blackhole.rules.faults import FAULTS
from blackhole.rules.rule_keys import RULE_KEYS
from blackhole.rules.scenario import profiles
from blackhole.rules.value_readers import THROTTLED_AT
from blackhole.smtp.replies import NextAction
from tests.fuzz import inputs, live, model
from tests.fuzz.__main__ import put, shout, sizes
from tests.fuzz.inputs import attempt, stand
from tests.fuzz.kinds import KINDS, RULES, mixed
from tests.program import Program, wait_for

CUTS = st.lists(st.integers(1, 300), max_size=12)

ANY = st.integers(0, len(KINDS) - 1)


def pieces_of(said: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(said[:size])
        said = said[size:]
    return [piece for piece in (*pieces, said) if piece]


@settings(deadline=None, max_examples=200)
@given(kind=ANY, said=st.binary(max_size=600), cuts=CUTS)
def test_any_octets(kind: int, said: bytes, cuts: list[int]) -> None:
    attempt(stand(kind), said, pieces_of(said, cuts), 7)


@settings(deadline=None, max_examples=400)
@given(kind=ANY, said=st.data(), cuts=CUTS)
def test_what_resembles_a_conversation(kind: int, said: st.DataObject, cuts: list[int]) -> None:
    words = st.sampled_from(KINDS[kind].words) | st.binary(max_size=20)
    text = b"".join(said.draw(st.lists(words, max_size=20)))
    attempt(stand(kind), text, pieces_of(text, cuts), 7)


@pytest.mark.parametrize("path", inputs.corpus(), ids=lambda path: path.stem)
def test_what_was_kept(path: Path) -> None:
    said = path.read_bytes()
    for kind in range(len(KINDS)):
        attempt(stand(kind), said, inputs.cut(Random(kind), [said]), kind)


def test_a_run_finds_nothing() -> None:
    done = inputs.run(seed=7, number=0, count=2000)
    assert done.inputs == 2000
    assert [finding for finding in done.findings if "took" not in finding.what] == []


def test_a_run_would_find_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inputs, "LINE", 3)
    monkeypatch.setattr(inputs, "AUTH_LINE", 3)
    stand.cache_clear()
    try:
        assert put(100, seed=7, workers=1)
        assert "octets of a command" in capsys.readouterr().out
    finally:
        stand.cache_clear()


def test_a_block_is_the_same_whoever_makes_it() -> None:
    assert sizes(2500, 1000) == [(0, 1000), (1, 1000), (2, 500)]
    said: list[list[bytes]] = []
    for _ in range(2):
        dice = Random("7 1")
        kind = mixed(dice)
        said.append([*inputs.generate(dice, kind.words), kind.config.mode.encode()])
    assert said[0] == said[1]


def test_rules_of_every_sort_are_put_to_it() -> None:
    text = "".join(RULES.values())
    assert [key for key in {*RULE_KEYS, *FAULTS, *THROTTLED_AT, "drip"} if key not in text] == []
    names = {kind.name for kind in KINDS}
    assert {f"profile {name}" for name in profiles()} | RULES.keys() <= names


def test_somebody_who_stays_behind_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs.Notes, "leave", lambda self, key: None)
    gates = [number for number, kind in enumerate(KINDS) if kind.name == "gates"]
    with pytest.raises(inputs.Broken, match="still counts"):
        attempt(stand(gates[0]), b"", [], 7)


def test_noise_finds_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(live, "OPTIONS", live.OPTIONS[:1])
    assert shout(1, seed=7) == 0
    assert re.search(r"^[1-9]\d* connections in .*: 0 findings\n$", capsys.readouterr().out, re.MULTILINE)


def test_noise_would_find_something() -> None:
    with Program() as program:
        noise = live.Noise(program, 7, lambda heard: None)
        workers = noise.workers
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: len(program.workers()) == 2 and program.workers() != workers, "another worker")
        noise.make(0.2)
        noise.make(0.2)
    (finding,) = noise.heard.findings
    assert finding.startswith(f"workers {workers} have become ")


def test_engine_and_model_agree() -> None:
    assert model.run(7, 0, 2000).examples == []


def test_a_forgotten_reset_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Model, "rset", lambda self, word: 250)
    assert model.run(7, 0, 500).disagreements


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
        if self.session.next_action is NextAction.START_TLS:
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
