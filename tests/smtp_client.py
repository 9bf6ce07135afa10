"""An SMTP client on a plain socket, for tests that send what smtplib would not send.

with SMTPClient(program.address) as client:
    assert client.command("EHLO client.test").startswith("250")
    client.send(b"MAIL FROM:<ann@example.com>\\r\\nRCPT TO:<bob")
    client.reset_on_close()
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from typing import Self

Address = tuple[str, int]

TIMEOUT = 30.0
"""Seconds that a client waits for the server."""


class UnexpectedReply(Exception):
    """The server answered with another reply than a delivery needs."""


class SMTPClient:
    """A connection to a server, from which the greeting was read unless `read_greeting` is false."""

    def __init__(
        self, address: Address, *, read_greeting: bool = True, timeout: float = TIMEOUT, source: str = ""
    ) -> None:
        """Connect, from the address `source` of this machine if it is given."""
        own = (source, 0) if source else None
        self.socket: socket.socket = socket.create_connection(address, timeout, own)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self.greeting = ""
        if read_greeting:
            try:
                self.greeting = self.read_reply()
            except BaseException:
                self.socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send these octets as they are."""
        self.socket.sendall(data)

    def read_reply(self) -> str:
        """Return the last line of the next reply, or "" if the server has closed the connection."""
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                if line[3:4] != b"-":
                    return line.decode().rstrip()
                continue
            data = self.socket.recv(65536)
            if not data:
                return ""
            self._unread += data

    def read_to_end(self) -> bytes:
        """Return all octets until the server closes or resets the connection."""
        return self._unread + read_until_closed(self.socket, allow_tls_errors=True)

    def command(self, line: str) -> str:
        """Send a command line and return the last line of its reply."""
        self.send(f"{line}\r\n".encode())
        return self.read_reply()

    def command_code(self, line: str) -> str:
        """Send a command line and return the code of its reply."""
        return self.command(line)[:3]

    def start_data(self) -> None:
        """Send DATA and read the 354 reply. Raises UnexpectedReply."""
        self.send(b"DATA\r\n")
        self._expect("354")

    def end_data(self) -> str:
        """End the message and return the reply."""
        self.send(b".\r\n")
        return self.read_reply()

    def send_message(self, body: bytes = b"Subject: hello\r\n\r\nhello\r\n") -> str:
        """Send a message to one recipient and return the reply to its end.

        Raises UnexpectedReply if MAIL, RCPT or DATA is refused.
        """
        self.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n")
        for code in ("250", "250", "354"):
            self._expect(code)
        self.send(body)
        return self.end_data()

    def starttls(self) -> None:
        """Send STARTTLS and perform the handshake without verifying the certificate."""
        self.send(b"STARTTLS\r\n")
        self._expect("220")
        self.start_tls()

    def start_tls(self) -> None:
        """Perform a TLS handshake without verifying the certificate."""
        self.socket = unverified_tls().wrap_socket(self.socket)

    def reset_on_close(self) -> None:
        """Make the close of this client a reset."""
        reset_on_close(self.socket)

    def _expect(self, code: str) -> None:
        line = self.read_reply()
        if not line.startswith(code):
            raise UnexpectedReply(f"expected {code}, got {line!r}")


def read_until_closed(connection: socket.socket, *, allow_tls_errors: bool = False) -> bytes:
    """Return all octets until the server closes or resets the connection.

    With `allow_tls_errors` an error of TLS, such as an end without a close_notify alert, ends it too.
    """
    received = b""
    with suppress(ConnectionResetError, *((ssl.SSLError,) if allow_tls_errors else ())):
        while data := connection.recv(65536):
            received += data
    return received


def reset_on_close(connection: socket.socket) -> None:
    """Make close() reset the connection, which leaves no TIME-WAIT state in the kernel."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def unverified_tls() -> ssl.SSLContext:
    """Return the context of a client that accepts every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello() -> bytes:
    """Return the octets with which a client begins a TLS handshake."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        unverified_tls().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def deliver(address: Address, timeout: float = TIMEOUT) -> None:
    """Deliver a message over a connection of its own. Raises OSError or UnexpectedReply."""
    with SMTPClient(address, timeout=timeout) as client:
        for reply, code in ((client.greeting, "220"), (client.send_message(), "250")):
            if not reply.startswith(code):
                raise UnexpectedReply(f"expected {code}, got {reply!r}")
        client.command("QUIT")
