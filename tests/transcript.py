"""A transcript: one SMTP conversation as a text file, read, played and blessed.

The marks are explained in README.md beside this file. `play` speaks to a `Peer`, so
that the same file is played against a session without a socket, against a server on
a real socket, and against the real program.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

FOLDER = Path(__file__).parent / "transcripts"

PROPER = ("violations", "greeting", "message")
"""Folders whose transcripts have all that a client does wrong written down."""

CONNECTED = {"early-talk", "no-quit", "hung-up-in-body", "talk-after-421"}
"""Rules about the connection, of which a session knows nothing."""

PIPELINED = {"unoffered-pipelining", "pipelined-behind-last"}
"""Rules that are seen to be broken only where what is sent together arrives together."""

PATIENCE = 20.0
"""Seconds until a server that says nothing has failed; far more than a busy machine needs."""

SPECIAL = re.compile(r"<(closed|reset|silence|tls|after)(?: ([0-9.]+))?>")


class Mismatch(AssertionError):
    """The conversation went another way: file, line, what was heard and what was wanted."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a transcript that says or hears something."""

    line: int
    mark: str
    """`C` client sends, `S` server answers, `P` it answers part of a line, or the word of a special mark."""
    data: bytes = b""
    """What the client sends."""
    wanted: str = ""
    """The reply line or part of it, or the seconds of `after`."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation, and the options of the server it is held with."""

    path: Path
    options: tuple[str, ...]
    steps: tuple[Step, ...]
    whole: bool
    """The cut matters: each `C` mark must arrive in one piece."""
    scenario: str = ""
    """The text of a scenario file."""
    violations: tuple[str, ...] | None = None
    """What the client does wrong; None where nothing is said of it."""

    def __str__(self) -> str:
        return str(self.path.relative_to(FOLDER).with_suffix(""))

    @property
    def implicit(self) -> bool:
        """TLS comes before the greeting."""
        return self.steps[0].mark == "tls"

    @property
    def certified(self) -> bool:
        """The server has a certificate, so what EHLO offers depends on TLS."""
        return any("<cert>" in option for option in self.options)

    def argv(self, cert: str, key: str) -> list[str]:
        """The options as the command line has them; every server here is called mx.test."""
        filled = [option.replace("<cert>", cert).replace("<key>", key) for option in self.options]
        if self.scenario:
            file = Path(cert).with_name(f"{self.path.stem}.toml")
            file.write_text(self.scenario, "utf-8")
            filled.append(f"--scenario={file}")
        return ["--hostname=mx.test", *filled]


def sent(mark: str, text: str) -> bytes:
    """The bytes of a client's line: `C:` a line, `C|` raw with escapes, `C*` repeated."""
    if mark == "C:":
        return text.encode() + b"\r\n"
    if mark == "C*":
        times, _, text = text.partition(" ")
        return int(times) * sent("C|", text)
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def step(number: int, mark: str, text: str) -> Step:
    """One marked line as a `Step`."""
    if mark == "S|":
        return Step(number, "P", wanted=text)
    if mark != "S:":
        return Step(number, "C", data=sent(mark, text))
    if special := SPECIAL.fullmatch(text):
        return Step(number, special[1], wanted=special[2] or "")
    return Step(number, "S", wanted=text)


def read(path: Path) -> Transcript:
    """The transcript of a file; ValueError for a line without a mark."""
    options: list[str] = []
    scenario: list[str] = []
    violations: list[str] | None = None
    steps = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        mark, text = line[:2], line[3:]
        if line.startswith("%"):
            options += line[1:].split()
        elif line.startswith(">"):
            scenario.append(line[2:] + "\n")
        elif mark == "V:":
            violations = [*(violations or ()), *(rule for rule in text.split() if rule != "none")]
        elif mark in ("C:", "C|", "C*", "S:", "S|"):
            steps.append(step(number, mark, text))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}:{number}: no mark known in {line!r}")
    whole = "<whole>" in options
    kept = tuple(option for option in options if option != "<whole>")
    wrong = tuple(violations) if violations is not None else () if path.parent.name in PROPER else None
    return Transcript(path, kept, tuple(steps), whole, "".join(scenario), wrong)


def every() -> list[Transcript]:
    """All transcripts, in the order of their names."""
    return [read(path) for path in sorted(FOLDER.glob("*/*.txt"))]


def matches(heard: str, wanted: str) -> bool:
    """Whether a reply is what an `S:` line says: to the letter, or read as a pattern."""
    return heard == wanted or fnmatchcase(heard, wanted.replace("...", "*"))


class Peer(Protocol):
    """The other end of a conversation."""

    timed: bool
    """Waits are noted, not spent, so a wait nobody asked for is seen."""

    def send(self, data: list[bytes]) -> None:
        """Send what the client says up to the next reply it waits for."""

    def hear(self) -> tuple[str, float] | None:
        """The next reply line and the seconds since the client last spoke; None when nothing comes."""

    def part(self, size: int) -> str:
        """So many octets of a line, or as many as come; the rest of what comes is left."""

    def closed(self) -> bool:
        """Nothing more is heard, because the server hung up."""

    def reset(self) -> bool:
        """Nothing more is heard, because the server broke the connection off."""

    def silent(self) -> bool:
        """Nothing is heard, and the connection is still there."""

    def secure(self) -> None:
        """Shake hands."""


class Wire:
    """A peer at the other end of a real socket, spoken to line by line."""

    timed = False

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        # Taken before the server can begin to wait: what is measured is never too short.
        self.spoke = time.monotonic()
        self.socket: socket.socket = socket.create_connection(address, PATIENCE)
        self.context = context
        self.buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: list[bytes]) -> None:
        self.spoke = time.monotonic()
        for piece in data:
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                return  # hung up in the middle of the group; the reply says why

    def hear(self) -> tuple[str, float] | None:
        while b"\n" not in self.buffer:
            try:
                data = self.socket.recv(65536)
            except (TimeoutError, ConnectionResetError, ssl.SSLEOFError):
                data = b""
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return spelt(line + b"\n"), time.monotonic() - self.spoke

    def part(self, size: int) -> str:
        while len(self.buffer) < size and (data := self.socket.recv(65536)):
            self.buffer += data
        part, self.buffer = self.buffer[:size], self.buffer[size:]
        return spelt(part)

    def closed(self) -> bool:
        try:
            return not self.buffer and not self.socket.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def reset(self) -> bool:
        # Under TLS the library may take a reset for an end, so this asks the socket below it.
        with socket.socket(fileno=os.dup(self.socket.fileno())) as below:
            below.settimeout(PATIENCE)
            try:
                while below.recv(65536):
                    pass
            except ConnectionResetError:
                return not self.buffer
        return False

    def silent(self) -> bool:
        self.socket.settimeout(0.2)
        try:
            self.socket.recv(1)
        except TimeoutError:
            return not self.buffer
        finally:
            self.socket.settimeout(PATIENCE)
        return False

    def secure(self) -> None:
        self.spoke = time.monotonic()
        self.socket = self.context.wrap_socket(self.socket, server_hostname="mx.test")


def spelt(line: bytes) -> str:
    """A reply line without its CRLF; anything else at its end stays visible."""
    return line.removesuffix(b"\r\n").decode("utf-8", "backslashreplace")


def runs(steps: tuple[Step, ...]) -> Iterator[list[Step]]:
    """The steps, with what the client says in one breath put together."""
    run: list[Step] = []
    for item in steps:
        if run and (item.mark != "C" or run[-1].mark != "C"):
            yield run
            run = []
        run.append(item)
    yield run


def play(transcript: Transcript, peer: Peer) -> None:
    """Hold the conversation; raises `Mismatch` where it goes another way."""
    __tracebackhide__ = True
    late = 0.0
    for run in runs(transcript.steps):
        item = run[0]
        if item.mark == "C":
            if peer.timed and (more := peer.hear()) is not None:
                raise mismatch(transcript, item, more, "nothing more")
            peer.send([said.data for said in run])
        elif item.mark == "tls":
            peer.secure()
        elif item.mark == "after":
            late = float(item.wanted)
        elif item.mark in ENDS:
            wanted, ended = ENDS[item.mark]
            if not ended(peer):
                raise mismatch(transcript, item, peer.hear(), wanted)
        elif item.mark == "P":
            if (part := peer.part(len(item.wanted))) != item.wanted:
                raise mismatch(transcript, item, (part, 0.0), repr(item.wanted))
        else:
            heard = peer.hear()
            if heard is None or not matches(heard[0], item.wanted):
                raise mismatch(transcript, item, heard, repr(item.wanted))
            if heard[1] < late or (peer.timed and heard[1] and not late):
                raise mismatch(transcript, item, heard, f"it after {late:g} seconds")
            late = 0.0
    if peer.timed:
        if (more := peer.hear()) is not None:
            raise mismatch(transcript, item, more, "nothing more")
        if item.mark not in ENDS and peer.closed():
            raise mismatch(transcript, item, None, "the connection still open")


ENDS: dict[str, tuple[str, Callable[[Peer], bool]]] = {
    "closed": ("the connection closed", lambda peer: peer.closed()),
    "reset": ("the connection broken off", lambda peer: peer.reset()),
    "silence": ("nothing more, and no end", lambda peer: peer.silent()),
}
"""Marks of how it ends: what is wanted, and whether it is so."""


def mismatch(transcript: Transcript, item: Step, heard: tuple[str, float] | None, wanted: str) -> Mismatch:
    """What went wrong, in the words of whoever has to mend it."""
    said = "nothing" if heard is None else f"{heard[0]!r} after {heard[1]:.2f} seconds"
    return Mismatch(f"{transcript.path}:{item.line}:\n  heard  {said}\n  wanted {wanted}")


def bless(transcript: Transcript, peer: Peer) -> None:
    """Rewrite the `S:` lines that do not match with what the peer says; the rest stays as it is."""
    source = transcript.path.read_text("utf-8").splitlines()
    result: list[str] = []
    done = 0
    for run in runs(transcript.steps):
        item = run[0]
        if item.mark not in ("S", "after"):
            result += rest(peer)
        last = run[-1].line
        result += source[done : last - 1]
        done = last
        if item.mark != "S":
            result.append(source[last - 1])
        elif (heard := peer.hear()) is not None:
            result.append(source[last - 1] if matches(heard[0], item.wanted) else f"S: {heard[0]}")
        if item.mark == "C":
            peer.send([said.data for said in run])
        elif item.mark == "tls":
            peer.secure()
    result += rest(peer)
    if item.mark not in ENDS and peer.closed():
        result.append("S: <closed>")
    transcript.path.write_text("\n".join(result + source[done:]) + "\n", "utf-8")


def rest(peer: Peer) -> list[str]:
    """What the peer says and nobody asked for, as lines of a transcript."""
    return [f"S: {line}" for line, _ in iter(peer.hear, None)]
