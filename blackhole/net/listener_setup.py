"""The setup of a listener: what is made of its settings for the connections of one worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

from blackhole.addresses import NetworkSet
from blackhole.messages.dkim_verification import DKIMKeys
from blackhole.messages.message_checks import NO_KEYS
from blackhole.metrics.counters import CounterCells
from blackhole.metrics.evidence import EvidenceWriter
from blackhole.net import proxy
from blackhole.net.accounting import EVENT_CELLS
from blackhole.net.admission import AdmissionControl, client_limits
from blackhole.net.connection import Connection
from blackhole.net.context import ListenerContext
from blackhole.net.limit_log import LimitLog
from blackhole.net.recorded_connection import RecordedConnection
from blackhole.net.server_namespaces import ServerNamespaces, namespace_of
from blackhole.net.tls import TLSContexts
from blackhole.net.tls_choice import reads_client_hello
from blackhole.rules.model import Rule
from blackhole.settings import Listener, Settings
from blackhole.smtp.auth import choose_mechanisms
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.extensions import choose
from blackhole.smtp.inspection import InspectionPlan
from blackhole.smtp.policy import ListenerPolicy
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.state import LMTP, SMTP, ListenerConfig
from blackhole.smtp.wanted_fields import WantedFields
from blackhole.store.recent import RecentWriter


def listener_config(settings: Settings, listener: Listener, dkim_keys: DKIMKeys = NO_KEYS) -> ListenerConfig:
    """Return what the engine of a listener needs to know of the settings."""
    extensions = choose(settings.extensions)
    return ListenerConfig(
        hostname=settings.hostname,
        service=LMTP if listener.lmtp else SMTP,
        extensions=extensions,
        message_size_limit=settings.message_size_limit,
        strict=settings.strict,
        delay=listener.delay,
        starttls=bool(settings.ssl_cert) and not listener.tls and "STARTTLS" in extensions,
        bare_newline=settings.bare_newline,
        inspect=settings.inspect,
        inspect_content=settings.inspect_content,
        dkim_keys=dkim_keys,
        limits=client_limits(settings) if settings.limits_clients else None,
        message_directives=settings.message_directives,
        auth=settings.auth != "off" and "AUTH" in extensions,
        auth_plaintext=settings.auth_plaintext,
        auth_mechanisms=choose_mechanisms(settings.auth_mechanisms, settings.passwords is not None),
        auth_required=settings.auth_required,
        passwords=settings.passwords,
        xclient_from=NetworkSet(settings.xclient_from) if settings.xclient_from else None,
        fast_path="fast_path" in settings.accelerators,
    )


def make_recorder(
    settings: Settings,
    listener: Listener,
    address: str,
    writer: RecentWriter | None,
    log_transaction: Callable[[Any, bytes], None] | None = None,
) -> Recorder:
    """Return what records the transactions of a listener. Without a writer they are not kept."""
    names = () if writer is None else settings.recent_fields
    about = address.encode(), ",".join(names).encode()
    publish = keep_nothing if writer is None else writer.append
    return Recorder(
        time.time,
        publish,
        WantedFields(names),
        about,
        listener.mode.encode(),
        log_transaction,
        namespace_of if settings.namespace_by else None,
    )


def keep_nothing(record: bytes) -> int:
    """Keep no record of a transaction that is only logged."""
    return 0


def make_engines(
    listener: Listener,
    settings: Settings,
    trace: TraceFunction | None,
    policy: ListenerPolicy,
    recorder: Recorder | None,
    dkim_keys: DKIMKeys,
) -> tuple[SMTPEngine, SMTPEngine]:
    """Return the engine of clients without limits, and that of clients with limits."""
    limited = listener_config(settings, listener, dkim_keys)
    inspection = InspectionPlan(settings.inspect)
    engine = SMTPEngine(
        replace(limited, limits=None), Random(), trace, policy, EVENT_CELLS, recorder, inspection
    )
    if not settings.limits_clients:
        return engine, engine
    return engine, SMTPEngine(limited, Random(), trace, policy, EVENT_CELLS, recorder, inspection)


def make_context(
    listener: Listener,
    settings: Settings,
    engines: tuple[SMTPEngine, SMTPEngine],
    counters: CounterCells,
    tls: TLSContexts | None,
    rules: Iterable[Rule],
    admission: AdmissionControl | None,
    limit_log: LimitLog | None,
    evidence: EvidenceWriter | None,
    log_connection: Callable[..., None],
    client_changed: Callable[[Any], None],
) -> ListenerContext:
    """Return what the connections of a listener share. `rules` are those of the scenarios in force."""
    return ListenerContext(
        listener=listener,
        settings=settings,
        engine=engines[0],
        limited_engine=engines[1],
        limits=client_limits(settings),
        counters=counters,
        tls=tls,
        reads_client_hello=reads_client_hello(tls, rules),
        admission=admission,
        limit_log=limit_log,
        proxy_parser=proxy.make_parser() if listener.proxy else None,
        proxies=NetworkSet(settings.proxy_from),
        greets_at_once=not (listener.proxy or listener.tls or settings.limits_clients),
        log_connection=log_connection,
        client_changed=client_changed,
        evidence=evidence,
    )


def connection_type(
    namespaces: ServerNamespaces | None, number: int, is_recorded: bool
) -> Callable[..., Connection]:
    """Return what makes the connections of a listener, whose counter of connections is `number`."""
    if namespaces is not None:
        return namespaces.connection_type(number, is_recorded)
    return RecordedConnection if is_recorded else Connection
