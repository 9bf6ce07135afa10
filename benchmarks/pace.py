"""A paced sender: messages at an even rate over reused connections, and how long each reply took.

    python -m benchmarks.pace PORT MESSAGES RATE [SESSIONS]

Speaks as smtp-source does, one command at a time. A message is due when its time has come, whether or not
those before it are done (an open loop); it waits for a session only if all are busy. It never sleeps, since a
timer would send in bursts. Prints one line of JSON, times in seconds: `replies` {p50, p99, max} from the
write of a command to the read of its reply, `messages` {...} from the moment a message was due to its last
reply, and `rate`, the messages a second that went out.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
from time import perf_counter

from benchmarks.groups import connect

COMMANDS = (
    b"MAIL FROM:<foo@client.test>\r\n",
    b"RCPT TO:<foo@sink.test>\r\n",
    b"DATA\r\n",
    b"From: <foo@client.test>\r\nTo: <foo@sink.test>\r\n\r\nLa de da de da\r\n.\r\n",
)
TIMEOUT = 30.0


class Session:
    """One connection and where it is in its message."""

    __slots__ = ("due", "position", "sent", "socket")

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.position = 0
        self.due = self.sent = 0.0


def percentiles(times: list[float]) -> dict[str, float]:
    """The median, the 99th percentile and the longest."""
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "max": times[-1]}


def send(port: int, messages: int, rate: float, sessions: int) -> dict[str, object]:
    """Send `messages`, `rate` of them a second."""
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
                raise SystemExit(f"not hoped for: {reply!r}")
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
