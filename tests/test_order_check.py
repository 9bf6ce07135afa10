"""The process that checks an order: its limits, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial

import pytest

from blackhole.rules.scenario_file import MAX_NESTING
from blackhole.settings import OperatorError
from blackhole.tls_menu import TLSParameters
from blackhole.web import order_check
from blackhole.web.order_check import MEMORY, CheckedOrder, check_one_shot_rule, check_text, checked
from tests.program import children

RULE = b'[[rule]]\nphase = "STARTTLS"\ncertificate = "expired"\n'


def result(check: Callable[[], CheckedOrder]) -> CheckedOrder:
    before = children(os.getpid())  # such as the launcher of blackhole.testing
    try:
        return asyncio.run(checked("test", check))
    finally:
        assert children(os.getpid()) == before


def error(check: Callable[[], CheckedOrder]) -> tuple[int, str]:
    with pytest.raises(OperatorError) as caught:
        result(check)
    return caught.value.code, str(caught.value)


def test_the_check_returns_tables_without_what_workers_do_not_need() -> None:
    found = result(partial(check_text, "test", b'about = "x"\nseed = 7\n' + RULE))
    assert found.tables == {"seed": 7, "rule": [{"phase": "STARTTLS", "certificate": "expired"}]}
    assert found.text.startswith('about = "x"')
    assert found.tls == {TLSParameters(certificate="expired")}


def test_a_mistake_in_a_rule_is_the_error_of_the_check() -> None:
    check = partial(check_one_shot_rule, "test", {"phase": "RCPT", "reply": "777 x"})
    assert error(check)[1].startswith("test: reply: expected a reply")


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else "RCPT"


def test_a_value_that_is_nested_too_deeply_is_an_error() -> None:
    for depth in (MAX_NESTING, 300):
        check = partial(check_one_shot_rule, "test", {"phase": nested(depth)})
        assert error(check)[1] == "test: nested too deeply"


def compute() -> CheckedOrder:
    while True:
        pass


def allocate() -> CheckedOrder:
    raise AssertionError(len(bytearray(MEMORY + (64 << 20))))


def test_a_check_that_takes_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_check, "CPU_SECONDS", 1)
    expected = "test: takes more than 1 s of processor time, or too much memory"
    assert error(compute) == error(allocate) == (os.EX_CONFIG, expected)


def sleep() -> CheckedOrder:
    time.sleep(30)
    raise AssertionError


def test_a_check_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_check, "CHECK_TIMEOUT", 0.2)
    assert error(sleep)[1] == "test: not read within 0.2 s"


def test_a_check_ends_with_the_task_that_waits_for_it() -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(checked("test", sleep))
        await asyncio.sleep(0.1)
        task.cancel()
        await task

    before = children(os.getpid())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert children(os.getpid()) == before


def fail() -> CheckedOrder:
    raise ZeroDivisionError("by intent")


def test_an_error_of_the_program_is_reported_as_such() -> None:
    assert error(fail) == (os.EX_SOFTWARE, "internal error: ZeroDivisionError('by intent')")


def test_rules_that_take_workers_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_check, "MAX_WORKER_SECONDS", -1.0)
    assert "its rules take each worker" in error(partial(check_text, "test", RULE))[1]


@pytest.mark.parametrize("call", ["fork", "pipe2"])
def test_a_machine_without_processes_or_descriptors_is_asked_again_later(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OperatorError, match="cannot be checked now") as caught:
        asyncio.run(checked("test", sleep))
    assert caught.value.code == os.EX_TEMPFAIL
