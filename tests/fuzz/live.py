"""Noise over sockets, for the real program: random inputs, random cuts, random ends."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.inputs import VALID, cut, generate
from tests.fuzz.kinds import FLOOD, HEARD, SECRETS, TALK

WORDS = HEARD + FLOOD + SECRETS + TALK

OPTIONS = (
    (),
    ("--auth=any", "--auth_plaintext", "--scenario=profile:greylist", "--strict"),
    ("--public", "--trusted=192.0.2.0/24", "--client_connections=0", "--client_connection_rate=0"),
)
"""Ways to start the program. Nobody is kept out, and no reply is cut off."""

RESET = struct.pack("ii", 1, 0)


@dataclass
class Heard:
    connections: int = 0
    octets: int = 0
    findings: list[bytes] = field(default_factory=list)
    """What was no reply."""


def visit(address: tuple[str, int], dice: Random, heard: Heard) -> None:
    """One connection."""
    words = generate(dice, WORDS)
    answered = b""
    whole = False
    with suppress(OSError), socket.create_connection(address, 10) as client:
        heard.connections += 1
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in cut(dice, words)[:20]:
            client.sendall(piece)
            heard.octets += len(piece)
        if dice.random() < 0.3:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
        else:
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                answered += data
            whole = True
    if whole and not VALID.fullmatch(answered):
        heard.findings.append(answered)


def run(address: tuple[str, int], seconds: float, seed: int, threads: int = 4) -> Heard:
    """Noise for so long, from several threads."""
    heard = [Heard() for _ in range(threads)]
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        dice = Random(seed * 31 + number)
        while time.monotonic() < until:
            visit(address, dice, heard[number])

    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in crew:
        one.start()
    for one in crew:
        one.join()
    return Heard(
        sum(one.connections for one in heard),
        sum(one.octets for one in heard),
        [finding for one in heard for finding in one.findings],
    )
