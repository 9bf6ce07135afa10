"""The check of an order in a process of its own: what a request brings may take it long, or kill it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

from blackhole.process.forked_call import ForkedCall
from blackhole.rules import scenario
from blackhole.rules.evaluator import RulePolicy
from blackhole.rules.model import Rule
from blackhole.rules.scenario import ScenarioSource
from blackhole.rules.scenario_file import make_rules, parse_rule
from blackhole.settings import OperatorError, ScenarioVariable
from blackhole.tls_menu import TLSParameters

CHECK_TITLE: Final = "blackhole: order"

CPU_SECONDS: Final = 3
"""Processor time of the process."""

CHECK_TIMEOUT: Final = 20.0
"""Seconds for the process to end, on a machine that is busy."""

MEMORY: Final = 256 << 20
"""Octets that the process may have beside those of the dashboard."""

MAX_RULES: Final = 2000
"""Rules of a scenario."""

MAX_WORKER_SECONDS: Final = 1.0
"""Processor time to make rules and their index, which each worker does between two commands."""

DASHBOARD_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that the dashboard handles; the process has their default actions."""


class CheckedOrder(NamedTuple):
    """What a request brings, after the check."""

    tables: Mapping[str, Any]
    """The tables of the scenario, without what workers do not need."""
    text: str
    tls: frozenset[TLSParameters]
    """How its rules have the TLS handshake done, other than the listener does."""


def check_text(name: str, octets: bytes, variables: Sequence[ScenarioVariable] = ()) -> CheckedOrder:
    """Check the text of a scenario, with values of its variables. Raises OperatorError."""
    return check_source(scenario.parse_source(name, scenario.decode_source(octets, name)), variables)


def check_source(source: ScenarioSource, variables: Sequence[ScenarioVariable] = ()) -> CheckedOrder:
    """Check a scenario, with values of its variables. Raises OperatorError."""
    (source,) = scenario.set_variables([source], variables, f"{source.name}: set")
    rules = _check_rules(source.name, lambda: make_rules(source.tables, source.name, source.text))
    tables = {key: value for key, value in source.tables.items() if key != "about"}
    return CheckedOrder(tables, source.text, scenario.tls_parameters(rules))


def check_one_shot_rule(name: str, block: Mapping[str, Any]) -> CheckedOrder:
    """Check a single rule. Raises OperatorError."""
    rules = _check_rules(name, lambda: [parse_rule(block, name)])
    return CheckedOrder(block, "", scenario.tls_parameters(rules))


def _check_rules(name: str, make: Callable[[], list[Rule] | tuple[Rule, ...]]) -> list[Rule]:
    """Make rules and their index as workers do, and return the rules.

    Raises OperatorError, as `make` does, or if there are too many.
    """
    began = time.process_time()
    rules = [*make()]
    if len(rules) > MAX_RULES:
        raise OperatorError(
            f"{name}: {len(rules)} rules; at most {MAX_RULES} can be put in force at run time"
        )
    RulePolicy(rules, "accept", "", Random()).for_session("127.0.0.1", False)
    seconds = time.process_time() - began
    if seconds > MAX_WORKER_SECONDS:
        raise OperatorError(f"{name}: its rules take each worker {seconds:.1f} s, and may take 1 s")
    return rules


async def checked(name: str, check: Callable[[], CheckedOrder]) -> CheckedOrder:
    """Call one of the checks above in a process of its own, with limits. Raises OperatorError."""
    try:
        call, ended = _fork(check)
    except OSError as error:
        raise OperatorError(f"{name}: cannot be checked now: {error.strerror}", os.EX_TEMPFAIL) from None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await _readable(ended)
    except BaseException as error:
        call.cancel()
        os.waitpid(call.pid, 0)
        if isinstance(error, TimeoutError):
            raise OperatorError(f"{name}: not read within {CHECK_TIMEOUT:g} s") from None
        raise
    finally:
        os.close(ended)
    code = os.waitstatus_to_exitcode(os.waitpid(call.pid, 0)[1])
    try:
        found: CheckedOrder = call.result(code)
    except OperatorError:
        if code == os.EX_OK:
            raise
        raise OperatorError(
            f"{name}: takes more than {CPU_SECONDS} s of processor time, or too much memory"
        ) from None
    return found


def _fork(check: Callable[[], CheckedOrder]) -> tuple[ForkedCall, int]:
    """Return the call, and a descriptor that is at its end when the process is. Raises OSError."""
    ended, child_end = os.pipe2(os.O_CLOEXEC)
    try:
        return ForkedCall(CHECK_TITLE, partial(_within_limits, check), DASHBOARD_SIGNALS), ended
    except OSError:
        os.close(ended)
        raise
    finally:
        os.close(child_end)


async def _readable(descriptor: int) -> None:
    """Wait until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _within_limits(check: Callable[[], CheckedOrder]) -> CheckedOrder:
    """Call a check with limits on this process, which is the child. Raises OperatorError."""
    _close_sockets()
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    with suppress(ValueError):  # the limit of the dashboard is lower
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        return check()
    except MemoryError:
        os._exit(os.EX_SOFTWARE)
    except OperatorError:
        raise
    except Exception as error:  # the log of the dashboard is limited, that of this process is not
        raise OperatorError(f"internal error: {error!r}", os.EX_SOFTWARE) from None


def _close_sockets() -> None:
    """Close connections and listening sockets, so that they end when the dashboard closes them."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if descriptor > 2 and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
