"""SMTP by computation alone: bytes become replies, without a socket, a clock or a log."""

from blackhole.smtp.policy import MODES
from blackhole.smtp.reply import Reply, Then
from blackhole.smtp.session import Engine, Session
from blackhole.smtp.state import PHASES, Config

__all__ = ["MODES", "PHASES", "Config", "Engine", "Reply", "Session", "Then"]
