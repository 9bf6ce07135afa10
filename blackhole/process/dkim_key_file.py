"""The file with public keys for DKIM: a line for each, as domains publish them in the DNS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from blackhole import input_file
from blackhole.settings import OperatorError

KEY_LINE: Final = re.compile(
    rb"\s*([a-z0-9_.-]+\._domainkey\.[a-z0-9_.-]+?)\.?[ \t]+"
    rb"(?:[0-9]+[ \t]+)?(?:IN[ \t]+)?(?:TXT[ \t]+)?(\S.*?)\s*",
    re.IGNORECASE,
).fullmatch
"""Matches a name and a record, with what a zone file has between them."""

QUOTED_TEXT: Final = re.compile(rb'"([^"]*)"').findall


def load_records(path: str) -> Mapping[bytes, bytes]:
    """Return the record of each name, in lower case.

    Blank lines and lines that begin with # or ; are skipped. Raises OperatorError.
    """
    try:
        octets = input_file.read(path).octets
    except OSError as error:
        raise OperatorError(f"dkim_keys {path}: {error.strerror}") from None
    records: dict[bytes, bytes] = {}
    for number, line in enumerate(octets.split(b"\n"), 1):
        if not line.strip() or line.lstrip()[:1] in (b"#", b";"):
            continue
        found = KEY_LINE(line)
        if found is None:
            raise OperatorError(
                f"dkim_keys {path}:{number}: expected a name and its record:"
                " s._domainkey.example.com v=DKIM1; k=rsa; p=MIG..."
            )
        name, record = found[1].lower(), found[2]
        if name in records:
            raise OperatorError(f"dkim_keys {path}:{number}: the name has an earlier line")
        records[name] = b"".join(QUOTED_TEXT(record)) if record.startswith(b'"') else record
    if not records:
        raise OperatorError(f"dkim_keys {path}: it contains no key")
    return records
