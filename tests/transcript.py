"""A transcript: one SMTP conversation as a text file, which is read, played and blessed.

README.md in this folder explains the marks. `play` plays a transcript with a `Peer`: a session without a
socket, a server on a real socket, or the real program.
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

TRANSCRIPTS_FOLDER = Path(__file__).parent / "transcripts"

FOLDERS_WITH_VIOLATIONS = ("violations", "greeting", "message")
"""The folders whose transcripts list all violations of the client."""

CONNECTION_VIOLATIONS = {"early-talk", "no-quit", "hung-up-in-body", "talk-after-421"}
"""Violations that the connection finds; a session without a socket does not see them."""

PIPELINING_VIOLATIONS = {"unoffered-pipelining", "pipelined-behind-last"}
"""Violations that are found only if what the client sends together arrives together."""

REPLY_TIMEOUT = 20.0
"""Seconds that a server may take to reply, far more than a busy machine needs."""

SPECIAL_MARK = re.compile(r"<(closed|reset|silence|tls|after)(?: ([0-9.]+))?>")


class Mismatch(AssertionError):
    """The server did not reply as the transcript says. The message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a transcript that sends or expects something."""

    line: int
    mark: str
    """`C`: the client sends, `S`: a reply line, `P`: part of a reply line, or the word of a special mark."""
    data: bytes = b""
    """What the client sends."""
    expected: str = ""
    """The reply line, or the part of it, or the seconds of `after`."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation, and the options of the server that takes part in it."""

    path: Path
    options: tuple[str, ...]
    steps: tuple[Step, ...]
    whole_segments: bool
    """Whether the data of each `C` mark must arrive in one piece."""
    scenario: str = ""
    """The text of the scenario file of the server."""
    violations: tuple[str, ...] | None = None
    """The violations of the client; None if the transcript does not list them."""

    def __str__(self) -> str:
        return str(self.path.relative_to(TRANSCRIPTS_FOLDER).with_suffix(""))

    @property
    def implicit_tls(self) -> bool:
        """Whether the server uses implicit TLS."""
        return self.steps[0].mark == "tls"

    @property
    def has_certificate(self) -> bool:
        """Whether the server has a certificate, and so offers STARTTLS."""
        return any("<cert>" in option for option in self.options)

    def argv(self, cert: str, key: str) -> list[str]:
        """Return the options for the command line. The name of every server is mx.test."""
        options_given = [option.replace("<cert>", cert).replace("<key>", key) for option in self.options]
        if self.scenario:
            file = Path(cert).with_name(f"{self.path.stem}.toml")
            file.write_text(self.scenario, "utf-8")
            options_given.append(f"--scenario={file}")
        return ["--hostname=mx.test", *options_given]


def octets_of(mark: str, text: str) -> bytes:
    """Return what a client line sends: `C:` a line, `C|` octets with escapes, `C*` these repeated."""
    if mark == "C:":
        return text.encode() + b"\r\n"
    if mark == "C*":
        times, _, text = text.partition(" ")
        return int(times) * octets_of("C|", text)
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def step_of(number: int, mark: str, text: str) -> Step:
    """Return the step of a line with a mark."""
    if mark == "S|":
        return Step(number, "P", expected=text)
    if mark != "S:":
        return Step(number, "C", data=octets_of(mark, text))
    if special := SPECIAL_MARK.fullmatch(text):
        return Step(number, special[1], expected=special[2] or "")
    return Step(number, "S", expected=text)


def read_transcript(path: Path) -> Transcript:
    """Read a transcript from a file. Raises ValueError for a line without a known mark."""
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
            steps.append(step_of(number, mark, text))
        elif line and not line.startswith("#"):
            raise ValueError(f"{path}:{number}: unknown mark: {line!r}")
    whole_segments = "<whole>" in options
    server_options = tuple(option for option in options if option != "<whole>")
    listed = violations is not None or path.parent.name in FOLDERS_WITH_VIOLATIONS
    expected_violations = tuple(violations or ()) if listed else None
    return Transcript(
        path, server_options, tuple(steps), whole_segments, "".join(scenario), expected_violations
    )


def all_transcripts() -> list[Transcript]:
    """Return all transcripts in the order of their names."""
    return [read_transcript(path) for path in sorted(TRANSCRIPTS_FOLDER.glob("*/*.txt"))]


def matches(received: str, expected: str) -> bool:
    """Whether a reply is that of an `S:` line, literally or as a pattern."""
    return received == expected or fnmatchcase(received, expected.replace("...", "*"))


class Peer(Protocol):
    """The server in a conversation."""

    simulates_time: bool
    """Whether delays are simulated. Then a delay or a reply that the transcript lacks is an error."""

    def send(self, data: list[bytes]) -> None:
        """Send the data of the client up to the next reply that it waits for."""

    def read_line(self) -> tuple[str, float] | None:
        """Return the next reply line and the seconds since the client last sent something.

        Return None if no line arrives.
        """

    def read_octets(self, size: int) -> str:
        """Return this many octets of a line, or fewer if the server closes the connection."""

    def is_closed(self) -> bool:
        """Whether the server closes the connection and sends nothing more."""

    def is_reset(self) -> bool:
        """Whether the server resets the connection and sends nothing more."""

    def is_silent(self) -> bool:
        """Whether the server sends nothing and keeps the connection open."""

    def start_tls(self) -> None:
        """Perform a TLS handshake."""


class SocketPeer:
    """A server on a real socket."""

    simulates_time = False

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        # The server cannot begin to wait earlier, so a measured time is never too short.
        self.last_sent = time.monotonic()
        self.socket: socket.socket = socket.create_connection(address, REPLY_TIMEOUT)
        self.context = context
        self.buffer = b""

    def __enter__(self) -> SocketPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: list[bytes]) -> None:
        self.last_sent = time.monotonic()
        for piece in data:
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                return  # closed while the client was sending; the reply explains it

    def read_line(self) -> tuple[str, float] | None:
        while b"\n" not in self.buffer:
            try:
                data = self.socket.recv(65536)
            except (TimeoutError, ConnectionResetError, ssl.SSLEOFError):
                data = b""
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return printable(line + b"\n"), time.monotonic() - self.last_sent

    def read_octets(self, size: int) -> str:
        while len(self.buffer) < size and (data := self.socket.recv(65536)):
            self.buffer += data
        octets, self.buffer = self.buffer[:size], self.buffer[size:]
        return printable(octets)

    def is_closed(self) -> bool:
        try:
            return not self.buffer and not self.socket.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def is_reset(self) -> bool:
        # Under TLS the library may report a reset as an end, so this reads from the socket below it.
        with socket.socket(fileno=os.dup(self.socket.fileno())) as below:
            below.settimeout(REPLY_TIMEOUT)
            try:
                while below.recv(65536):
                    pass
            except ConnectionResetError:
                return not self.buffer
        return False

    def is_silent(self) -> bool:
        self.socket.settimeout(0.2)
        try:
            self.socket.recv(1)
        except TimeoutError:
            return not self.buffer
        finally:
            self.socket.settimeout(REPLY_TIMEOUT)
        return False

    def start_tls(self) -> None:
        self.last_sent = time.monotonic()
        self.socket = self.context.wrap_socket(self.socket, server_hostname="mx.test")


def printable(line: bytes) -> str:
    """Return a reply line as text without its CRLF. Any other line ending stays visible."""
    return line.removesuffix(b"\r\n").decode("utf-8", "backslashreplace")


def groups(steps: tuple[Step, ...]) -> Iterator[list[Step]]:
    """Yield steps in groups: what the client sends without waiting for a reply together, the others alone."""
    group: list[Step] = []
    for step in steps:
        if group and (step.mark != "C" or group[-1].mark != "C"):
            yield group
            group = []
        group.append(step)
    yield group


def play(transcript: Transcript, peer: Peer) -> None:
    """Play a transcript with a peer. Raises `Mismatch`."""
    __tracebackhide__ = True
    minimum_wait = 0.0
    for group in groups(transcript.steps):
        first = group[0]
        if first.mark == "C":
            if peer.simulates_time and (extra := peer.read_line()) is not None:
                raise mismatch(transcript, first, extra, "nothing more")
            peer.send([step.data for step in group])
        elif first.mark == "tls":
            peer.start_tls()
        elif first.mark == "after":
            minimum_wait = float(first.expected)
        elif first.mark in END_MARKS:
            expected, has_ended = END_MARKS[first.mark]
            if not has_ended(peer):
                raise mismatch(transcript, first, peer.read_line(), expected)
        elif first.mark == "P":
            if (octets := peer.read_octets(len(first.expected))) != first.expected:
                raise mismatch(transcript, first, (octets, 0.0), repr(first.expected))
        else:
            received = peer.read_line()
            if received is None or not matches(received[0], first.expected):
                raise mismatch(transcript, first, received, repr(first.expected))
            if received[1] < minimum_wait or (peer.simulates_time and received[1] and not minimum_wait):
                raise mismatch(transcript, first, received, f"it after {minimum_wait:g} seconds")
            minimum_wait = 0.0
    if peer.simulates_time:
        if (extra := peer.read_line()) is not None:
            raise mismatch(transcript, first, extra, "nothing more")
        if first.mark not in END_MARKS and peer.is_closed():
            raise mismatch(transcript, first, None, "the connection to stay open")


END_MARKS: dict[str, tuple[str, Callable[[Peer], bool]]] = {
    "closed": ("the connection to be closed", lambda peer: peer.is_closed()),
    "reset": ("the connection to be reset", lambda peer: peer.is_reset()),
    "silence": ("silence on an open connection", lambda peer: peer.is_silent()),
}
"""The marks for the end of a conversation: what they expect, and a check of it."""


def mismatch(
    transcript: Transcript, first: Step, received: tuple[str, float] | None, expected: str
) -> Mismatch:
    """Return the exception for a step that got something else."""
    got = "nothing" if received is None else f"{received[0]!r} after {received[1]:.2f} seconds"
    return Mismatch(f"{transcript.path}:{first.line}:\n  got      {got}\n  expected {expected}")


def bless(transcript: Transcript, peer: Peer) -> None:
    """Rewrite the `S:` lines that do not match what the peer sends. All other lines stay as they are."""
    source = transcript.path.read_text("utf-8").splitlines()
    result: list[str] = []
    done = 0
    for group in groups(transcript.steps):
        first = group[0]
        if first.mark not in ("S", "after"):
            result += unexpected_lines(peer)
        last = group[-1].line
        result += source[done : last - 1]
        done = last
        if first.mark != "S":
            result.append(source[last - 1])
        elif (received := peer.read_line()) is not None:
            result.append(source[last - 1] if matches(received[0], first.expected) else f"S: {received[0]}")
        if first.mark == "C":
            peer.send([step.data for step in group])
        elif first.mark == "tls":
            peer.start_tls()
    result += unexpected_lines(peer)
    if first.mark not in END_MARKS and peer.is_closed():
        result.append("S: <closed>")
    transcript.path.write_text("\n".join(result + source[done:]) + "\n", "utf-8")


def unexpected_lines(peer: Peer) -> list[str]:
    """Return reply lines that the transcript lacks, as its lines."""
    return [f"S: {line}" for line, _ in iter(peer.read_line, None)]
