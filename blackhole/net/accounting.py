"""The accounting of connections: what their sessions recorded goes to the counters and to the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from blackhole.messages.message_checks import verify_awaiting
from blackhole.metrics.counters import CounterCells
from blackhole.metrics.layout import (
    CELL_INDEX,
    LIMITS_START,
    NUMBER_OF_EVENT,
    VIOLATING_CONNECTIONS_START,
    VIOLATION_NUMBERS,
    VIOLATIONS_START,
    EventCells,
)
from blackhole.net.connection_interface import ConnectionInterface
from blackhole.net.connection_log import log_limits
from blackhole.smtp.state import KEPT_VIOLATION_CONTEXT, ViolationContext
from blackhole.smtp.violations import IN_SIGNATURES

if TYPE_CHECKING:
    from blackhole.net.context import ListenerContext
    from blackhole.smtp.engine_tables import BoundCommand
    from blackhole.smtp.replies import Reply
    from blackhole.smtp.session import Session

NO_EVENT: Final = 0
"""The event of a reply that is not counted."""

EVENT_CELLS: Final = EventCells()

CLOSED_WITHOUT_COMMAND: Final = CELL_INDEX["closed_without_command"]


def count_replies(connection: ConnectionInterface, sent: bytes) -> None:
    """Count the replies that are sent next, and what else happened. `sent` is what was sent before them."""
    session = connection.session
    events = session.counted_events
    if session.single_event:
        events.append(session.single_event)
    session.single_event, session.counted_events = NO_EVENT, []
    _count(connection, events)
    if session.violation_contexts:
        _keep_evidence(session, connection.context, events, sent)


def count_disconnect(connection: ConnectionInterface, sent: bytes) -> None:
    """Count the violations since the last reply, and a client that left without QUIT."""
    session = connection.session
    if not (session.quit_received or connection.closed_by_server):
        if connection.received:
            violation = "hung-up-in-body" if session.in_message else "no-quit"
            session.record_violation(violation, ViolationContext("." if session.in_message else ""))
        else:
            connection.context.counters[CLOSED_WITHOUT_COMMAND] += 1
    count_violations(connection, sent)


def count_violations(connection: ConnectionInterface, sent: bytes) -> None:
    """Count all that happened but replies, which are not sent any more. `sent` is what was sent last."""
    session = connection.session
    events, session.counted_events = session.counted_events, []
    events = [event for event in events if event >= VIOLATIONS_START]
    _count(connection, events)
    if session.violation_contexts:
        _keep_evidence(session, connection.context, events, sent)


def count_late_verdicts(context: ListenerContext) -> None:
    """Count what is wrong with signatures whose keys have come since their messages ended.

    Their sessions may have ended too. Nothing is known of what a client was sent before.
    """
    inspection = context.engine.inspection
    waiting, inspection.awaiting = inspection.awaiting, []
    for message in waiting:
        session, signatures = message
        checked = verify_awaiting(signatures, session.engine.config.dkim_keys)
        if checked is None:
            inspection.awaiting.append(message)
        elif checked.is_verified:
            listener = session.listener
            events = [listener.content_inspections[IN_SIGNATURES]]
            events += (listener.sampled_violation_events[violation] for violation, _ in checked.faults)
            for event in events:
                context.counters[event] += 1
            session.sampled_violation_count += len(checked.faults)
            for violation, detail in checked.faults:
                session.keep_violation_context(violation, ViolationContext(".", detail=detail))
            _keep_evidence(session, context, events, b"")


def count_rejection(counters: CounterCells, reply: Reply) -> None:
    """Count a reply that a client gets in place of the greeting."""
    counters[EVENT_CELLS.reply("CONNECT", reply.code)] += 1


def _keep_evidence(session: Session, context: ListenerContext, events: list[int], sent: bytes) -> None:
    """Keep the evidence of violations among the events. `sent` is what the client was sent before."""
    evidence, commands = context.evidence, session.engine.commands
    for name, violation_context in session.violation_contexts.items():
        if violation_context is not KEPT_VIOLATION_CONTEXT:
            context.counters[VIOLATING_CONNECTIONS_START + VIOLATION_NUMBERS[name]] += 1
            session.violation_contexts[name] = KEPT_VIOLATION_CONTEXT
            if evidence is not None:
                phase = violation_context.phase or phase_of(violation_context.line, commands)
                evidence.add(name, violation_context._replace(phase=phase), sent)
    if evidence is not None:
        for number in set(map(NUMBER_OF_EVENT.get, events)):
            if number is not None:
                evidence.touch(number)


def _count(connection: ConnectionInterface, events: list[int]) -> None:
    """Add events to the counters, and log the limits among them."""
    counters = connection.context.counters
    for event in set(events):  # of a pipelined group most are the same
        counters[event] += events.count(event)
    if connection.usage is not None and events and max(events) >= LIMITS_START:
        log_limits(connection, events)


def phase_of(line: bytes, commands: Mapping[bytes, BoundCommand]) -> str:
    """Return the phase of a command line: "other" for an unknown verb, an empty text for an empty line."""
    verb = line.split(None, 1)[:1]
    command = commands.get(verb[0].upper()) if verb else None
    return command.phase if command is not None else "other" if verb else ""
