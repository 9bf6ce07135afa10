"""Files of every kind for every option that names one: each is used, or refused with one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.path_kinds import OPTIONS, kinds_of
from tests.program import PYTHON, ROOT, Program, as_root, children, environment, free_port, title, wait_for
from tests.smtp_client import SMTPClient
from tests.stalled_mount import stalled_mount

GOOD = {
    ("conf", "empty"), ("auth", "/proc/self/environ"),
    ("listener", "socket"), ("listener", "missing"),
    ("pid", "empty"), ("pid", "missing"),
    *(("log", kind) for kind in ("empty", "nul", "binary", "one long line", "a terabyte of nothing")),
    *(("log", kind) for kind in ("missing", "/proc/self/mem", "/proc/self/environ")),
    ("log", "/proc/kmsg"),
    *((option, "nothing") for option in OPTIONS),
}  # fmt: skip
"""The files that may be used."""


@pytest.mark.timeout(400)
def test_file_of_any_kind_is_used_or_refused_with_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [*PYTHON, "-m", "tests.path_kinds", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == sum(len(kinds_of(option)) for option in OPTIONS)
    for option, kind, end, output in cases:
        case = option, kind, end, output
        if end == 0:
            assert (option, kind) in GOOD, case
            continue
        assert end in (os.EX_USAGE, os.EX_CONFIG, os.EX_CANTCREAT), case
        refusals = [line for line in output.splitlines() if "passwords may be sent unencrypted" not in line]
        assert len(refusals) == 1, case
        assert refusals[0].startswith("blackhole: "), case
        assert refusals[0].isprintable(), case
        assert len(refusals[0]) < 600, case


@as_root
def test_stalled_file_system_does_not_stop_the_master(tmp_path: Path) -> None:
    """A reload that reads from it waits in a process of its own."""
    folder, conf = tmp_path / "stalled", tmp_path / "blackhole.conf"
    folder.mkdir()
    for option in ("scenario", "ssl_cert", "auth"):
        port = free_port()
        good = f"listen = 127.0.0.1:{port}\nworkers = 2\n"
        conf.write_text(good)
        with stalled_mount(folder), Program(f"--conf={conf}") as program:
            workers = program.workers()
            conf.write_text(f"{good}auth_plaintext = yes\n{option} = {folder}/file\n")
            program.process.send_signal(signal.SIGHUP)
            wait_for(lambda program=program: reader_of(program), "the reload waits")  # type: ignore[misc]
            os.kill(workers[0], signal.SIGKILL)
            program.wait_until_accepting(2, without=workers[0])
            with SMTPClient(("127.0.0.1", port)) as client:
                assert client.greeting[:3] == "220"
            assert program.stop(timeout=10) == 0


@as_root
def test_log_on_a_stalled_file_system_does_not_stop_the_master(tmp_path: Path) -> None:
    """Where SIGUSR1 has it opened again."""
    folder = tmp_path / "stalled"
    folder.mkdir()
    with Program(f"--log={folder}/log") as program, stalled_mount(folder):
        workers = program.workers()
        program.process.send_signal(signal.SIGUSR1)
        os.kill(workers[0], signal.SIGKILL)
        program.wait_until_accepting(2, without=workers[0])
        assert program.stop(timeout=10) == 0


def reader_of(program: Program) -> bool:
    return any(title(pid) == "blackhole: reload" for pid in children(program.pid))
