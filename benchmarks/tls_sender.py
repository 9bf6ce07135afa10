"""A sender over TLS: a connection and a full handshake for each message.

    python -m benchmarks.tls_sender PORT MESSAGES starttls|implicit|handshake [SESSIONS]

`starttls` and `implicit` send a message; `handshake` closes after the handshake, for a server without SMTP.
No session is resumed. Each of SESSIONS processes has one connection at a time.
"""

from __future__ import annotations

import multiprocessing
import smtplib
import socket
import ssl
import sys

MESSAGE = "From: <foo@client.test>\r\nTo: <foo@sink.test>\r\n\r\nLa de da de da\r\n"
TIMEOUT = 30.0


def unverified_context() -> ssl.SSLContext:
    """Return a client context that accepts any certificate, since only the server is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def send_one(port: int, kind: str, context: ssl.SSLContext) -> None:
    """Open one connection and send a message. Raises what smtplib, ssl and socket raise."""
    if kind == "handshake":
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain, context.wrap_socket(plain):
            return
    client: smtplib.SMTP
    if kind == "implicit":
        client = smtplib.SMTP_SSL("127.0.0.1", port, "client.test", timeout=TIMEOUT, context=context)
    else:
        client = smtplib.SMTP("127.0.0.1", port, "client.test", timeout=TIMEOUT)
    with client:
        if kind == "starttls":
            client.starttls(context=context)
        client.sendmail("foo@client.test", ["foo@sink.test"], MESSAGE)


def send_many(port: int, messages: int, kind: str) -> None:
    """Send messages one after the other."""
    context = unverified_context()
    for _ in range(messages):
        send_one(port, kind, context)


def main(port: int, messages: int, kind: str, sessions: int) -> int:
    """Run the sending processes, and return the exit status."""
    shares = [messages // sessions + (number < messages % sessions) for number in range(sessions)]
    senders = [multiprocessing.Process(target=send_many, args=(port, share, kind)) for share in shares]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return int(any(sender.exitcode for sender in senders))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(int(arguments[0]), int(arguments[1]), arguments[2], int((arguments[3:] or ["8"])[0])))
