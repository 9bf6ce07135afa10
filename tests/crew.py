"""A master whose children do what files tell them: `python crew.py DIRECTORY WORKERS CONSTANTS`.

With a file DIRECTORY/die the next child dies at start, and so on; what happens is appended to
DIRECTORY/said. CONSTANTS is a JSON object: the constants of `blackhole.process.supervisor`, and some more.
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
from pathlib import Path

from setproctitle import setproctitle

from blackhole.metrics.counters import Counters
from blackhole.process import logs, supervisor
from blackhole.process.supervisor import ChildContext, Job, ProcessPlan, Supervisor
from blackhole.settings import OperatorError

WORKER = "blackhole: worker"


def main(directory: Path, workers: int, constants: dict[str, float]) -> int:
    def told(name: str) -> bool:
        return (directory / name).exists()

    def say(what: str) -> None:
        with open(directory / "said", "a") as said:
            said.write(what + "\n")

    def serve(number: int, context: ChildContext) -> None:
        if told("die") or told(f"die{number}"):
            os._exit(3)
        if told("raise"):
            raise ZeroDivisionError("by intent")
        if told("refuse"):
            raise OperatorError("cannot do that", os.EX_NOPERM)
        while told("mute"):
            time.sleep(0.05)
        leave = []
        patience = 30 if told("stubborn") else 0
        signal.signal(signal.SIGTERM, lambda *_: leave.append(time.monotonic() + patience))
        signal.signal(signal.SIGINT, lambda *_: None if patience else leave.append(0))
        signal.signal(signal.SIGUSR1, lambda *_: say("child reopens"))
        stats.heartbeat(context.row)
        if told("crash"):
            time.sleep(0.05)
            os._exit(4)
        if told("orphan") and os.fork() == 0:
            if os.fork() == 0:
                time.sleep(0.3)
            os._exit(0)
        while not any(time.monotonic() >= moment for moment in leave):
            if not told("silent"):
                stats.heartbeat(context.row)
            if select.select([context.master_alive_fd], [], [], 0.02)[0]:
                say("the master is gone")
                return

    def job(number: int) -> Job:
        return Job(f"{WORKER} {number}", lambda context: serve(number, context))

    def plan() -> ProcessPlan:
        others = (Job("blackhole: other", lambda context: serve(99, context)),) if told("other") else ()
        return ProcessPlan(job, workers, others, drain_timeout=constants.get("drain", 5.0))

    def reload() -> ProcessPlan:
        say("reload")
        if told("wrong"):
            raise OperatorError("that is wrong")
        return plan()

    setproctitle("blackhole: master")
    if "user" in constants:
        os.setuid(int(constants["user"]))
        resource.setrlimit(resource.RLIMIT_NPROC, (1 + workers // 2, 99))
    if told("subreaper"):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans are ours, as for PID 1
    for name, value in constants.items():
        if name.isupper():
            setattr(supervisor, name, value)
    logs.set_up("", debug=False)
    stats = Counters(int(constants.get("rows", 100)))
    return Supervisor(
        plan(),
        stats,
        reload=reload,
        settle=lambda taken: say(f"settle {taken}"),
        reopen=lambda: say("master reopens"),
        leave=lambda: say("leave"),
    ).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])))
