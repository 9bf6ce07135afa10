"""Every option that names a file, given files of every kind: `path_kinds.py DIRECTORY` prints what happens.

Each line of the output is a JSON list: the option, the kind of the file, the exit status (0: the server would
run) or "hangs", and what was written to standard error. The cases are forked from one process that has
imported the program, and end before the workers are forked: to start all of it takes fifty times as long.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from blackhole.main import main as blackhole
from blackhole.service import Service
from tests.certificates import issue
from tests.program import NOBODY, environment, free_port

TIMEOUT = 10.0
"""Seconds after which a case hangs."""

LONG_NAME = 300


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def link_loop(path: Path) -> None:
    path.symlink_to(f"{path.name}-2")
    path.with_name(f"{path.name}-2").symlink_to(path.name)


def unreadable(path: Path) -> None:
    path.write_text("x")
    path.chmod(0)


def removed(path: Path) -> None:
    """Leave a name in a directory that is not there."""


KINDS: dict[str, Callable[[Path], object]] = {
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "socket": make_socket,
    "dangling link": lambda path: path.symlink_to("none"),
    "link loop": link_loop,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a fifo": lambda path: (
        os.mkfifo(path.with_name(f"{path.name}-fifo")),
        path.symlink_to(f"{path.name}-fifo"),
    ),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "unreadable": unreadable,
    "empty": lambda path: path.touch(),
    "nul": lambda path: path.write_bytes(bytes(100)),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "one long line": lambda path: path.write_bytes(b"[" * 200_000),
    "a terabyte of nothing": make_sparse,
    "missing": removed,
}
"""Kind of file -> how one is made at a path."""

PATHS = {
    "/dev/zero": "/dev/zero",
    "/dev/full": "/dev/full",
    "/dev/null": "/dev/null",
    "/dev/stdin": "/dev/stdin",
    "/dev/tty": "/dev/tty",
    "/proc/kmsg": "/proc/kmsg",
    "/proc/self/mem": "/proc/self/mem",
    "/proc/self/environ": "/proc/self/environ",
    "in a file": "/etc/passwd/x",
    "long name": "/tmp/" + "x" * LONG_NAME,
    "root": "/",
    "nothing": "",
    "not utf-8": "/tmp/\udcff\udcfe",
    "line break": "/tmp/a\nb",
    "escape": "/tmp/\x1b[2Jx",
}
"""Kind of file -> a path that is there, or cannot be."""


def tls(folder: str) -> list[str]:
    """Return the arguments that turn TLS on."""
    return ["--ssl_cert", f"{folder}/cert.pem", "--ssl_key", f"{folder}/key.pem"]


def section(path: str, folder: str, name: str) -> list[str]:
    """Return the arguments that name a conf file, which has a section for a listener with one setting."""
    conf = Path(folder, "section.conf")
    conf.write_text(f"[listener 127.0.0.1:0]\n{name} = {path}\n", errors="surrogateescape")
    return ["--conf", str(conf)]


OPTIONS: dict[str, Callable[[str, str], list[str]]] = {
    "conf": lambda path, folder: ["--conf", path],
    "scenario": lambda path, folder: ["--scenario", path],
    "auth": lambda path, folder: ["--auth", path, "--auth_plaintext"],
    "ssl_cert": lambda path, folder: ["--ssl_cert", path, "--ssl_port=0"],
    "ssl_key": lambda path, folder: ["--ssl_cert", f"{folder}/cert.pem", "--ssl_key", path],
    "dashboard_cert": lambda path, folder: ["--http=127.0.0.1:0", "--dashboard_cert", path],
    "dashboard_key": lambda path, folder: [
        "--http=127.0.0.1:0", "--dashboard_cert", f"{folder}/cert.pem", "--dashboard_key", path,
    ],
    "client_ca": lambda path, folder: [*tls(folder), "--client_cert=ask", "--client_ca", path],
    "token": lambda path, folder: ["--http", f"127.0.0.1:0,token={path}"],
    "listener": lambda path, folder: ["--listen", f"unix:{path}"],
    "scenario of a listener": lambda path, folder: ["--listen", f"127.0.0.1:0,scenario={path}"],
    "auth of a listener": lambda path, folder: ["--listen", f"127.0.0.1:0,auth_plaintext,auth={path}"],
    "cert of a listener": lambda path, folder: ["--listen", f"127.0.0.1:0,cert={path}"],
    "key of a listener": lambda path, folder: [
        "--listen", f"127.0.0.1:0,cert={folder}/cert.pem,key={path}",
    ],
    "client_ca of a listener": lambda path, folder: [
        *tls(folder), "--listen", f"127.0.0.1:0,client_cert=ask,client_ca={path}",
    ],
    "scenario of a section": lambda path, folder: section(path, folder, "scenario"),
    "cert of a section": lambda path, folder: section(path, folder, "cert"),
    "ca": lambda path, folder: ["--attempt_store", f"rediss://127.0.0.1:1/0?ca={path}"],
    "fleet": lambda path, folder: ["--http=127.0.0.1:0", "--fleet", f"rediss://127.0.0.1:1/0?ca={path}"],
    "pid": lambda path, folder: ["--pid", path],
    "log": lambda path, folder: ["--log", path],
}  # fmt: skip
"""Option -> the arguments that give it a path."""


FEW_KINDS = (
    *("directory", "fifo", "link to a device", "unreadable", "one long line", "missing"),
    *("/dev/zero", "in a file", "nothing", "not utf-8"),
)
"""The kinds of files for the settings of a listener, which are read as the options are."""


def kinds_of(option: str) -> list[str]:
    """Return the kinds of files that an option is given."""
    return [*FEW_KINDS] if " of a " in option else [*KINDS, *PATHS]


def run_nothing(service: Service) -> int:
    """Take the place of `Service.run`."""
    return 0


def run(arguments: list[str], as_nobody: bool) -> tuple[int | str, str]:
    """Run the program in a process of its own; return its exit status and what it wrote to standard error."""
    port, (reading, writing) = free_port(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.closerange(3, 100)
            if as_nobody:
                os.setgroups([])
                os.setgid(NOBODY.pw_gid)
                os.setuid(NOBODY.pw_uid)
            # What a worker or the dashboard would import may not be readable.
            Service.run = run_nothing  # type: ignore[method-assign]
            code = blackhole(["run", "--host=127.0.0.1", f"--port={port}", *arguments])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    output, deadline, hangs = b"", time.monotonic() + TIMEOUT, False
    while not hangs:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            hangs = True
            os.kill(pid, signal.SIGKILL)
        elif data := os.read(reading, 65536):
            output += data
        else:
            break
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "hangs" if hangs else status, output.decode(errors="replace")


def main(folder: Path) -> None:
    for name in [*os.environ]:
        if name not in environment():
            del os.environ[name]
    os.environ.update(environment())
    issue(folder)
    b"".decode("utf-8-sig")  # so that the codec is loaded: nobody may not be allowed to read it
    for option, arguments in OPTIONS.items():
        for number, kind in enumerate(kinds_of(option)):
            path = PATHS.get(kind)
            if path is None:
                place = folder / f"{option.replace(' ', '-')}-{number}"
                KINDS[kind](place)
                path = str(place)
            as_nobody = kind == "unreadable" and os.geteuid() == 0
            end, output = run(arguments(path, str(folder)), as_nobody)
            print(json.dumps([option, kind, end, output]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
