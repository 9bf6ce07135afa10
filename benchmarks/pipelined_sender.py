"""A pipelining sender: MAIL, ten RCPT and DATA in one packet, the body and its dot in another (RFC 2920).

    python -m benchmarks.pipelined_sender PORT MESSAGES [SESSIONS]

It makes two writes and two reads per message, with little Python between them, so that the server is the
bottleneck. It exits with 1 at the first unexpected reply.
"""

from __future__ import annotations

import gc
import select
import socket
import sys

RECIPIENTS = 10
GROUP = (
    b"MAIL FROM:<foo@client.test>\r\n"
    + b"".join(b"RCPT TO:<user%d@sink.test>\r\n" % number for number in range(RECIPIENTS))
    + b"DATA\r\n"
)
BODY = b"From: <foo@client.test>\r\nTo: <user0@sink.test>\r\n\r\nLa de da de da\r\n.\r\n"
TIMEOUT = 30.0


def connect(port: int) -> socket.socket:
    """Return a connection after the greeting and EHLO."""
    client = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    replies = client.makefile("rb")
    if not replies.readline().startswith(b"220 "):
        raise SystemExit("no 220 greeting")
    client.sendall(b"EHLO client.test\r\n")
    while not (line := replies.readline()).startswith(b"250 "):
        if not line.startswith(b"250-"):
            raise SystemExit(f"EHLO: {line!r}")
    return client


def send(port: int, messages: int, sessions: int) -> None:
    """Send `messages` over `sessions` concurrent connections."""
    clients = {client.fileno(): client for client in (connect(port) for _ in range(min(sessions, messages)))}
    epoll = select.epoll()
    missing = dict.fromkeys(clients, RECIPIENTS + 2)  # replies that a session still expects
    started = len(clients)
    for fd, client in clients.items():
        epoll.register(fd, select.EPOLLIN)
        client.send(GROUP)
    done = 0
    while done < messages:
        ready = epoll.poll(TIMEOUT)
        if not ready:
            raise SystemExit(f"no reply in {TIMEOUT:.0f} s, {done} messages were accepted")
        for fd, _ in ready:
            client = clients[fd]
            replies = client.recv(65536)
            if not replies or b"\n5" in replies or b"\n4" in replies or replies[:1] not in b"23":
                raise SystemExit(f"unexpected replies: {replies!r}")
            missing[fd] -= replies.count(b"\n")
            if missing[fd] == 0:  # the group was answered
                client.send(BODY)
                missing[fd] = -1
            elif missing[fd] == -2:  # the message was
                done += 1
                if started < messages:
                    started += 1
                    client.send(GROUP)
                    missing[fd] = RECIPIENTS + 2
    for client in clients.values():
        client.send(b"QUIT\r\n")
        client.recv(512)


if __name__ == "__main__":
    gc.disable()
    send(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 20)
