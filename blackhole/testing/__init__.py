"""Servers for tests: `with Sink() as sink:` starts one on free ports, and stops it at the end."""

from blackhole.testing.async_sink import AsyncSink
from blackhole.testing.launcher import SinkError
from blackhole.testing.sink import Sink

__all__ = ["AsyncSink", "Sink", "SinkError"]
