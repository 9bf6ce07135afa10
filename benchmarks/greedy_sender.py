"""A greedy sender: a million pipelined NOOPs, or a message that does not end.

    python -m benchmarks.greedy_sender PORT AMOUNT noops|data SECONDS

AMOUNT is the number of NOOPs or of MiB; it stops after SECONDS at the latest. It prints an empty line before
it begins, and one line of JSON at the end: the `amount` that was done, and the `seconds` that it took.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from benchmarks.pipelined_sender import connect

BATCH = 1000
NOOPS = b"NOOP\r\n" * BATCH
LINE = b"X" * 78 + b"\r\n"
PIECE = LINE * (65536 // len(LINE))
MEBIBYTE = 1 << 20


def noops(client: socket.socket, amount: int, end: float) -> int:
    """Send NOOPs as fast as the server reads them, and return how many were answered."""
    client.setblocking(False)
    unsent, answered, rest = amount, 0, b""
    while answered < amount and time.monotonic() < end:
        wanted = [client] if unsent > 0 or rest else []
        readable, writable, _ = select.select([client], wanted, [], 1.0)
        if writable:
            if not rest:
                rest = NOOPS[: 6 * unsent]
                unsent -= BATCH
            rest = rest[client.send(rest) :]
        if readable:
            replies = client.recv(1 << 18)
            if not replies:
                raise SystemExit(f"connection closed after {answered} NOOPs")
            answered += replies.count(b"\n")
    return answered


def data(client: socket.socket, amount: int, end: float) -> int:
    """Send a body as fast as the server reads it, and return how many MiB were sent."""
    for command in (b"MAIL FROM:<foo@client.test>\r\n", b"RCPT TO:<foo@sink.test>\r\n", b"DATA\r\n"):
        client.sendall(command)
        if (reply := client.recv(512))[:1] not in (b"2", b"3"):
            raise SystemExit(f"unexpected reply: {reply!r}")
    sent = 0
    while sent < amount * MEBIBYTE and time.monotonic() < end:
        client.sendall(PIECE)
        sent += len(PIECE)
    return sent // MEBIBYTE


if __name__ == "__main__":
    port, amount, kind, seconds = sys.argv[1:]
    flooding = connect(int(port))
    print(flush=True)
    begun = time.monotonic()
    done = {"noops": noops, "data": data}[kind](flooding, int(amount), begun + float(seconds))
    print(json.dumps({"amount": done, "seconds": time.monotonic() - begun}))
