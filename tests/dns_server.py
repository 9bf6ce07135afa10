"""A real DNS server for tests: dnsmasq, on a port of its own, with the TXT records that it is given.

    with DNSServer({"s._domainkey.a.test": "v=DKIM1; p=..."}) as server:
        ...  # ask server.address

Mark tests that use it with `requires_dnsmasq`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.external_programs import path_of, requires
from tests.program import free_port, wait_for

requires_dnsmasq = requires("dnsmasq")


class DNSServer:
    """A server that knows these records and nothing else, and writes each query into a file."""

    def __init__(self, records: Mapping[str, str], log: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = log
        log.write_text("")
        self._command = [
            *(
                path_of("dnsmasq"),
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
            ),
            *("--bind-interfaces", "--listen-address=127.0.0.1", f"--port={self.port}", "--pid-file"),
            *("--local=/test/", "--log-queries", f"--log-facility={log}", "--user="),
            *(f"--txt-record={name},{_strings(text)}" for name, text in records.items()),
        ]

    def queries(self, name: str) -> int:
        """Return how often a name was asked for."""
        return self._log.read_text().count(f"query[TXT] {name} ")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(self._answers, "dnsmasq answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"dnsmasq has ended: {self._log.read_text()}"
        query = dns.message.make_query("ready.test.", "TXT")
        with suppress(dns.exception.DNSException, OSError):
            dns.query.udp(query, "127.0.0.1", port=self.port, timeout=0.2)
            return True
        return False


def _strings(text: str) -> str:
    """Return a text as the character-strings of a TXT record (RFC 1035 3.3): of up to 255 octets each.

    The text may have no comma.
    """
    return ",".join(text[start : start + 255] for start in range(0, len(text), 255))
