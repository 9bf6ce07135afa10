"""Content-Type, Content-Transfer-Encoding and Content-Disposition of a part (RFC 2045 5 and 6, RFC 2183)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from blackhole.messages.field_syntax import MAX_JUDGED_OCTETS, without_comments

_TOKEN: Final = rb"[!#$%&'*+.0-9A-Z^_`a-z{|}~-]++"

MEDIA_TYPE: Final = re.compile(rb"(" + _TOKEN + rb")[ \t]*+/[ \t]*+(" + _TOKEN + rb")[ \t]*+").match

TYPE_PARAMETER: Final = re.compile(
    rb";[ \t]*+(" + _TOKEN + rb")[ \t]*+=[ \t]*+(?:(" + _TOKEN + rb')|"((?:[^"\\]|\\.)*+)")[ \t]*+', re.DOTALL
).match

ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)

ENCODINGS: Final = (b"7bit", b"8bit", b"binary", b"quoted-printable", b"base64")

IDENTITY_ENCODINGS: Final = ENCODINGS[:3]
"""Those that change nothing, which a part that has parts must have (RFC 2045 6.4)."""

EIGHTBIT_ENCODINGS: Final = (b"8bit", b"binary")
"""Those of a part that may have octets above 127."""


class ContentType(NamedTuple):
    """A media type and its parameters, by name in lower case."""

    media_type: bytes
    """As "text/plain", in lower case."""
    parameters: Mapping[bytes, bytes]

    @property
    def is_multipart(self) -> bool:
        """Whether the part consists of parts."""
        return self.media_type.startswith(b"multipart/")


PLAIN_TEXT: Final = ContentType(b"text/plain", {})
"""That of a part that says nothing (RFC 2045 5.2)."""


def parse_content_type(value: bytes) -> ContentType | None:
    """Return the media type in a Content-Type field; None if it is not well formed.

    A semicolon at the end is overlooked, as every program does.

    >>> parse_content_type(b'multipart/mixed; boundary="a b"')
    ContentType(media_type=b'multipart/mixed', parameters={b'boundary': b'a b'})
    """
    text = without_comments(value) if len(value) <= MAX_JUDGED_OCTETS else value
    begin = MEDIA_TYPE(text) if text is not None else None
    if text is None or begin is None:
        return None
    parameters: dict[bytes, bytes] = {}
    text, position = text.rstrip(b"; \t"), begin.end()
    while position < len(text):
        found = TYPE_PARAMETER(text, position)
        if found is None:
            return None
        parameters.setdefault(found[1].lower(), found[2] or ESCAPED.sub(rb"\1", found[3] or b""))
        position = found.end()
    return ContentType(b"/".join(begin.groups()).lower(), parameters)


def encoding_fault(encoding: bytes, content_type: ContentType) -> str:
    """Return what is wrong with a Content-Transfer-Encoding, in lower case; an empty text if nothing is."""
    if encoding not in ENCODINGS and not encoding.startswith(b"x-"):
        return "the Content-Transfer-Encoding is unknown"
    encloses = content_type.is_multipart or content_type.media_type == b"message/rfc822"
    if encloses and encoding not in IDENTITY_ENCODINGS:
        return "a part that has parts is encoded as a whole"
    return ""
