"""The engine of one listener: makes its sessions, and gives way to a successor with other rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from blackhole.smtp import replies
from blackhole.smtp.engine_tables import EngineTables, TraceFunction, no_fast_path
from blackhole.smtp.error_budget import Meter, unmetered
from blackhole.smtp.events import UNCOUNTED, EventNumbers
from blackhole.smtp.fast_path import fast_path
from blackhole.smtp.inspection import InspectionPlan
from blackhole.smtp.policy import NO_POLICY, ListenerPolicy
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.recorded_session import RecordedSession, Recorder, recorded
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig


class SMTPEngine(EngineTables):
    """Makes the sessions of one listener.

    `random_source` draws ids, nonces and delays. `trace` is called with each line received ("RECV") or sent
    ("SEND"). `policy` is asked about commands. `events` gives the numbers of what sessions have counted.
    `inspection` chooses what is inspected, where another engine of the listener has made a plan for it.

    >>> from random import Random
    >>> engine = SMTPEngine(ListenerConfig("mx.example"), Random())
    >>> session = engine.session(client="192.0.2.1")
    >>> session.greet()
    b'220 mx.example ESMTP Blackhole\\r\\n'
    """

    def __init__(
        self,
        config: ListenerConfig,
        random_source: RandomSource,
        trace: TraceFunction | None = None,
        policy: ListenerPolicy = NO_POLICY,
        events: EventNumbers = UNCOUNTED,
        recorder: Recorder | None = None,
        inspection: InspectionPlan | None = None,
    ) -> None:
        super().__init__(
            config, random_source, trace, policy, events, inspection or InspectionPlan(config.inspect)
        )
        self.fast_path = fast_path(self)
        self._recorder = recorder
        self._session_type: Callable[[SMTPEngine, bool, str, Meter], Session] = Session
        if recorder is not None:
            self.fast_path = recorded(self.fast_path, recorder)
            self._session_type = partial(RecordedSession, recorder)
        self._events = events

    def session(self, secure: bool = False, client: str = "", meter: Meter = unmetered) -> Session:
        """Return a session with the client at this address. `secure`: the TLS handshake came before it."""
        return self._session_type(self, secure, client, meter)

    def session_after(self, before: Session) -> Session:
        """Return the session with the client that XCLIENT named in the session `before`, which ends.

        The next call is `greet_named_client`.
        """
        before.policy.answered(before, "RSET", replies.RESET.code)  # The client has read what it was told.
        before.closed()
        named = before.named_client.address
        session = self.session(before.secure, before.client if named is None else named)
        session.continue_after(before)
        return session

    def replace_policy(self, policy: ListenerPolicy) -> SMTPEngine:
        """Return the engine that replaces this one and all that it has replaced, with another policy.

        A session goes over to it with its next command outside a transaction.
        """
        successor = SMTPEngine(
            self.config,
            self.random_source,
            self.trace,
            policy,
            self._events,
            self._recorder,
            self.inspection,
        )
        successor.sizes = self.sizes
        self.newest.engine = successor
        successor.newest = self.successor = self.newest
        self.fast_path = no_fast_path  # It does not look for a successor.
        return successor
