"""What is kept of a message to find what its header section asks for."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest

from blackhole.smtp.directives import MAX_FIELD, DirectiveReader, Directives, parse_directives
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.header_section import MAX_HEADER, fields
from blackhole.smtp.state import ListenerConfig

PARTS = (
    *(
        b"X-Blackhole-Mode: bounce\r\n",
        b"x-blackhole-mode: nothing\r\n",
        b"X-Blackhole-Delay:\r\n 1,\r\n\t2\r\n",
    ),
    *(b"X-Blackhole-Delay : 0.5\n", b"X-Blackhole-Delay: x\r\n", b"Subject: hello\r\n", b" and more\r\n"),
    *(b"X-Long: " + b"x" * 600 + b"\r\n", b"x" * 700 + b": y\r\n", b" " + b"x" * 600 + b"\r\n"),
    *(b"\r\n", b".\r\n", b"no field\r\n", b"n" * 600 + b"\r\n", b"A: b\r\n" * 400, b"\x80:\r\n"),
    *(
        b"X-Blackhole-Mode: " + b" " * 600 + b"bounce\r\n",
        b"X-Blackhole-Mode:\r\n" + b" " * 600 + b"random\r\n",
    ),
)


@pytest.mark.parametrize("seed", range(200))
def test_directives_do_not_depend_on_the_pieces_in_which_they_arrive(seed: int) -> None:
    random = Random(seed)
    text = b"".join(random.choices(PARTS, k=random.randrange(12))) + b"\r\n.\r\n"
    found = []
    for longest in (3, 50, 1000, len(text)):
        reader, position = DirectiveReader(), 0
        while position < len(text):
            size = random.randint(1, longest)
            reader.feed(text[position : position + size])
            position += size
        found.append(reader.directives())
    assert found == [found[0]] * len(found)
    if not any(len(line) > MAX_FIELD for line in text.splitlines()):
        assert found[0] == parse_directives(fields(text))


def test_field_that_is_longer_than_512_octets_is_ignored() -> None:
    reader = DirectiveReader()
    for _ in range(100):
        reader.feed(b"X-Blackhole-Delay: 1,\r\n" + b" \r\n" * 500 + b" " * 400 + b"x" * 200 + b"2\r\n")
    reader.feed(b"X-Blackhole-Mode: bounce\r\n\r\n")
    assert reader.directives() == Directives()
    whole = b"X-Blackhole-Delay: 1," + b" " * MAX_FIELD + b"2"
    assert parse_directives([whole, b"X-Blackhole-Mode: bounce"]) == Directives("bounce")


def test_header_section_of_64_kib_takes_less_than_two_kib_of_a_session() -> None:
    engine = SMTPEngine(ListenerConfig("mx.test", message_directives=True), Random(1))
    sessions = [engine.session() for _ in range(50)]
    for session in sessions:
        session.greet()
        session.receive(b"MAIL FROM:<ann@example.com>\r\n")
        session.receive(b"RCPT TO:<bob@example.com>\r\n")
        session.receive(b"DATA\r\n")
        session.receive(b"X-A: b\r\n")
    tracemalloc.start()
    try:
        for session in sessions:
            for piece in (
                b"X-Blackhole-Delay: 1\r\n",
                b"X-B: " + b"y" * 5000,
                b"\r\nX-Blackhole-Delay: 2\r\n",
            ):
                session.receive(piece)
            for _ in range(MAX_HEADER // 2048 - 4):
                session.receive(b"X-Filler: " + b"z" * 2036 + b"\r\n")
            session.receive(b"X-Blackhole-Mode: " + b" " * 500)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / len(sessions) < 2048
