"""TXT records of one DNS server, by `dnspython`."""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

from blackhole.settings import DNSServer, OperatorError

MAX_ANSWER: Final = 1232
"""Octets of an answer that is read: what passes networks in one datagram. A longer one is not asked for again
over TCP, so that no domain can hand over 64 KiB. RSA keys of up to 4096 bits fit."""

QUERY_TIMEOUT: Final = 5.0
"""Seconds to wait for an answer."""


class DNSLookupError(Exception):
    """The DNS server gave no answer that says which records there are."""


class TextRecords(NamedTuple):
    """The TXT records with a name, and for how many seconds they are valid. None: the name has none."""

    texts: tuple[bytes, ...]
    seconds: float


class DNSClient:
    """Asks one DNS server. It is made before the fork, and used by an event loop.

    client = DNSClient(DNSServer("127.0.0.1"))
    await client.text_records(b"s._domainkey.example.com")
    """

    def __init__(self, server: DNSServer) -> None:
        """Import all that a query needs: after privileges are dropped, files may be unreadable.

        Raises OperatorError if the package `dnspython` is not installed.
        """
        try:
            import dns.asyncbackend
            import dns.asyncquery
            import dns.rdata
        except ImportError:
            raise OperatorError(
                "dkim_resolver needs a package: pip install 'blackhole-smtp[dkim]'", os.EX_CONFIG
            ) from None
        dns.rdata.load_all_types()  # type: ignore[no-untyped-call]
        self.server: Final = server
        self._backend: Final[Any] = dns.asyncbackend.get_backend("asyncio")

    async def text_records(self, name: bytes) -> TextRecords:
        """Return the TXT records with a name, whose aliases are followed.

        Raises ValueError for a name that cannot be in the DNS, and DNSLookupError.
        """
        import dns.asyncquery
        import dns.exception
        import dns.message
        import dns.rcode

        try:
            query = dns.message.make_query(f"{name.decode('ascii')}.", "TXT", use_edns=0, payload=MAX_ANSWER)
        except (UnicodeDecodeError, dns.exception.DNSException):
            raise ValueError("it is no name of the DNS") from None
        try:
            # Datagrams that do not belong to the query, which anyone may send, do not end the wait.
            answer = await dns.asyncquery.udp(
                query,
                self.server.host,
                QUERY_TIMEOUT,
                self.server.port,
                ignore_unexpected=True,
                ignore_errors=True,
                raise_on_truncation=True,
                backend=self._backend,
            )
            if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                raise DNSLookupError(f"the answer is {dns.rcode.to_text(answer.rcode())}")
            assert isinstance(answer, dns.message.QueryMessage)  # as that of a query is
            chain = answer.resolve_chaining()
        except dns.message.Truncated:
            raise DNSLookupError(f"the answer has more than {MAX_ANSWER} octets") from None
        except dns.exception.Timeout:
            raise DNSLookupError(f"no answer within {QUERY_TIMEOUT:g} s") from None
        except (dns.exception.DNSException, OSError) as error:
            raise DNSLookupError(str(error)) from None
        texts = (b"".join(record.strings) for record in chain.answer or ())
        return TextRecords(tuple(texts), float(chain.minimum_ttl))
