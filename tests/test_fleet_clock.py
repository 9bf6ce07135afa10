"""Machines of a fleet whose clocks differ: limits and windows run by the clock of the store."""

from __future__ import annotations

import smtplib
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.external_programs import find_program, requires
from tests.http_api import Sink, ask
from tests.program import SCRIPT, scenario_option, wait_for
from tests.redis_server import RedisServer

SHIFTED = ("unshare", "--time", "--monotonic", "1000000")
"""Runs a command in a time namespace whose monotonic clock is eleven days ahead."""

pytestmark = requires("unshare", root=True)

KINDS = ("", ', window = "sliding"', ", burst = 3")


def code(sink: Sink, sender: str) -> int:
    """Return the code of the reply to MAIL."""
    with smtplib.SMTP("127.0.0.1", sink.port, timeout=30) as client:
        client.ehlo("client.example.com")
        return client.mail(sender)[0]


def has_time_namespaces() -> bool:
    """Return whether the kernel has them, and lets us make one."""
    if find_program("unshare") is None:
        return False
    with suppress(OSError):
        return not subprocess.run([*SHIFTED, "true"], capture_output=True, check=False).returncode
    return False


def test_a_machine_with_another_clock_shares_limits_and_windows_with_the_others(tmp_path: Path) -> None:
    if not has_time_namespaces():
        pytest.skip("this kernel makes no time namespace")
    rules = "".join(
        f'[[rule]]\nphase = "MAIL"\nsender = "k{number}@*"\nreply = "450 4.7.0 Later"\n'
        f'throttle = {{ messages = 3, per = "hour", by = "sender"{kind} }}\n'
        for number, kind in enumerate(KINDS)
    )
    with RedisServer() as redis:
        options = f"--fleet=redis://127.0.0.1:{redis.port}/0?timeout=5", "--fleet_control"
        scenario = scenario_option(tmp_path, rules)
        with Sink(*options, scenario) as one, Sink(*options, scenario, command=(*SHIFTED, *SCRIPT)) as other:
            for sink in one, other:
                sink.dashboard()
            for number in range(len(KINDS)):
                sender = f"k{number}@example.com"
                assert [code(sink, sender) for sink in (one, other, one, other, one)] == [
                    *(250, 250, 250, 450, 450)
                ], KINDS[number]
            window = '[[window]]\nname = "outage"\nfor = "1h"\n[[rule]]\nphase = "MAIL"\nwindow = "outage"\n'
            text = window + 'reply = "451 4.3.0 Out"\n'
            assert wait_for(lambda: ask(other.http, "/scenario", "PUT", text).status == 200, "all obey")
            assert [code(sink, "a@b") for sink in (one, other)] == [451, 451]
            assert "Traceback" not in other.output()
