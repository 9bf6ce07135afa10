"""Lines of the log about a connection: all have the client's address and the id of the connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blackhole.metrics.layout import LIMITS_START
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.settings import CLIENT_LIMITS


def log_connection_event(
    connection: ConnectionInterface, write: Callable[..., None], event: str, reason: str = ""
) -> None:
    """Log an event of a connection through a method of a logger, in the form of the lines of --debug."""
    client, number = connection.peer or "unknown", f"{connection.session.connection_id:010X}"
    fields = {"client": client, "connection": number, "reason": reason or None}
    text = f"{event}: {reason}" if reason else event
    write("%s connection [%s] %s", client, number, text, extra={"event": event, "fields": fields})


def log_limits(connection: ConnectionInterface, events: Iterable[int]) -> None:
    """Log the limits among the events of a connection, unless its client was told of a moment ago."""
    context = connection.context
    for event in events:
        if event >= LIMITS_START and context.limit_log is not None:
            limit = CLIENT_LIMITS[event - LIMITS_START]
            context.limit_log.tell(
                connection.peer,
                f"{connection.session.connection_id:010X}",
                str(context.listener),
                limit,
                getattr(context.settings, limit),
            )
