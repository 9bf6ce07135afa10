"""The last transactions as lines for a terminal, or as JSON (`blackhole recent`)."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TextIO

from blackhole.metrics.findings import plural
from blackhole.metrics.transaction_reader import TransactionFilter, TransactionPage, TransactionReader
from blackhole.metrics.transactions import Transaction
from blackhole.settings import OperatorError, Settings

READ_INTERVAL: Final = 0.1
"""Seconds after which the records are read again."""

READ_AT_ONCE: Final = 1000
"""Transactions that are read at once."""

SHOWN_AT_FIRST: Final = 10
"""Transactions that are shown before those that are followed."""


def show(pid: int, settings: Settings) -> int:
    """Print the last transactions of a running server, and return the exit status.

    Raises OperatorError if it keeps none, or when it ends while it is followed.
    """
    reader = TransactionReader.of(pid)
    wanted = TransactionFilter(namespace=settings.namespace.lower())
    form = json_line if settings.json else conversation if settings.conversation else summary
    try:
        if not settings.follow:
            _print(reader.newest(reader.records.kept, wanted).transactions, form, sys.stdout)
            return os.EX_OK
        _follow(reader, pid, form, wanted)
    except BrokenPipeError:  # the reader has ended, as in `blackhole recent | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return os.EX_OK
    except KeyboardInterrupt:
        return os.EX_OK
    raise OperatorError(f"pid {pid} has ended", os.EX_UNAVAILABLE)


def _follow(
    reader: TransactionReader, pid: int, form: Callable[[Transaction], str], wanted: TransactionFilter
) -> None:
    """Print transactions as they end, until the server does. Raises KeyboardInterrupt."""
    # Blocked and waited for, so that no line is cut off by Ctrl-C.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    found: TransactionPage = reader.newest(SHOWN_AT_FIRST, wanted)
    alive = True
    while True:
        _print(found.transactions, form, sys.stdout)
        if not found.more:
            if not alive:
                return
            if signal.sigtimedwait((signal.SIGINT,), READ_INTERVAL) is not None:
                raise KeyboardInterrupt
            alive = os.path.exists(f"/proc/{pid}")
        found = reader.since(found.cursor, READ_AT_ONCE, wanted)


def _print(transactions: Iterable[Transaction], form: Callable[[Transaction], str], out: TextIO) -> None:
    for one in transactions:
        out.write(f"{form(one)}\n")
    out.flush()


def json_line(one: Transaction) -> str:
    """Return a transaction as JSON in one line."""
    return json.dumps(one.as_dict())


def summary(one: Transaction) -> str:
    r"""Return a transaction in one line, and its violations below it.

    What a client sent is shown in ASCII: a terminal would obey its control characters.
    """
    people = ", ".join(f"<{shown(address)}>" for address in one.recipients or one.refused_recipients)
    refused = ", ".join(f"<{shown(address)}>" for address in one.refused_recipients)
    further = one.recipient_count - len(one.recipients)
    sender = "no sender" if one.sender is None else f"<{shown(one.sender)}>"
    fields = (f'{shown(name)} "{shown(value)}"' for name, value in one.fields.items())
    words = (
        f"{sender} to {people or 'nobody'}{f' and {further} more' if further > 0 else ''}"
        f"{f', refused {refused}' if one.recipients and refused else ''}",
        plural(one.size, "octet") if one.size else "",
        shown(one.reply.splitlines()[-1]) if one.reply else "no reply",
        shown(_decider(one.rule)),
        shown(one.tls),
        *fields,
    )
    head = f"{clock_time(one.time)} {shown(one.client)} {one.outcome}: {'; '.join(filter(None, words))}"
    return "\n".join((head, *_violation_lines(one)))


def _decider(rule: str) -> str:
    """Return what decided: the mode or the field of a message as they are, and a rule as such."""
    return rule if not rule or rule.startswith(("mode ", "X-Blackhole-Mode: ")) else f"rule {rule}"


def _violation_lines(one: Transaction) -> Iterator[str]:
    for violation in one.violations:
        line = f": {shown(violation.line)}" if violation.line else ""
        yield f"    violation {shown(violation.name)}{line}"


def conversation(one: Transaction) -> str:
    """Return a transaction with each of its commands and replies."""
    lines = [summary(one)]
    for position, exchange in enumerate(one.exchanges):
        if one.left_out and position == one.left_out_at:
            lines.append(f"    ... {plural(one.left_out, 'command')} left out ...")
        if exchange.command:
            lines.append(f"    C: {shown(exchange.command)}")
        elif exchange.phase == ".":
            lines.append(f"    C: (message of {plural(one.size, 'octet')})")
        notes = _decider(exchange.rule), exchange.fault and f"then {exchange.fault}"
        note = ", ".join(filter(None, notes))
        note = f"   [{shown(note)}]" if note else ""
        replies = exchange.reply.splitlines() or ["(no reply)"]
        lines += [f"    S: {shown(reply)}" for reply in replies[:-1]]
        lines.append(f"    S: {shown(replies[-1])}{note}")
    return "\n".join(lines)


def clock_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as local time, with milliseconds and the zone."""
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(seconds % 1 * 1000):03d}{zone}"


CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
"""Control characters as escapes."""


def shown(text: str) -> str:
    """Return a text in printable ASCII, with escapes for everything else."""
    return text.translate(CONTROLS).encode("ascii", "backslashreplace").decode()
