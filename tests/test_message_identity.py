"""The identity of a message does not depend on how much of it is looked at first."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blackhole.rules import message_identity as module
from blackhole.rules.message_identity import message_identity

pytestmark = pytest.mark.pure

PIECES = st.sampled_from(
    (
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"Message-ID:",
        b"Message-Id: ",
        b"\r\nReceived: x\r\n",
        b"MIME",
        b"Resent-Message-Id: ",
        b"<1@a.example>",
        b"Subject: x",
        b".",
    )
)


@example(b"Subject: x\n\n\r\n", 12)
@given(st.lists(PIECES, max_size=14).map(b"".join), st.integers(0, 40))
def test_where_the_first_look_ends_makes_no_difference(message: bytes, octets: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "USUAL_HEADER", octets)
        found = message_identity(message)
        patch.setattr(module, "USUAL_HEADER", len(message))
        assert found == message_identity(message)


class NoMatch:
    """A search that finds no usual header section."""

    @staticmethod
    def match(text: bytes, start: int, end: int) -> None:
        return None


@example(b"X\nMessage-ID: <1@a.example>\r\n\n")
@example(b"R\rMessage-ID: <1@a.example>\r\nMessage-ID: <2@a.example>\r\n\r\n")
@given(st.lists(PIECES, max_size=14).map(b"".join))
def test_usual_header_section_is_identified_as_by_a_search(message: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = message_identity(message)
        patch.setattr(module, "USUAL_HEADER_SECTION", NoMatch.match)
        assert found == message_identity(message)
