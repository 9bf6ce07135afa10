"""What only a session knows, for conditions of rules: extensions in use, numbers, the version of TLS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from blackhole.rules.context import RuleContext
from blackhole.smtp.extensions import EXTENSIONS
from blackhole.smtp.state import GREETED, NO_PARAMETERS_SENT, SessionState

TLS_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
"""Versions of TLS by their names in Python, in their order."""

PARAMETER_EXTENSIONS: Final[Mapping[bytes, str]] = {
    name: row.keyword for row in reversed(EXTENSIONS) for name in (*row.mail, *row.rcpt)
}
"""Parameter of MAIL or RCPT -> the keyword of its extension; BODY is that of 8BITMIME."""

USABLE_EXTENSIONS: Final = tuple(
    row.keyword
    for row in EXTENSIONS
    if row.keyword in {*PARAMETER_EXTENSIONS.values(), "BINARYMIME", "CHUNKING", "STARTTLS"}
)
"""Keywords of the extensions whose use can be seen in a command."""


def _used_by(parameters: Mapping[bytes, bytes]) -> Iterator[str]:
    """Yield the keywords of the extensions that parameters belong to."""
    for name, value in parameters.items():
        binary = name == b"BODY" and value.upper() == b"BINARYMIME"
        yield "BINARYMIME" if binary else PARAMETER_EXTENSIONS.get(name, "")


def extensions_used(session: SessionState, phase: str, before: frozenset[str]) -> frozenset[str]:
    """Return the extensions that a transaction has used, after those `before` the command of a phase.

    The parameters of the command are taken from the session: the next command may have none.
    """
    if phase == "MAIL" or session.stage <= GREETED:
        before = frozenset()
    if phase in ("MAIL", "RCPT"):
        parameters, session.parameters = session.parameters, NO_PARAMETERS_SENT
        return before.union(_used_by(parameters))
    return before | {"CHUNKING"} if phase == "BDAT" else before


def read_session(context: RuleContext, session: SessionState, phase: str, used: frozenset[str]) -> None:
    """Update a context from a session; `used` are the extensions that the transaction has used."""
    if session.tls_started:
        used |= {"STARTTLS"}
    if session.authenticated:
        used |= {"AUTH"}
    context.extensions = used
    context.recipients = session.recipients + (phase == "RCPT")
    context.message = session.messages + 1
    context.tls_version = session.tls_version
