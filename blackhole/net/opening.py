"""The opening of a connection: what comes before the greeting, from a PROXY header to implicit TLS."""

from __future__ import annotations

import asyncio

from blackhole.addresses import to_bytes
from blackhole.net import proxy
from blackhole.net.accounting import count_rejection
from blackhole.net.admission import LIMIT_OF_REPLY
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.smtp.replies import TOO_MANY_TLS_HANDSHAKES, NextAction


async def prepare(connection: ConnectionInterface) -> bool:
    """Do what comes before the greeting. Return false for a client that is not to be greeted."""
    context = connection.context
    if context.proxy_parser is not None and not await read_proxy_header(connection):
        return False
    if context.admission is not None and not await check_admission(connection):
        return False
    if not context.listener.tls:
        return True
    session = connection.session
    session.check_implicit_tls()
    while session.next_action is NextAction.LOOKUP:
        session.resume_with_answer(await connection.wait(asyncio.shield(session.pending_lookup)))
    if session.next_action is not NextAction.READ:
        await connection.finish(session.next_action, b"")
        return False
    await connection.start_tls()
    return True


async def read_proxy_header(connection: ConnectionInterface) -> bool:
    """Learn the client's address from the proxy. Return false where there is no header to be trusted."""
    context = connection.context
    connection.closed_by_server = True
    if to_bytes(connection.peer) not in context.proxies:
        return False
    connection.deadline_override = context.settings.proxy_timeout
    source = proxy.SocketSource(connection.stream.socket)
    header = asyncio.ensure_future(proxy.read_header(source, context.proxy_parser))
    try:
        address = await connection.wait(header)
    except (OSError, ValueError) as error:
        context.proxy_errors.add(connection.peer, error)
        return False
    connection.closed_by_server, connection.deadline_override = False, None
    if address:
        connection.peer = address
        connection.session = context.engine.session(client=address)
    return True


async def check_admission(connection: ConnectionInterface) -> bool:
    """Apply the limits on clients. Return false for a client that was told to come another time."""
    context = connection.context
    assert context.admission is not None
    usage = connection.usage = context.admission.admit(connection.peer)
    if usage is None:
        return True
    if usage.shared is not None and usage.shared.is_pending:
        await connection.wait(asyncio.ensure_future(usage.shared.wait()))
    refusal = context.admission.refusal(usage)
    handshake_follows = context.listener.tls and not connection.session.secure
    if refusal is None and handshake_follows and not usage.meter("STARTTLS"):
        refusal = TOO_MANY_TLS_HANDSHAKES
    if refusal is None:
        connection.session.apply_limits(context.limited_engine, context.limits, usage.meter)
        return True
    connection.closed_by_server = True
    connection.session.record_limit(LIMIT_OF_REPLY[refusal])
    if not handshake_follows:
        connection.try_send(refusal)
        count_rejection(context.counters, refusal)
    return False
