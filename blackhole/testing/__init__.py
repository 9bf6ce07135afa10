"""Servers for tests: `with Sink() as sink:` starts one on free ports, and stops it at the end."""

from blackhole.metrics.transactions import CommandReply, Transaction, ViolationLine
from blackhole.testing.async_sink import AsyncSink
from blackhole.testing.launcher import SinkError
from blackhole.testing.sink import Sink

__all__ = ["AsyncSink", "CommandReply", "Sink", "SinkError", "Transaction", "ViolationLine"]
