"""The tables of the program agree with each other, and every row is used in a test or a transcript."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blackhole import settings
from blackhole.option_table import OPTIONS, Option
from blackhole.rules.modes import MODE_RULES
from blackhole.smtp import commands, extensions, replies
from blackhole.smtp.replies import Reply
from blackhole.smtp.state import LMTP, PHASES, SMTP, ListenerConfig
from tests.engines import make_engine
from tests.transcript import END_MARKS, TRANSCRIPTS_FOLDER, Transcript, all_transcripts

pytestmark = pytest.mark.pure

HERE = Path(__file__).parent

CODES_OF_1_X = (
    *(220, 221, 250, 251, 252, 354, 421, 431, 450, 451, 452, 454, 458, 459),
    *(500, 501, 502, 503, 504, 521, 530, 534, 538, 550, 551, 552, 553, 554, 571),
)
"""The codes that Blackhole 1.8.1 documents, and 431, which it could pick and had no text for."""

NAMED_REPLIES = {
    name: value
    for name, value in vars(replies).items()
    if isinstance(value, Reply) and any(value.lines)  # without them, it is never sent
}

ALL_REPLIES = [*NAMED_REPLIES.values(), *replies.CODES.values()]

TRANSCRIPTS = all_transcripts()


def client_lines() -> list[str]:
    """Return the lines that clients send in the transcripts."""
    return [
        line.decode("utf-8", "replace").strip()
        for transcript in TRANSCRIPTS
        for step in transcript.steps
        for line in step.data.splitlines()
    ]


def server_lines() -> str:
    """Return the reply lines that the transcripts expect, as one text."""
    return "\n".join(step.expected for transcript in TRANSCRIPTS for step in transcript.steps)


CLIENT_LINES = client_lines()
SERVER_LINES = server_lines()
TEST_SOURCES = "\n".join(path.read_text("utf-8") for path in HERE.glob("*.py") if path != Path(__file__))


# Replies


def test_every_reply_code_of_1_x_has_a_text() -> None:
    assert set(CODES_OF_1_X) <= set(replies.CODES)


@pytest.mark.parametrize("reply", ALL_REPLIES, ids=repr)
def test_reply_is_well_formed(reply: Reply) -> None:
    """RFC 5321 4.2 and 4.5.3.1.5. RFC 2034: 2xx, 4xx and 5xx have an enhanced code of their own class."""
    assert reply.lines
    assert all(re.fullmatch("[ -~]+", line) for line in reply.lines)
    assert all(len(line) <= 512 for line in reply.wire.splitlines(keepends=True))
    if reply.code == 354:
        assert reply.enhanced == ""
    else:
        assert re.fullmatch(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", reply.enhanced)
        assert reply.enhanced[0] == str(reply.code)[0]


def test_only_the_greeting_and_the_replies_to_helo_and_ehlo_lack_an_enhanced_code() -> None:
    """RFC 2034 4 exempts them."""
    host = make_engine().constants
    assert {reply.enhanced for reply in (host.greeting, host.helo, *host.ehlo)} == {""}
    assert {reply.enhanced for reply in host.help.values()} == {"2.0.0"}


def test_every_reply_of_mode_bounce_is_a_refusal() -> None:
    assert {reply.code // 100 for reply in replies.BOUNCES} == {4, 5}
    assert len(set(replies.BOUNCES)) == len(replies.BOUNCES)


@pytest.mark.parametrize("name", sorted(NAMED_REPLIES))
def test_every_named_reply_is_expected_by_a_transcript_or_a_test(name: str) -> None:
    """Some replies cannot be caused by a transcript, but by a test of the server."""
    text = NAMED_REPLIES[name].lines[0].partition("%")[0]
    assert text in SERVER_LINES or text in TEST_SOURCES


# Commands


ROWS = (*commands.COMMANDS, *commands.OTHER)
VERBS = sorted({row.verb for row in ROWS} - {"CONNECT", ".", "other"})


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in commands.HTTP_VERBS])
def test_every_verb_is_sent_in_a_transcript(verb: str) -> None:
    assert verb in {line.split(" ")[0].upper() for line in CLIENT_LINES}


@pytest.mark.parametrize("service", [SMTP, LMTP])
def test_every_verb_has_one_row_in_each_service(service: str) -> None:
    verbs = [row.verb for row in commands.commands_of(service, ROWS) if row.verb != "CONNECT"]
    assert sorted(verbs) == sorted({*VERBS, ".", "other"} - {"CONNECT"})


def test_every_phase_has_a_row() -> None:
    rows = {row.phase or row.verb for row in commands.COMMANDS}
    assert set(PHASES) <= rows | {"other"}


@pytest.mark.parametrize("row", [row for row in commands.COMMANDS if row.about], ids=lambda row: row.verb)
def test_help_explains_every_offered_verb(row: commands.Command) -> None:
    pages = commands.explanations(row.service or SMTP)
    assert row.verb in " ".join(pages[b""].lines).split()
    assert pages[row.verb.encode()].lines == (row.syntax, row.about)
    assert row.syntax.startswith(row.verb)


# Extensions


@pytest.mark.parametrize("row", extensions.EXTENSIONS, ids=lambda row: row.keyword)
def test_every_extension_is_offered_in_a_transcript(row: extensions.Extension) -> None:
    assert re.search(rf"^250[- ]{row.keyword}\b", SERVER_LINES, re.MULTILINE)


def codes_of_replies(parameter: bytes, verb: str) -> set[str]:
    """Return the codes of the replies to a command with this parameter."""
    found = set()
    for transcript in TRANSCRIPTS:
        for sent, reply in zip(transcript.steps, transcript.steps[1:], strict=False):
            words = sent.data.decode("utf-8", "replace").upper().split()
            if words[:1] == [verb] and any(word.split("=")[0] == parameter.decode() for word in words[1:]):
                found.add(reply.expected[:3])
    return found


PARAMETERS = extensions.parameters(ListenerConfig(auth=True), secure=True)


@pytest.mark.parametrize("parameter", sorted(PARAMETERS[b"FROM"]))
def test_every_parameter_of_mail_is_accepted_and_rejected_in_transcripts(parameter: bytes) -> None:
    assert codes_of_replies(parameter, "MAIL") >= {"250", "501"}


@pytest.mark.parametrize("parameter", sorted(PARAMETERS[b"TO"]))
def test_every_parameter_of_rcpt_is_accepted_and_rejected_in_transcripts(parameter: bytes) -> None:
    assert codes_of_replies(parameter, "RCPT") >= {"250", "501"}


# Modes and options


def test_modes_of_the_option_are_those_of_the_engine() -> None:
    assert set(settings.MODES) == set(MODE_RULES)


@pytest.mark.parametrize("mode", settings.MODES)
def test_every_mode_has_a_transcript(mode: str) -> None:
    assert any(f"--mode={mode}" in transcript.options for transcript in TRANSCRIPTS)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_used_in_a_test(option: Option) -> None:
    used = rf"--{option.name}\b|^{option.name} *=|\"{option.name}[\" ]"
    argv = " ".join(word for transcript in TRANSCRIPTS for word in transcript.options)
    assert re.search(used, TEST_SOURCES, re.MULTILINE) or re.search(used, argv)


# Transcripts


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcript_is_well_formed(transcript: Transcript) -> None:
    """It has a plain name, no trailing white space, and a final `S:` line."""
    assert re.fullmatch(r"[a-z_]+/[a-z0-9_]+", str(transcript))
    text = transcript.path.read_text("utf-8")
    assert text.endswith("\n")
    assert text == text.rstrip("\n") + "\n"
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    assert transcript.steps[-1].mark in ("S", *END_MARKS)


def test_readme_explains_every_folder_of_transcripts() -> None:
    readme = (HERE / "README.md").read_text("utf-8")
    assert [path.name for path in TRANSCRIPTS_FOLDER.iterdir() if f"`{path.name}/`" not in readme] == []
