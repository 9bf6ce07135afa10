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

RESET = struct.pack("ii", 1, 0)


@dataclass
class Heard:
    connections: int = 0
    octets: int = 0
    findings: list[bytes] = field(default_factory=list)
    """What was no reply."""


def visit(address: tuple[str, int], dice: Random, heard: Heard) -> None:
    """One connection."""
    said = generate(dice)
    answered = b""
    whole = False
    with suppress(OSError), socket.create_connection(address, 10) as client:
        heard.connections += 1
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in cut(dice, said)[:20]:
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
