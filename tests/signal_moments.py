"""Every signal at every moment of a start, a reload and a stop of the real program.

A moment is the call of a function of the program. The process that calls it sends a signal to itself just
before, the first time that any process comes there: one, or two of them that follow each other at once. Then
the program has to do as if they had come at a quiet moment: `play` returns what is wrong. All of them, and
random moments beside:

    python -m tests.signal_moments [--random N] [--seed N]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.program import PYTHON, READY, SCRIPT, environment, free_port, title

MASTER_MOMENTS = (
    "process.pidfile:Pidfile._take_lock",
    "process.configuration:read",
    "process.configuration:open_sockets",
    "process.logs:set_up",
    "service:Service.run",
    "process.pidfile:Pidfile.write",
    "process.supervisor:Supervisor.run",
    "process.supervisor:Supervisor._start",
    "service:Service.child_started",
    "service:Service.ready",
    "process.forked_call:ForkedCall.__init__",
    "service:Service.reload",
    "process.supervisor:Supervisor._finish_reload",
    "service:Service.reload_finished",
    "process.supervisor:Supervisor._begin_stop",
    "service:Service.stop_listening",
    "process.supervisor:Supervisor._handle_exit",
    "process.pidfile:Pidfile.remove",
)
"""Functions that the master calls, as MODULE:CLASS.METHOD, in the order of a start, a reload and a stop."""

WORKER_MOMENTS = (
    "process.children:run_child",
    "process.privileges:drop_privileges",
    "process.worker:run",
    "process.worker:Worker.serve",
    "net.server:SMTPServer.open",
    "process.worker:Worker._sweep",
    "process.worker:Worker.retire",
    "process.worker:Worker._close_idle",
)
"""Functions that workers call."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end the program."""

OTHERS = (
    *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD),
    *(signal.SIGALRM, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG, signal.SIGPIPE),
)
"""Signals that do not."""

DEADLY = (signal.SIGKILL, signal.SIGSEGV)
"""Signals that only workers survive: as others in their place."""

PAIRS = (
    *((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)),
    *((signal.SIGHUP, signal.SIGTERM), (signal.SIGHUP, signal.SIGINT), (signal.SIGUSR1, signal.SIGTERM)),
)
"""Signals that follow each other."""

TIMEOUT = 30.0
"""Seconds in which each step must end, on a loaded machine too."""

END_TIME = 2.0
"""Seconds after the end of a master in which its children must end: less than a worker may drain."""

HOOK = """
import functools, importlib, os, sys
moment, numbers, flag = sys.argv[1], map(int, sys.argv[2].split(",")), sys.argv[3]
del sys.argv[1:4]
from blackhole import main, service
def once():
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except OSError:
        return
    for number in numbers:
        os.kill(os.getpid(), number)
module, _, path = moment.partition(":")
*owners, name = path.split(".")
home = owner = importlib.import_module(f"blackhole.{module}")
for part in owners:
    owner = getattr(owner, part)
original = getattr(owner, name)
@functools.wraps(original)
def signalled(*arguments, **named):
    once()
    return original(*arguments, **named)
setattr(owner, name, signalled)
for other in [*sys.modules.values()]:
    if getattr(other, "__name__", "").startswith("blackhole") and getattr(other, name, None) is original:
        setattr(other, name, signalled)
for table in ("WORKER_SIGNALS", "MASTER_SIGNALS"):
    for key, action in getattr(home, table, {}).items():
        if action is original:
            getattr(home, table)[key] = signalled
sys.exit(main.main())
"""

Signals = tuple[signal.Signals, ...]

Case = tuple[str, Signals]


def cases() -> Iterator[Case]:
    """Yield all moments with all signals, and with all pairs of signals."""
    for moments, signals in (
        (MASTER_MOMENTS, (*ENDING, *OTHERS)),
        (WORKER_MOMENTS, (*ENDING, *OTHERS, *DEADLY)),
    ):
        for moment in moments:
            for number in signals:
                yield moment, (number,)
            for pair in PAIRS:
                yield moment, pair


def play(moment: str, signals: Signals, after: float | None = None, gap: float = 0.0) -> str:
    """Start, reload and stop the program, with the signals at this moment, or to the master after some
    seconds, some more apart; return what is wrong, empty if nothing is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pid, log, flag, port = folder / "pid", folder / "log", folder / "flag", free_port()
        options = ("--host=127.0.0.1", f"--port={port}", "--workers=2", f"--pid={pid}", f"--log={log}")
        hook = (
            (*PYTHON, "-c", HOOK, moment, ",".join(str(int(one)) for one in signals), str(flag))
            if moment
            else SCRIPT
        )
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [*hook, *options],
                env=environment(BLACKHOLE_DRAIN_TIMEOUT="5"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            if after is not None:
                time.sleep(after)
                for number in signals:
                    process.send_signal(number)
                    time.sleep(gap)
            try:
                code = run_to_the_end(process, log, output.fileno())
                left = left_behind(process.pid)
            except TimeoutError as error:
                return f"{error}; {log.read_text()[-500:] if log.exists() else ''}"
            finally:
                for one in processes_of(process.pid):
                    os.kill(one, signal.SIGKILL)
                process.wait()
            output.seek(0)
            said = output.read() + (log.read_text() if log.exists() else "")
        if "Traceback" in said:
            return said[said.index("Traceback") :][:1500]
        if not moment and -code in signals and not said:
            return ""  # Python itself was still starting
        ending = {*signals} & {*ENDING}
        if code != 0 and code not in {status for number in ending for status in (128 + number, -number)}:
            return f"exit status {code}: {said[-500:]}"
        files = [path.name for path in folder.iterdir() if path.name not in ("log", "flag")]
        return f"left behind: {left} {files}" if left or files else ""


def run_to_the_end(process: subprocess.Popen[bytes], log: Path, output: int) -> int:
    """Reload a program once it is ready, then stop it; return its exit status. Raises TimeoutError."""

    def wait(text: str) -> bool:
        """Return whether a text is in the output or the log before the program has ended."""
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None:
            said = os.pread(output, 1 << 20, 0).decode() + (log.read_text() if log.exists() else "")
            if text in said:
                return True
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {text!r}")
            time.sleep(0.02)
        return False

    if wait(READY):
        process.send_signal(signal.SIGHUP)
        if wait("reloaded: "):
            process.send_signal(signal.SIGTERM)
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        raise TimeoutError("does not stop") from None


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that run, except zombies."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z" and "blackhole" in title(int(name)):
            found.append(int(name))
    return found


def left_behind(session: int) -> list[int]:
    """Return the processes of a session that has ended. The kernel ends children soon after their master."""
    deadline = time.monotonic() + END_TIME
    while (left := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def play_all(chosen: Iterable[Case], workers: int) -> tuple[int, list[str]]:
    """Play cases, several at a time; return their number, and what is wrong in which."""
    with ThreadPoolExecutor(workers) as pool:
        listed = list(chosen)
        problems = list(pool.map(lambda case: play(*case), listed))
    found = [
        f"{moment} {names(signals)}: {problem}"
        for (moment, signals), problem in zip(listed, problems, strict=True)
        if problem
    ]
    return len(listed), found


def names(signals: Signals) -> str:
    return "+".join(number.name for number in signals)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.signal_moments", description=__doc__)
    parser.add_argument(
        "--random", type=int, default=0, metavar="N", help="N runs with random moments, alone"
    )
    parser.add_argument("--pairs", action="store_true", help="pairs of signals alone")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.random:
        source = random.Random(arguments.seed)
        singles: list[Signals] = [(number,) for number in (*ENDING, *OTHERS)]
        chosen = [
            (source.choice([*singles, *PAIRS]), source.uniform(0.25, 1.5), source.uniform(0, 0.2))
            for _ in range(arguments.random)
        ]
        with ThreadPoolExecutor(arguments.workers) as pool:
            results = list(pool.map(lambda case: play("", *case), chosen))
        played = len(chosen)
        found = [
            f"{names(signals)} after {after:.3f} s, {gap:.3f} s apart: {problem}"
            for (signals, after, gap), problem in zip(chosen, results, strict=True)
            if problem
        ]
    else:
        listed = [case for case in cases() if len(case[1]) > 1 or not arguments.pairs]
        played, found = play_all(listed, arguments.workers)
    print(*found, sep="\n")
    print(f"{played} runs: {len(found)} findings")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
