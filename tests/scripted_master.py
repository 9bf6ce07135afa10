"""A master whose children behave as files tell them: `scripted_master.py DIRECTORY WORKERS CONSTANTS`.

With a file DIRECTORY/die the next child dies at its start, and so on for the other names of files
below. What happens is appended to DIRECTORY/events. CONSTANTS is a JSON object with fields of `Timing`, and
with `drain` (the drain timeout), `rows` (of the counters) and `user` (a uid).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from socket import socket

from setproctitle import setproctitle

from blackhole.metrics.counters import Counters
from blackhole.process import logs
from blackhole.process.plan import ChildContext, Job, ProcessPlan
from blackhole.process.processes import MASTER_TITLE
from blackhole.process.supervisor import Supervisor
from blackhole.process.timing import Timing
from blackhole.settings import OperatorError

WORKER = "blackhole: worker"

PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h: orphans become children of this process, as those of PID 1."""


class ScriptedService:
    """Plans children that do what the files say, and writes down what the supervisor asks for."""

    def __init__(self, directory: Path, workers: int, constants: dict[str, float]) -> None:
        self.directory, self.workers, self.constants = directory, workers, constants
        self.counters = Counters(int(constants.get("rows", 100)))

    def exists(self, name: str) -> bool:
        return (self.directory / name).exists()

    def write(self, event: str) -> None:
        with open(self.directory / "events", "a") as events:
            events.write(event + "\n")

    def plan(self) -> ProcessPlan:
        def job(number: int) -> Job:
            return Job(f"{WORKER} {number}", lambda child: self.run_child(number, child))

        others = (Job("blackhole: other", lambda child: self.run_child(99, child)),)
        drain = self.constants.get("drain", 5.0)
        return ProcessPlan(job, self.workers, others if self.exists("other") else (), drain)

    def run_child(self, number: int, child: ChildContext) -> None:
        if self.exists("die") or self.exists(f"die{number}"):
            os._exit(3)
        if self.exists("raise"):
            raise ZeroDivisionError("by intent")
        if self.exists("refuse"):
            raise OperatorError("cannot do that", os.EX_NOPERM)
        while self.exists("mute"):
            time.sleep(0.05)
        stops: list[float] = []
        delay = 30 if self.exists("stubborn") else 0
        signal.signal(signal.SIGTERM, lambda *_: stops.append(time.monotonic() + delay))
        signal.signal(signal.SIGINT, lambda *_: None if delay else stops.append(0))
        signal.signal(signal.SIGUSR1, lambda *_: self.write("child reopens its log"))
        child.heartbeat.beat()
        if self.exists("crash"):
            time.sleep(0.05)
            os._exit(4)
        if self.exists("orphan") and os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.3)
            os._exit(0)
        while not any(time.monotonic() >= moment for moment in stops):
            if not (self.exists("silent") or self.exists(f"silent{number}")):
                child.heartbeat.beat()
            if self.exists("forge"):
                for row in range(self.counters.rows):
                    self.counters.heartbeat(row)
            if select.select([child.master_alive_fd], [], [], 0.02)[0]:
                self.write("the master is gone")
                return

    # What the supervisor calls.

    def check_order(self, row: int, hung: bool) -> None:
        pass

    def child_exited(self, row: int) -> None:
        assert row not in self.counters.live_rows()

    def ready(self, failed: Collection[str]) -> None:
        self.write("ready" + "".join(f", but {title} failed" for title in failed))

    def reload_began(self) -> None:
        self.write("reload")

    def read(self) -> str:
        while self.exists("slow"):
            time.sleep(0.05)
        if self.exists("broken"):
            os._exit(5)
        if self.exists("wrong"):
            raise OperatorError("that is wrong")
        return "read"

    def reload(self, what: object) -> ProcessPlan:
        assert what == "read"
        if self.exists("wrong plan"):
            raise OperatorError("that is wrong, too")
        return self.plan()

    def reload_failed(self) -> None:
        pass

    def reload_finished(self, succeeded: bool, failed: Collection[str]) -> None:
        self.write(
            ("reloaded" if succeeded else "reload failed")
            + "".join(f", but {title} failed" for title in failed)
        )

    def child_started(self, pid: int) -> None:
        pass

    def is_complete(self, messages: int) -> bool:
        return self.exists("complete")

    def is_terminal_closed(self) -> bool:
        return self.exists("closed terminal")

    def open_log(self, channel: socket) -> None:
        while self.exists("slow log"):
            time.sleep(0.05)
        if self.exists("wrong log"):
            raise OperatorError("that is wrong")

    def use_log(self, channel: socket) -> None:
        self.write("master reopens its log")

    def send_log(self, channel: socket) -> None:
        pass

    def stop_listening(self) -> None:
        self.write("stop listening")


def main(directory: Path, workers: int, constants: dict[str, float]) -> int:
    setproctitle(MASTER_TITLE)
    if "user" in constants:
        os.setuid(int(constants["user"]))
        resource.setrlimit(resource.RLIMIT_NPROC, (1 + workers // 2, 99))
    logs.set_up("", debug=False)
    service = ScriptedService(directory, workers, constants)
    if service.exists("subreaper"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    names = {field.name for field in fields(Timing)}
    assert constants.keys() <= names | {"drain", "rows", "user"}
    timing = Timing(**{name: value for name, value in constants.items() if name in names})
    return Supervisor(service.plan(), service.counters, service, timing).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
