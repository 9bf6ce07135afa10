"""Short runs of the fuzzers in `fuzz/`: random octets, a model of the transaction, input over sockets."""

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

from blackhole.rules.faults import FAULTS, NUMBERED_FAULTS
from blackhole.rules.limiter_readers import THROTTLED_AT
from blackhole.rules.rule_keys import RULE_KEYS
from blackhole.rules.scenario import profiles
from blackhole.smtp.replies import NextAction
from tests.fuzz import inputs, live, model, reloads
from tests.fuzz.__main__ import blocks, fuzz_inputs, fuzz_live
from tests.fuzz.inputs import harness, run_input
from tests.fuzz.listener_kinds import LISTENER_KINDS, SCENARIOS, random_kind
from tests.program import Program, wait_for

CUTS = st.lists(st.integers(1, 300), max_size=12)

ANY_KIND = st.integers(0, len(LISTENER_KINDS) - 1)


def pieces_of(data: bytes, sizes: list[int]) -> list[bytes]:
    """Split octets into pieces of these sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]


@settings(deadline=None, max_examples=200)
@given(kind=ANY_KIND, data=st.binary(max_size=600), cuts=CUTS)
def test_random_octets_violate_no_invariant(kind: int, data: bytes, cuts: list[int]) -> None:
    run_input(harness(kind), data, pieces_of(data, cuts), 7)


@settings(deadline=None, max_examples=400)
@given(kind=ANY_KIND, data=st.data(), cuts=CUTS)
def test_random_phrases_violate_no_invariant(kind: int, data: st.DataObject, cuts: list[int]) -> None:
    phrases = st.sampled_from(LISTENER_KINDS[kind].phrases) | st.binary(max_size=20)
    text = b"".join(data.draw(st.lists(phrases, max_size=20)))
    run_input(harness(kind), text, pieces_of(text, cuts), 7)


@pytest.mark.parametrize("path", inputs.corpus_files(), ids=lambda path: path.stem)
def test_input_of_the_corpus_violates_no_invariant(path: Path) -> None:
    data = path.read_bytes()
    for kind in range(len(LISTENER_KINDS)):
        run_input(harness(kind), data, inputs.split(Random(kind), [data]), kind)


def test_run_of_random_inputs_has_no_findings() -> None:
    result = inputs.run_block(seed=7, number=0, count=2000)
    assert result.inputs == 2000
    assert [finding for finding in result.findings if "took" not in finding.what] == []


def test_run_finds_a_session_that_keeps_too_many_octets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inputs, "MAX_COMMAND_LINE", 3)
    monkeypatch.setattr(inputs, "MAX_AUTH_LINE", 3)
    harness.cache_clear()
    try:
        assert fuzz_inputs(100, seed=7, workers=1)
        assert "octets of a command" in capsys.readouterr().out
    finally:
        harness.cache_clear()


def test_run_is_divided_into_blocks() -> None:
    assert blocks(2500, 1000) == [(0, 1000), (1, 1000), (2, 500)]


def test_block_depends_on_its_seed_and_number_only() -> None:
    generated: list[list[bytes]] = []
    for _ in range(2):
        source = Random("7 1")
        kind = random_kind(source)
        generated.append([*inputs.generate(source, kind.phrases), kind.mode.encode()])
    assert generated[0] == generated[1]


def test_every_key_fault_and_profile_of_scenarios_is_fuzzed() -> None:
    text = "".join(SCENARIOS.values())
    assert [key for key in {*RULE_KEYS, *FAULTS, *THROTTLED_AT, *NUMBERED_FAULTS} if key not in text] == []
    names = {kind.name for kind in LISTENER_KINDS}
    assert {f"profile {name}" for name in profiles()} | SCENARIOS.keys() <= names


def test_concurrency_slot_that_is_not_released_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs.ResettableAttemptStore, "release", lambda self, key: None)
    (number,) = (number for number, kind in enumerate(LISTENER_KINDS) if kind.name == "limiters")
    with pytest.raises(inputs.InvariantViolation, match="slots are held"):
        run_input(harness(number), b"", [], 7)


def test_random_input_over_sockets_has_no_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "OPTIONS", live.OPTIONS[:1])
    assert fuzz_live(1, seed=7) == 0
    assert re.search(r"^[1-9]\d* connections in .*: 0 findings\n$", capsys.readouterr().out, re.MULTILINE)


def test_reloaded_program_replies_as_the_model_predicts() -> None:
    result = reloads.ReloadRun(7, strict=False).run_for(2)
    assert result.connections > 20
    assert result.reloads
    assert result.findings == []


def test_reply_of_another_scenario_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloads, "PATIENCE", 0.5)
    run = reloads.ReloadRun(7, strict=False)
    for version in run.versions:
        version.text = '[[rule]]\nphase = "HELP"\nreply = "554 5.7.1 Never"\n'
    assert run.run_for(1).findings


def test_replaced_worker_is_found() -> None:
    with Program() as program:
        fuzzer = live.LiveFuzzer(program, 7, lambda result: None)
        workers = fuzzer.workers
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: len(program.workers()) == 2 and program.workers() != workers, "another worker")
        fuzzer.run_for(0.2)
        fuzzer.run_for(0.2)
    # On a busy machine more than one check may see it.
    assert fuzzer.result.findings[0].startswith(f"workers {workers} were replaced by ")


def test_engine_replies_as_the_model_predicts() -> None:
    assert model.run_block(7, 0, 2000).examples == []


def test_transaction_that_rset_does_not_clear_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.Model, "rset", lambda self, name: 250)
    assert model.run_block(7, 0, 500).differences


class Conversation(RuleBasedStateMachine):
    """A session and its model. Hypothesis finds the shortest conversation in which they differ."""

    @initialize(setting=st.sampled_from(model.SETTINGS))
    def greet(self, setting: dict[str, int]) -> None:
        self.model = model.Model(**setting)
        self.engine = model.engine_of(**setting)
        self.session = self.engine.session(client=model.CLIENT_ADDRESS)
        self.session.greet()

    @precondition(lambda self: not self.model.body)
    @rule(name=st.sampled_from(list(model.COMMANDS_BY_NAME)))
    def command(self, name: str) -> None:
        self.exchange(model.COMMANDS_BY_NAME[name], self.model.replies_to(name))
        if self.session.next_action is NextAction.START_TLS:
            self.session.secured()

    @precondition(lambda self: self.model.body)
    @rule(name=st.sampled_from(list(model.BODIES_BY_NAME)), cut=st.integers(1, 110))
    def body(self, name: str, cut: int) -> None:
        text = model.BODIES_BY_NAME[name]
        early = self.session.receive(text[:cut]) if cut < len(text) else b""
        self.exchange(text[cut:] if cut < len(text) else text, self.model.replies_to_end(name), early)

    def exchange(self, data: bytes, expected: list[str], early: bytes = b"") -> None:
        out = early + self.session.receive(data)
        if self.session.next_action is NextAction.CHANGE_CLIENT:
            self.session = self.engine.session_after(self.session)
            out += self.session.greet_named_client()
        assert model.codes(out) == expected
        assert self.session.in_body == self.model.body


TestConversation = Conversation.TestCase
TestConversation.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
