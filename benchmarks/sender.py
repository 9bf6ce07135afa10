"""The senders: Postfix's smtp-source, and programs of this package for what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.failure import Failure
from benchmarks.machine import ROOT, SENDER_CORES, taskset

SOURCE = "/usr/sbin/smtp-source"
TIMEOUT = 300.0

Sender = Callable[[int, int], list[str]]
"""Returns the command that sends messages (second argument) to a port of 127.0.0.1 (first argument)."""


def smtp_source(*options: str) -> Sender:
    """Return a sender that is Postfix's smtp-source with these options."""

    def command(port: int, messages: int) -> list[str]:
        return [SOURCE, *options, "-m", str(messages), f"127.0.0.1:{port}"]

    return command


def bundled_sender(program: str, *options: str) -> Sender:
    """Return a sender of this package, which takes a port, a number of messages, and `options`."""

    def command(port: int, messages: int) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{program}", str(port), str(messages), *options]

    return command


def run(command: list[str], timeout: float = TIMEOUT) -> tuple[float, str]:
    """Run a sender on its own core; return the seconds that it took, and its output. Raises Failure."""
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*taskset(SENDER_CORES), *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end within {timeout:.0f} s") from None
    took = time.monotonic() - begun
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Failure(f"sender failed: {' '.join(last)[:200]}")
    return took, done.stdout


def run_json(command: list[str], timeout: float = TIMEOUT) -> dict[str, Any]:
    """Run a sender that prints its results as one line of JSON, and return them."""
    found: dict[str, Any] = json.loads(run(command, timeout)[1])
    return found
