"""What drives a server: Postfix's smtp-source, and the programs here that do what it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.failure import Failure
from benchmarks.machine import ROOT, SENDER, pinned

SOURCE = "/usr/sbin/smtp-source"
TIMEOUT = 300.0

Sender = Callable[[int, int], list[str]]
"""The command that sends so many messages (second argument) to a port of 127.0.0.1 (first)."""


def smtp_source(*options: str) -> Sender:
    def command(port: int, messages: int) -> list[str]:
        return [SOURCE, *options, "-m", str(messages), f"127.0.0.1:{port}"]

    return command


def own(program: str, *options: str) -> Sender:
    """A program of this package, which takes a port, a number of messages, and `options`."""

    def command(port: int, messages: int) -> list[str]:
        return [sys.executable, "-m", f"benchmarks.{program}", str(port), str(messages), *options]

    return command


def run(command: list[str], timeout: float = TIMEOUT) -> tuple[float, str]:
    """Run a sender to its end on its own core: the seconds it took and what it printed."""
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*pinned(SENDER), *command], capture_output=True, text=True, timeout=timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} was not done in {timeout:.0f} s") from None
    took = time.monotonic() - begun
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Failure(f"sender failed: {' '.join(last)[:200]}")
    return took, done.stdout


def report(command: list[str], timeout: float = TIMEOUT) -> dict[str, Any]:
    """Run a sender that prints what it saw as one line of JSON."""
    found: dict[str, Any] = json.loads(run(command, timeout)[1])
    return found
