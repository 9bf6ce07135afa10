"""The server's side of HTTPS: a stream whose client may send garbage at any time, or plain HTTP."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

from tornado.iostream import SSLIOStream

PLAIN_HTTP: Final = "HTTP_REQUEST"
"""The reason that OpenSSL gives if a client begins with a request in place of a handshake."""

_ERROR: Final = b'{"error": "The dashboard speaks HTTPS here: use https:// in place of http://."}\n'

PLAIN_HTTP_RESPONSE: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_ERROR), _ERROR)
)


class TLSStream(SSLIOStream):
    """A stream under TLS, of a connection that was accepted.

    Tornado logs a traceback if a client sends what is no TLS after the handshake. Here that is the end of the
    connection, as if the client had reset it.
    """

    @classmethod
    def accept(cls, plain: socket.socket, context: ssl.SSLContext, **options: Any) -> TLSStream | None:
        """Return the stream of a connection, the handshake of which begins; None if the client is gone."""
        try:
            secure = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except OSError:  # Python looks whether the client is there still
            plain.close()
            return None
        return cls(secure, **options)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        try:
            return super().read_from_fd(buf)
        except ssl.SSLError as error:
            raise ConnectionResetError(errno.ECONNRESET, str(error)) from None

    def write_to_fd(self, data: memoryview) -> int:
        try:
            return super().write_to_fd(data)
        except ssl.SSLError as error:
            raise ConnectionResetError(errno.ECONNRESET, str(error)) from None

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, ssl.SSLError) and exc_info.reason == PLAIN_HTTP and not self.closed():
            descriptor = self.socket.fileno()
            with suppress(OSError):  # unread input would have the kernel reset the connection
                os.read(descriptor, self.read_chunk_size)
                os.write(descriptor, PLAIN_HTTP_RESPONSE)
        super().close(exc_info)
