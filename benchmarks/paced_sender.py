"""A paced sender: messages at an even rate over reused connections, with the time to each reply.

    python -m benchmarks.paced_sender PORT MESSAGES RATE [SESSIONS]

It sends one command at a time, like smtp-source. A message is due at a fixed time, whether or not earlier
ones are done (an open loop); it waits for a session only if all are busy. The sender never sleeps, because a
timer would send in bursts. It prints one line of JSON with times in seconds: `replies` {p50, p99, max} from
the write of a command to the read of its reply, `messages` {...} from the time when a message was due to its
last reply, and `rate`, the messages sent per second.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
from time import perf_counter

from benchmarks.pipelined_sender import connect

COMMANDS = (
    b"MAIL FROM:<foo@client.test>\r\n",
    b"RCPT TO:<foo@sink.test>\r\n",
    b"DATA\r\n",
    b"From: <foo@client.test>\r\nTo: <foo@sink.test>\r\n\r\nLa de da de da\r\n.\r\n",
)
TIMEOUT = 30.0


class Session:
    """A connection, and its position in a message."""

    __slots__ = ("due", "position", "sent", "socket")

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.position = 0
        self.due = self.sent = 0.0


def percentiles(times: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum."""
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "max": times[-1]}


def send(port: int, messages: int, rate: float, sessions: int) -> dict[str, object]:
    """Send `messages` at a rate of `rate` per second, and return the times."""
    pool = [Session(connect(port)) for _ in range(sessions)]
    busy = {
        session.socket.fileno(): session for session in pool
    }  # by descriptor; idle ones are in pool as well
    epoll = select.epoll()
    for fd in busy:
        epoll.register(fd, select.EPOLLIN)
    replies: list[float] = []
    whole: list[float] = []
    started = 0
    begun = last = perf_counter()
    while len(whole) < messages:
        now = perf_counter()
        while pool and started < messages and (due := begun + started / rate) <= now:
            session = pool.pop()
            session.due, session.position = due, 0
            session.sent = perf_counter()
            session.socket.send(COMMANDS[0])
            started += 1
        ready = epoll.poll(0)
        if ready:
            last = now
        elif now - last > TIMEOUT:
            raise SystemExit(f"no reply in {TIMEOUT:.0f} s")
        for fd, _ in ready:
            session = busy[fd]
            reply = session.socket.recv(512)
            now = perf_counter()
            replies.append(now - session.sent)
            session.position += 1
            if reply[:1] not in (b"2", b"3") or not reply.endswith(b"\n"):
                raise SystemExit(f"unexpected reply: {reply!r}")
            if session.position == len(COMMANDS):
                whole.append(now - session.due)
                pool.append(session)
            else:
                session.sent = perf_counter()
                session.socket.send(COMMANDS[session.position])
    took = perf_counter() - begun
    return {"rate": messages / took, "replies": percentiles(replies), "messages": percentiles(whole)}


if __name__ == "__main__":
    gc.disable()
    arguments = sys.argv[1:]
    print(
        json.dumps(
            send(int(arguments[0]), int(arguments[1]), float(arguments[2]), int((arguments[3:] or ["50"])[0]))
        )
    )
