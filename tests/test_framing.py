"""The end of a body: found in the same place however it is searched for."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blackhole.smtp.framing import END, FIRST_BLOCK, MAX_DOTS, SHORT_BODY, START, find, skip

pytestmark = pytest.mark.pure

PARTS = st.sampled_from(
    [
        (b"x" * 70 + b"\r\n", 40),
        (b"x", SHORT_BODY),
        (b"x", FIRST_BLOCK - 3),
        (b"x", FIRST_BLOCK),
        (b".", MAX_DOTS),
        (b"\r\n..", 3),
        (b"\r\n.\r", 1),
        (b"\n.\r\n", 1),
        (b"\r\n", 1),
        (END, 1),
    ]
)
DATA = st.lists(PARTS, max_size=12).map(lambda parts: b"".join(part * times for part, times in parts))


@example(b"x" * SHORT_BODY + b"xxxxxxxx." * (MAX_DOTS + 1) + END, 1)
@given(DATA, st.sampled_from((0, 1, 500)))
def test_end_is_found_where_a_plain_search_finds_it(data: bytes, start: int) -> None:
    assert find(data, start) == data.find(END, start)


@pytest.mark.parametrize("octets", range(FIRST_BLOCK - 8, FIRST_BLOCK + 8))
def test_end_is_found_at_the_border_of_a_block(octets: int) -> None:
    data = b"x." * MAX_DOTS + b"x" * octets + END + b"x" * SHORT_BODY
    assert find(data, 0) == data.index(END)


@given(DATA, st.lists(st.one_of(st.integers(1, 9), st.just(3000)), max_size=12))
def test_end_is_found_however_a_body_is_cut(data: bytes, sizes: list[int]) -> None:
    end = (START + data).find(END)
    position, tail = 0, START
    for size in [*sizes, len(data)]:
        piece = data[position : position + size]
        if not piece:
            break
        found, tail = skip(piece, 0, tail)
        if found >= 0:
            assert position + found == end + len(END) - len(START)
            return
        position += size
    assert end < 0
