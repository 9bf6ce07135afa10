"""The addresses of MAIL and RCPT: what is correct, and how long it takes to read what is not."""

from __future__ import annotations

import time

import pytest

from blackhole.smtp.paths import is_mailbox, read_path

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("text", "address", "parameters"),
    [
        (b":bob@example.com AUTH=<>", b"bob@example.com", b"AUTH=<>"),
        (b":bob AUTH=<>", b"bob", b"AUTH=<>"),
        (b":Bob <bob@example.com> SIZE=1", b"bob@example.com", b"SIZE=1"),
        (b':"<a>" <bob@example.com>', b"bob@example.com", b""),
        (b':<"a (b) > c"@x (d)>', b'"a (b) > c"@x', b""),
        (b':<a"b@x>', b'a"b@x', b""),
        (b':a"b@x', b'a"b@x', b""),
        (b":<@relay.test:bob@example.com>", b"bob@example.com", b""),
        (b" <>", b"", b""),
    ],
)
def test_address_is_found_in_a_misspelt_path(text: bytes, address: bytes, parameters: bytes) -> None:
    path = read_path(text, ())
    assert path is not None
    assert path[:2] == (address, parameters)


@pytest.mark.parametrize("text", [b":<bob@example.com", b":<bob@example.com>SIZE=1"])
def test_path_without_an_end_is_none(text: bytes) -> None:
    assert read_path(text, ()) is None


@pytest.mark.parametrize("octet", [*range(0x20), 0x7F])
def test_control_characters_are_not_correct_anywhere(octet: int) -> None:
    for address in (b"a%cb@x", b'"a%cb"@x', b'"a\\%cb"@x', b"a@x%cy", b"a@[192.0.2.1%c]"):
        assert not is_mailbox(address % octet)


@pytest.mark.parametrize(
    "piece", [b'"', b'\\"', b'"\\', b"<", b"(", b"()", b"( ", b"a ", b"a.", b"a-", b"@a,", b">"]
)
def test_longest_line_of_any_kind_is_read_in_time(piece: bytes) -> None:
    line = piece * (2048 // len(piece))
    start = time.perf_counter()
    for before in (b":", b":<", b':"', b":(", b":<@a,"):
        read_path(before + line, ())
        read_path(before + line + b">x", ())
    assert time.perf_counter() - start < 0.25
