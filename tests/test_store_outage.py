"""Mail goes on while the store of attempts stops answering: frozen, or cut off the network."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.external_programs import output_of, path_of, requires
from tests.network import Network
from tests.postfix import smtp_source
from tests.program import PYTHON, Program, scenario_option, wait_for
from tests.store_waits import REPORTED, StoreWait, read_waits

ASKING = """\
[[rule]]
throttle = { recipients = 100000000, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
"""
"""A rule that asks the store about each recipient; without an answer it does not apply."""

ADDRESS = ("127.0.0.1", 2525)
"""Of the server, on its machine."""

TIMEOUT = 0.05
"""Seconds in which the store has to answer."""

AT_ONCE = 500
"""Messages that are on their way when the store stops answering."""

AFTERWARDS = 100
"""Messages that are sent when it no longer answers."""

FOR_A_LOOK = 10
"""Messages that show whether the store answers."""


class SinkAndStore:
    """A server, and the store that it asks, on another machine."""

    def __init__(self, network: Network, folder: Path, stack: ExitStack) -> None:
        self.network = network
        self._waits = folder / "waits"
        self.sent = 0
        self._unanswered = 0
        store = network.address("store")
        self.redis = subprocess.Popen(
            [
                *(*network.inside("store"), path_of("redis-server"), "--bind", store, "--dir", str(folder)),
                *("--protected-mode", "no", "--save", "", "--appendonly", "no"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(self.redis.wait)
        stack.callback(self.redis.kill)
        host, port = ADDRESS
        self.program = stack.enter_context(
            Program(
                f"--listen={host}:{port}",
                f"--attempt_store=redis://{store}/0",
                scenario_option(folder, ASKING),
                command=(
                    *(*network.inside("sink"), *PYTHON, "-m", "tests.store_waits"),
                    str(self._waits),
                ),
            )
        )

    def command(self, messages: int) -> list[str]:
        """Return the command that sends messages, which all have to be accepted."""
        self.sent += messages
        return [*self.network.inside("sink"), *smtp_source(ADDRESS, messages)]

    def accepted(self) -> int:
        return self.program.snapshot().messages["accepted"]

    def newly_unanswered(self) -> int:
        """Return how many more questions had no answer, of one for each message.

        Workers tell it once a second.
        """

        def total(name: str) -> int:
            return self.program.snapshot().total(name)

        wait_for(lambda: total("store_questions") == self.sent, "the workers have told")
        before, self._unanswered = self._unanswered, total("store_unanswered")
        return self._unanswered - before

    def answers(self) -> bool:
        """Send some messages, and return whether the store has answered all questions since the last look."""
        output_of(*self.command(FOR_A_LOOK))
        return not self.newly_unanswered()

    def waits(self) -> list[StoreWait]:
        return read_waits(self._waits)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[SinkAndStore]:
    with Network("store", "sink") as network, ExitStack() as stack:
        yield SinkAndStore(network, tmp_path, stack)


@requires("ip", "redis-server", "smtp-source", root=True)
def test_mail_goes_on_and_hardly_waits_while_a_store_is_frozen_or_cut_off(machines: SinkAndStore) -> None:
    network, redis = machines.network, machines.redis
    outages: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "frozen": (
            lambda: redis.send_signal(signal.SIGSTOP),
            lambda: redis.send_signal(signal.SIGCONT),
        ),
        "cut off": (
            lambda: network.cut_off("store"),
            lambda: network.cut_off("store", down=False),
        ),
    }

    for number, (what, (begin, end)) in enumerate(outages.items(), 1):
        wait_for(machines.answers, "the store answers", 30)
        before = machines.sent
        with subprocess.Popen(machines.command(AT_ONCE)) as sender:
            wait_for(lambda before=before: machines.accepted() > before + 50, "mail is on its way")  # type: ignore[misc]
            begin()
            assert sender.wait(60) == 0, what
        output_of(*machines.command(AFTERWARDS))
        assert AFTERWARDS <= machines.newly_unanswered() <= AT_ONCE + AFTERWARDS, what
        end()
        assert machines.accepted() == machines.sent, "all mail is accepted"
        assert machines.program.snapshot().total("store_openings") >= number
    wait_for(machines.answers, "the store answers again", 30)
    assert max(wait.seconds for wait in machines.waits()) >= TIMEOUT, "until the timer"
    assert [wait for wait in machines.waits() if wait.own > REPORTED] == []
