"""The offer: the extensions that a client knows of, from the reply to its last EHLO as it was sent.

Sources: RFC 5321 4.1.1.1 (EHLO) and the RFC of each extension, as IANA lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

UNLIMITED_OCTETS: Final = 1 << 62
"""More octets than any message has."""

BASIC_VERBS: Final = frozenset(
    (
        b"HELO",
        b"EHLO",
        b"LHLO",
        b"MAIL",
        b"RCPT",
        b"DATA",
        b"RSET",
        b"NOOP",
        b"VRFY",
        b"EXPN",
        b"HELP",
        b"QUIT",
    )
)
"""Verbs that need no offer (RFC 5321 4.5.1 and 3.5, RFC 2033 4.1)."""

VERB_KEYWORDS: Final[Mapping[bytes, bytes]] = {b"BDAT": b"CHUNKING"}
"""Verb -> the keyword that offers it, where it has another name."""

PARAMETER_KEYWORDS: Final[Mapping[bytes, frozenset[bytes]]] = {
    b"SIZE": frozenset((b"SIZE",)),
    b"BODY": frozenset((b"8BITMIME", b"BINARYMIME")),
    b"SMTPUTF8": frozenset((b"SMTPUTF8",)),
    **dict.fromkeys((b"RET", b"ENVID", b"NOTIFY", b"ORCPT"), frozenset((b"DSN",))),
    b"AUTH": frozenset((b"AUTH",)),
    b"BY": frozenset((b"DELIVERBY",)),
    **dict.fromkeys((b"HOLDFOR", b"HOLDUNTIL"), frozenset((b"FUTURERELEASE",))),
    b"MT-PRIORITY": frozenset((b"MT-PRIORITY",)),
    b"MTRK": frozenset((b"MTRK",)),
    b"REQUIRETLS": frozenset((b"REQUIRETLS",)),
    b"RRVS": frozenset((b"RRVS",)),
    b"SOLICIT": frozenset((b"NO-SOLICITING",)),
    b"SUBMITTER": frozenset((b"SUBMITTER",)),
    b"TRANSID": frozenset((b"CHECKPOINT",)),
    **dict.fromkeys((b"CONPERM", b"CONNEG"), frozenset((b"CONPERM", b"CONNEG"))),
}
"""Parameter of MAIL or RCPT -> the keywords that offer it."""

RCPT_PARAMETERS: Final = frozenset((b"NOTIFY", b"ORCPT", b"RRVS", b"CONNEG"))
"""Those of RCPT; all others are parameters of MAIL."""

WITHOUT_OTHER_PARAMETERS: Final = frozenset(
    (
        *(
            b"PIPELINING",
            b"ENHANCEDSTATUSCODES",
            b"VRFY",
            b"EXPN",
            b"HELP",
            b"STARTTLS",
            b"CHUNKING",
            b"ETRN",
        ),
        *(b"XCLIENT", b"XFORWARD"),
    )
).union(*PARAMETER_KEYWORDS.values())
"""Keywords whose parameters are all known. Those of any other extension are not."""


BINARYMIME: Final = b"BODY=BINARYMIME"
"""A value of BODY that has a keyword of its own (RFC 3030 3)."""


class Offer:
    """What one reply to EHLO offered. It never changes.

    >>> offer = Offer(["PIPELINING", "SIZE 1000", "AUTH PLAIN LOGIN"])
    >>> offer.pipelining, offer.max_octets, offer.has_verb(b"AUTH"), offer.has_verb(b"STARTTLS")
    (True, 1000, True, False)
    >>> offer.has_parameter(b"SIZE"), offer.has_parameter(b"SIZE", True), offer.has_mechanism(b"LOGIN")
    (True, False, True)
    """

    __slots__ = ("_has_unknown_parameters", "_keywords", "max_octets", "pipelining")

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Read the lines behind the first one of a reply to EHLO."""
        self._keywords: Final[dict[bytes, tuple[bytes, ...]]] = {}
        for line in lines:
            # "AUTH=LOGIN" was written before RFC 4954 by clients and servers alike.
            keyword, *arguments = line.upper().replace("AUTH=", "AUTH ", 1).encode().split() or [b""]
            self._keywords[keyword] = self._keywords.get(keyword, ()) + tuple(arguments)
        self._has_unknown_parameters: Final = not WITHOUT_OTHER_PARAMETERS.issuperset(self._keywords)
        self.pipelining: Final = b"PIPELINING" in self._keywords
        """Commands may be sent before the replies to those before them (RFC 2920)."""
        limit = b"".join(self._keywords.get(b"SIZE", ())[:1])
        self.max_octets: Final = (int(limit) if limit.isdigit() else 0) or UNLIMITED_OCTETS
        """Octets of the largest message that is taken (RFC 1870 4), or more than any message has."""

    def has_keyword(self, keyword: str) -> bool:
        """Return whether an extension is offered, by its keyword in upper case."""
        return keyword.encode() in self._keywords

    def has_verb(self, verb: bytes) -> bool:
        """Return whether a client may use a verb, in upper case."""
        return verb in BASIC_VERBS or VERB_KEYWORDS.get(verb, verb) in self._keywords

    def has_parameter(self, parameter: bytes, of_rcpt: bool = False) -> bool:
        """Return whether a client may use a parameter of MAIL, or of RCPT, written as NAME or NAME=value."""
        parameter = parameter.upper()
        if parameter == BINARYMIME:
            return b"BINARYMIME" in self._keywords
        name = parameter.partition(b"=")[0]
        keywords = PARAMETER_KEYWORDS.get(name)
        if keywords is None:
            return self._has_unknown_parameters
        return of_rcpt is (name in RCPT_PARAMETERS) and not keywords.isdisjoint(self._keywords)

    def has_mechanism(self, name: bytes) -> bool:
        """Return whether a client may use a SASL mechanism, in upper case."""
        return name in self._keywords.get(b"AUTH", ())


NO_OFFER: Final = Offer()
"""What is offered before EHLO, and after HELO."""
