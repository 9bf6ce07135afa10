"""Servers for tests: `with Sink() as sink:` starts one on free ports, and stops it at the end."""

from blackhole.metrics.transactions import CommandReply, Transaction, ViolationLine
from blackhole.testing.async_sink import AsyncSink
from blackhole.testing.async_sink_namespace import AsyncSinkNamespace
from blackhole.testing.launcher import SinkError
from blackhole.testing.sink import Sink
from blackhole.testing.sink_namespace import SinkNamespace

__all__ = [
    "AsyncSink",
    "AsyncSinkNamespace",
    "CommandReply",
    "Sink",
    "SinkError",
    "SinkNamespace",
    "Transaction",
    "ViolationLine",
]
