"""A connection whose session records its transactions."""

from __future__ import annotations

from ssl import SSLSocket
from typing import cast

from blackhole.net.connection import Connection
from blackhole.smtp.recorded_session import RecordedSession
from blackhole.smtp.replies import Reply
from blackhole.tls_menu import USUAL_TLS


class RecordedConnection(Connection):
    """A connection that tells its session what only the connection knows."""

    __slots__ = ()

    async def start_tls(self) -> None:
        await super().start_tls()
        socket = cast(SSLSocket, self.stream.socket)
        cipher = socket.cipher()
        about = [f"{socket.version() or 'TLS'} {cipher[0] if cipher else ''}".rstrip()]
        about += [str(self.tls)] if self.tls != USUAL_TLS else []
        identity = self.session.client_identity
        about += [f"client {identity.decode(errors='replace')}"] if identity else []
        self._recorded.tls = ", ".join(about)

    def try_send(self, reply: Reply) -> None:
        super().try_send(reply)
        self._recorded.closed_with(reply)

    @property
    def _recorded(self) -> RecordedSession:
        session = self.session
        assert isinstance(session, RecordedSession)
        return session
