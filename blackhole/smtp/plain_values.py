"""Reads numbers, octets and sequences of them that `marshal` has written, from memory that is not trusted.

`marshal.loads` may crash on octets that others could have written; this reads nothing but plain values.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct, error
from typing import Any, Final

INT32: Final = Struct("<i")
INT64: Final = Struct("<q")
DOUBLE: Final = Struct("<d")
DIGIT: Final = Struct("<H")
"""A digit of a large number: 15 bits."""

MAX_INT_DIGITS: Final = 5
MAX_DEPTH: Final = 4
"""Sequences within sequences."""

ValueAndEnd = tuple[Any, int]
"""A value, and the position behind it."""


def read_value(octets: bytes) -> Any:
    """Return the value that the octets are. Raises ValueError for anything that is no plain value.

    >>> from marshal import dumps
    >>> read_value(dumps((1, 2.5, b"three", [1 << 40]), 2))
    (1, 2.5, b'three', [1099511627776])
    """
    try:
        value, position = _read(octets, 0, MAX_DEPTH)
    except (error, IndexError):
        raise ValueError("cut off") from None
    if position != len(octets):
        raise ValueError("too long")
    return value


def _read(octets: bytes, position: int, depth: int) -> ValueAndEnd:
    reader = READERS.get(octets[position])
    if reader is None or depth < 0:
        raise ValueError("no plain value")
    return reader(octets, position + 1, depth)


def _number(form: Struct) -> Callable[[bytes, int, int], ValueAndEnd]:
    def read(octets: bytes, position: int, depth: int) -> ValueAndEnd:
        return form.unpack_from(octets, position)[0], position + form.size

    return read


def _large_number(octets: bytes, position: int, depth: int) -> ValueAndEnd:
    (count,) = INT32.unpack_from(octets, position)
    position += INT32.size
    if not 0 <= count <= MAX_INT_DIGITS:
        raise ValueError("a number that is too large")
    value = 0
    for place in range(count):
        (digit,) = DIGIT.unpack_from(octets, position + DIGIT.size * place)
        value |= digit << 15 * place
    return value, position + DIGIT.size * count


def _length(octets: bytes, position: int) -> ValueAndEnd:
    (length,) = INT32.unpack_from(octets, position)
    position += INT32.size
    if not 0 <= length <= len(octets) - position:
        raise ValueError("cut off")
    return length, position


def _octets(octets: bytes, position: int, depth: int) -> ValueAndEnd:
    length, position = _length(octets, position)
    return octets[position : position + length], position + length


def _tuple(octets: bytes, position: int, depth: int) -> ValueAndEnd:
    values, position = _list(octets, position, depth)
    return tuple(values), position


def _list(octets: bytes, position: int, depth: int) -> ValueAndEnd:
    length, position = _length(octets, position)
    values = []
    for _ in range(length):
        value, position = _read(octets, position, depth - 1)
        values.append(value)
    return values, position


READERS: Final[dict[int, Callable[[bytes, int, int], ValueAndEnd]]] = {
    ord("i"): _number(INT32),
    ord("I"): _number(INT64),
    ord("l"): _large_number,
    ord("g"): _number(DOUBLE),
    ord("s"): _octets,
    ord("("): _tuple,
    ord("["): _list,
}
"""Types of the format -> their readers."""
