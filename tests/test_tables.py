"""The tables agree with each other, and no row of one goes untested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from engines import make_engine
from transcript import ENDS, FOLDER, Transcript, every

from blackhole import settings
from blackhole.option_table import OPTIONS, Option
from blackhole.rules.modes import MODES
from blackhole.smtp import commands, extensions, replies
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import PHASES, ListenerConfig

pytestmark = pytest.mark.pure

HERE = Path(__file__).parent

OF_1_X = (
    *(220, 221, 250, 251, 252, 354, 421, 431, 450, 451, 452, 454, 458, 459),
    *(500, 501, 502, 503, 504, 521, 530, 534, 538, 550, 551, 552, 553, 554, 571),
)
"""The codes that Blackhole 1.8.1 documents, and 431, which it could pick and had no text for."""

NAMED = {
    name: value
    for name, value in vars(replies).items()
    if isinstance(value, Reply) and value.next_action is not replies.NextAction.LOOKUP  # which is never said
}

REPLIES = [*NAMED.values(), *replies.CODES.values()]

TRANSCRIPTS = every()


def said_by_clients() -> list[str]:
    """The lines that clients send in the transcripts."""
    return [
        line.decode("utf-8", "replace").strip()
        for transcript in TRANSCRIPTS
        for step in transcript.steps
        for line in step.data.splitlines()
    ]


def heard_by_clients() -> str:
    return "\n".join(step.wanted for transcript in TRANSCRIPTS for step in transcript.steps)


CLIENTS = said_by_clients()
SERVERS = heard_by_clients()
TESTS = "\n".join(path.read_text("utf-8") for path in HERE.glob("*.py") if path != Path(__file__))


# Replies


def test_every_code_of_1_x_has_words() -> None:
    assert set(OF_1_X) <= set(replies.CODES)


@pytest.mark.parametrize("one", REPLIES, ids=repr)
def test_a_reply_is_well_formed(one: Reply) -> None:
    """RFC 5321 4.2 and 4.5.3.1.5; RFC 2034: an enhanced code of the same class with 2xx, 4xx and 5xx."""
    assert one.lines
    assert all(re.fullmatch("[ -~]+", line) for line in one.lines)
    assert all(len(line) <= 512 for line in one.wire.splitlines(keepends=True))
    if one.code == 354:
        assert one.enhanced == ""
    else:
        assert re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", one.enhanced)
        assert one.enhanced[0] == str(one.code)[0]


def test_only_greeting_and_hello_have_no_enhanced_code() -> None:
    """RFC 2034 4 exempts them."""
    host = make_engine().constants
    assert {one.enhanced for one in (host.greeting, host.helo, host.ehlo, host.ehlo_secure)} == {""}
    assert {one.enhanced for one in host.help.values()} == {"2.0.0"}


def test_a_bounce_refuses() -> None:
    assert {one.code // 100 for one in replies.BOUNCES} == {4, 5}
    assert len(set(replies.BOUNCES)) == len(replies.BOUNCES)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_reply_is_heard(name: str) -> None:
    """In a transcript, or where a transcript cannot bring it about, in a test of the server."""
    text = NAMED[name].lines[0].partition("%")[0]
    assert text in SERVERS or text in TESTS


# Commands


VERBS = [
    row.verb for row in (*commands.COMMANDS, *commands.OTHER) if row.verb not in ("CONNECT", ".", "other")
]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in commands.NOT_SMTP])
def test_every_verb_is_said(verb: str) -> None:
    assert verb in {line.split(" ")[0].upper() for line in CLIENTS}


def test_a_verb_is_one_row() -> None:
    assert len(set(VERBS)) == len(VERBS)


def test_every_phase_is_a_row() -> None:
    rows = {row.verb for row in commands.COMMANDS}
    assert rows | {"other"} == set(PHASES)


@pytest.mark.parametrize("row", [row for row in commands.COMMANDS if row.about], ids=lambda row: row.verb)
def test_every_verb_offered_is_explained(row: commands.Command) -> None:
    pages = commands.explanations()
    assert row.verb in " ".join(pages[b""].lines).split()
    assert pages[row.verb.encode()].lines == (row.syntax, row.about)
    assert row.syntax.startswith(row.verb)


# Extensions


@pytest.mark.parametrize("row", extensions.EXTENSIONS, ids=lambda row: row.keyword)
def test_every_extension_is_offered_in_a_transcript(row: extensions.Extension) -> None:
    assert re.search(rf"^250[- ]{row.keyword}\b", SERVERS, re.MULTILINE)


def answers(parameter: bytes, verb: str) -> set[str]:
    """The codes of the replies to a command that has this parameter."""
    found = set()
    for transcript in TRANSCRIPTS:
        for said, heard in zip(transcript.steps, transcript.steps[1:], strict=False):
            words = said.data.decode("utf-8", "replace").upper().split()
            if words[:1] == [verb] and any(word.split("=")[0] == parameter.decode() for word in words[1:]):
                found.add(heard.wanted[:3])
    return found


PARAMETERS = extensions.parameters(ListenerConfig(auth=True), secure=True)


@pytest.mark.parametrize("parameter", sorted(PARAMETERS[b"FROM"]))
def test_every_parameter_of_mail_is_taken_and_refused(parameter: bytes) -> None:
    assert answers(parameter, "MAIL") >= {"250", "501"}


@pytest.mark.parametrize("parameter", sorted(PARAMETERS[b"TO"]))
def test_every_parameter_of_rcpt_is_taken_and_refused(parameter: bytes) -> None:
    assert answers(parameter, "RCPT") >= {"250", "501"}


# Modes and options


def test_modes_are_the_same_for_operator_and_engine() -> None:
    assert set(settings.MODES) == set(MODES)


@pytest.mark.parametrize("mode", settings.MODES)
def test_every_mode_has_a_transcript(mode: str) -> None:
    assert any(f"--mode={mode}" in transcript.options for transcript in TRANSCRIPTS)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_used_in_a_test(option: Option) -> None:
    used = rf"--{option.name}\b|^{option.name} *=|\"{option.name}[\" ]"
    argv = " ".join(word for transcript in TRANSCRIPTS for word in transcript.options)
    assert re.search(used, TESTS, re.MULTILINE) or re.search(used, argv)


# Transcripts


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_a_transcript_is_well_kept(transcript: Transcript) -> None:
    """Its name is its claim; it ends with a line end; no blank that an editor would take away."""
    assert re.fullmatch(r"[a-z_]+/[a-z0-9_]+", str(transcript))
    text = transcript.path.read_text("utf-8")
    assert text.endswith("\n")
    assert text == text.rstrip("\n") + "\n"
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert transcript.steps[-1].mark in ("S", *ENDS)


def test_every_folder_is_explained() -> None:
    readme = (HERE / "README.md").read_text("utf-8")
    assert [path.name for path in FOLDER.iterdir() if f"`{path.name}/`" not in readme] == []
