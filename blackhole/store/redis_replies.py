"""The parser of what Redis replies, with a limit on everything that a reply announces.

A store is a program on another machine: what it sends is input like any other. The parsers of the package
`redis` reserve as much memory as a reply asks for. This one takes no more than an answer of the script has.
"""

from __future__ import annotations

from asyncio import IncompleteReadError, LimitOverrunError, StreamReader
from typing import Any, Final

MAX_STRING_OCTETS: Final = 4096
"""Octets of a string, or of the text of an error. The longest that is expected is the secret."""

MAX_ELEMENTS: Final = 1024
"""Elements of an array: more than a batch has requests."""

MAX_REPLY_OCTETS: Final = 1 << 17
"""Octets of a reply: strings, and ELEMENT_OCTETS for each element of an array."""

ELEMENT_OCTETS: Final = 64
"""Octets of memory that an element of an array takes beside those of its string."""

MAX_SECRET_OCTETS: Final = 64
"""Octets of a key of BLAKE2b (RFC 7693)."""

MAX_DIGITS: Final = 19
"""Digits of an integer of 64 bits."""

RedisReply = str | bytes | int | None | list[Any] | Exception


class InvalidReply(Exception):
    """What was received is no reply, or larger than allowed, or not what was asked for."""


class ReplyParser:
    """A parser of the protocol RESP2, as `redis.asyncio.Connection` uses it.

    It takes simple strings (str), errors, integers, strings (bytes), null (None), and arrays of all these but
    arrays. A subclass may have other limits.
    """

    max_string = MAX_STRING_OCTETS
    max_elements = MAX_ELEMENTS
    max_octets = MAX_REPLY_OCTETS

    def __init__(self, socket_read_size: int) -> None:
        self._stream: StreamReader | None = None
        self._left = 0
        """Octets that the rest of the reply may have."""

    def on_connect(self, connection: Any) -> None:
        """Read from a connection that was opened."""
        self._stream = connection._reader

    def on_disconnect(self) -> None:
        """Read no more."""
        self._stream = None

    async def can_read(self) -> bool:
        """Return whether the connection is not usable: nothing is read between two commands."""
        return self._stream is None or self._stream.at_eof()

    async def read_response(self, disable_decoding: bool = False) -> RedisReply:
        """Return the next reply; a redis.ResponseError for the reply that is an error.

        Raises InvalidReply, and ConnectionError at the end of the connection.
        """
        if self._stream is None:
            raise ConnectionError("the connection is closed")
        self._left = self.max_octets
        try:
            return await self._read(self._stream, array_allowed=True)
        except IncompleteReadError:
            raise ConnectionError("the server closed the connection") from None
        except LimitOverrunError:
            raise InvalidReply("a line of the reply is too long") from None

    async def _read(self, stream: StreamReader, array_allowed: bool) -> RedisReply:
        line = (await stream.readuntil(b"\r\n"))[:-2]
        kind, text = line[:1], line[1:]
        if len(text) > MAX_STRING_OCTETS:
            raise InvalidReply(f"a line of {len(text)} octets, expected at most {MAX_STRING_OCTETS}")
        if kind == b"+":
            return text.decode(errors="replace")
        if kind == b"-":
            return _error(text.decode(errors="replace"))
        if kind == b":":
            return _number(text)
        if kind == b"$":
            return await self._read_string(stream, _number(text))
        if kind == b"*" and array_allowed:
            return await self._read_array(stream, _number(text))
        raise InvalidReply(f"unexpected reply {bytes(line[:40])!r}")

    async def _read_string(self, stream: StreamReader, size: int) -> bytes | None:
        if size == -1:
            return None
        if not 0 <= size <= self.max_string:
            raise InvalidReply(f"a string of {size} octets, expected at most {self.max_string}")
        self._spend(size)
        octets = await stream.readexactly(size + 2)
        if not octets.endswith(b"\r\n"):
            raise InvalidReply("a string is longer than announced")
        return octets[:-2]

    async def _read_array(self, stream: StreamReader, size: int) -> list[RedisReply] | None:
        if size == -1:
            return None
        if not 0 <= size <= self.max_elements:
            raise InvalidReply(f"an array of {size} elements, expected at most {self.max_elements}")
        self._spend(size * ELEMENT_OCTETS)
        return [await self._read(stream, array_allowed=False) for _ in range(size)]

    def _spend(self, octets: int) -> None:
        """Take octets from those that the reply may have. Raises InvalidReply if there are too few left."""
        self._left -= octets
        if self._left < 0:
            raise InvalidReply(f"a reply of more than {self.max_octets} octets")


def _error(text: str) -> Exception:
    """Return the redis.ResponseError for an error reply. Raises an error that ends the connection."""
    from redis import ResponseError
    from redis._parsers import BaseParser

    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    if isinstance(error, ResponseError):
        return error
    raise error


def checked_answers(reply: object, count: int) -> list[Any]:
    """Return the answers of a batch of `count` requests. Raises InvalidReply for any other reply."""
    if not isinstance(reply, list) or len(reply) != count:
        raise InvalidReply(f"expected {count} answers, not {_shown(reply)}")
    return reply


def checked_answer(answer: object) -> int:
    """Return an answer that is a number. Raises InvalidReply for another one."""
    if not isinstance(answer, int) or answer < 0:
        raise InvalidReply(f"expected a number for an answer, not {_shown(answer)}")
    return answer


def checked_counts(answer: object, count: int) -> tuple[int, ...]:
    """Return an answer that is `count` numbers. Raises InvalidReply for another one."""
    words = answer.split() if isinstance(answer, bytes) else []
    if len(words) != count or not all(word.isdigit() and len(word) <= MAX_DIGITS for word in words):
        raise InvalidReply(f"expected {count} numbers for an answer, not {_shown(answer)}")
    return tuple(map(int, words))


def checked_secret(secret: bytes) -> bytes:
    """Return a secret that keys can be hashed with. Raises InvalidReply for another one."""
    if not 0 < len(secret) <= MAX_SECRET_OCTETS:
        raise InvalidReply(f"a secret of {len(secret)} octets, expected 1 to {MAX_SECRET_OCTETS}")
    return secret


def _shown(reply: object) -> str:
    """Return what a log line shows of a reply."""
    return f"{len(reply)} answers" if isinstance(reply, list) else repr(reply)[:40]


def _number(text: bytes) -> int:
    """Return a decimal number of at most 64 bits."""
    digits = text.removeprefix(b"-")
    if not (digits.isdigit() and len(digits) <= MAX_DIGITS):
        raise InvalidReply(f"expected a number, not {bytes(text[:40])!r}")
    return int(text)
