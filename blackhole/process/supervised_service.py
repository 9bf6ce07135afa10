"""The service as its supervisor sees it: what it is asked, and what it is told, in the master."""

from __future__ import annotations

from collections.abc import Collection
from socket import socket
from typing import Protocol

from blackhole.process.plan import ProcessPlan


class SupervisedService(Protocol):
    """What the supervisor asks of the service whose processes it keeps alive."""

    def ready(self, failed: Collection[str]) -> None:
        """Take note that the first workers are ready. Called once.

        `failed` are the titles of the other jobs that did not start.
        """

    def reload_began(self) -> None:
        """Take note of the begin of a reload."""

    def read(self) -> object:
        """Read what the next generation needs, in a child process. Raises OperatorError."""

    def reload(self, what: object) -> ProcessPlan:
        """Return the plan of the next generation, made of what `read` returned. Raises OperatorError."""

    def reload_failed(self) -> None:
        """Take note that `read` or `reload` raised."""

    def reload_finished(self, succeeded: bool, failed: Collection[str]) -> None:
        """Take note that the generation of the last `reload` has taken over, or has failed.

        `failed` are the titles of the other jobs that did not start.
        """

    def child_started(self, pid: int) -> None:
        """Take note of a new child."""

    def check_order(self, row: int, hung: bool) -> None:
        """Look at the runtime order under which a child has exited, before its row is freed.

        `hung`: it was computing when its heartbeat was missing for too long.
        """

    def child_exited(self, row: int) -> None:
        """Release what a child that has exited still held in shared memory."""

    def is_complete(self, messages: int) -> bool:
        """Return whether the server has done what it was started for, and should stop.

        `messages` is what all children together have counted beside their heartbeats.
        """

    def is_terminal_closed(self) -> bool:
        """Return whether the terminal in which the server was started is gone."""

    def open_log(self, channel: socket) -> None:
        """Open the log file again, in a child process, and send the descriptor. Raises OperatorError."""

    def use_log(self, channel: socket) -> None:
        """Use the log file that `open_log` has sent."""

    def send_log(self, channel: socket) -> None:
        """Send the descriptor of the log file to a child, which is then told to use it."""

    def stop_listening(self) -> None:
        """Close the listening sockets. Called once, before the children are told to stop."""
