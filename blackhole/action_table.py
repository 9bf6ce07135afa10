"""The action table: one row for each word of the command line that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

BY_PIDFILE: Final = (
    "The server is found by its pidfile. Unless pid is set, --port or --listen chooses the one that listens "
    "there."
)
RUNNING: Final = f"{BY_PIDFILE} Without them, it is the only one that runs on this machine."

CHOICE: Final = ("pid", "conf", "host", "port", "listen")
"""The options by which a server is found."""


class ActionWord(NamedTuple):
    """An action. The options are those that make a difference to it."""

    word: str
    help: str
    """What the action does: one phrase."""
    notes: str = ""
    """Further sentences for its own --help."""
    options: tuple[str, ...] = ()
    """Names in the option table; none for an action that takes all of them."""
    takes_options: bool = True
    """Whether it takes options at all."""
    statuses: Mapping[int, str] = {}
    """Exit status -> its meaning, without those of every action."""


ACTION_TABLE: Final = (
    ActionWord(
        "run",
        "run in the foreground until Ctrl-C; the default",
        "Lines for the operator and the log go to standard error. There is no pidfile unless pid names "
        "one. At its end the server prints the figures of the run.",
    ),
    ActionWord(
        "start",
        "detach from the terminal and run in the background (also: --daemon)",
        "It returns when the workers accept connections.",
        statuses={
            0: "the server runs, perhaps since before",
            75: "a server runs already, with other options, or is just starting",
        },
    ),
    ActionWord(
        "stop",
        "stop a server and wait until it has exited",
        f"{BY_PIDFILE} What is left two seconds after drain_timeout is killed.",
        options=(*CHOICE, "drain_timeout"),
        statuses={0: "the server has stopped, or did not run"},
    ),
    ActionWord("restart", "stop, then start", "The configuration is checked first."),
    ActionWord(
        "reload",
        "read the conf file, scenarios and certificates again; no connection is lost",
        f"{BY_PIDFILE} It reads its own command line, its own environment and its conf file again, so "
        "reload takes no other options: change the conf file, or restart.",
        options=CHOICE,
        statuses={0: "the signal was sent; the log says how the reload ended", 7: "no server runs"},
    ),
    ActionWord(
        "reopen",
        "open the log file again, after it was rotated",
        BY_PIDFILE,
        options=CHOICE,
        statuses={0: "the signal was sent", 7: "no server runs"},
    ),
    ActionWord(
        "status",
        "show the state and counters of the server; exits with 0 if it runs, 1 if it died, else 3",
        RUNNING,
        options=(*CHOICE, "json", "scope", "dashboard"),
        statuses={0: "it runs, or is starting", 1: "it died and left its pidfile", 3: "it does not run"},
    ),
    ActionWord(
        "check",
        "connect as a client does; exits with 0 if the server greets within 5 seconds, else 1",
        "Give it the options that say where the server listens.",
        options=("host", "port", "listen", "mode", "delay", "ssl_cert", "ssl_port", "conf"),
        statuses={0: "the server greets", 1: "it does not"},
    ),
    ActionWord(
        "report",
        "show what senders did wrong; see --fail-on",
        RUNNING,
        options=(*CHOICE, "format", "json", "fail_on", "scope", "namespace", "dashboard"),
        statuses={
            0: "nothing that fail_on counts was found",
            1: "something was found, or nothing was inspected for it",
            7: "no server runs",
        },
    ),
    ActionWord(
        "top",
        "show the current rates, one line a second",
        RUNNING,
        options=(*CHOICE, "scope", "dashboard"),
        statuses={0: "Ctrl-C", 7: "no server runs", 69: "the server has ended"},
    ),
    ActionWord(
        "recent",
        "show the last transactions of a server with --recent; see --follow and --conversation",
        f"{RUNNING} With json, it prints an object a line.",
        options=(*CHOICE, "json", "follow", "conversation", "namespace"),
        statuses={
            0: "all were shown, or Ctrl-C",
            7: "no server runs",
            69: "the server has ended",
            78: "the server keeps no transactions",
        },
    ),
    ActionWord(
        "authority",
        "print the authority of the certificates that the server has issued, in PEM",
        f"{RUNNING} The server issues certificates with ssl_cert = auto, dashboard_cert = auto, and for the "
        "TLS menu. A client that trusts the authority accepts the good one.",
        options=CHOICE,
        statuses={7: "no server runs", 78: "the server has issued no certificates"},
    ),
    ActionWord(
        "explain",
        "show which rule of a scenario would answer in a given case, and why",
        options=("scenario", "mode", "listen", "conf"),
    ),
    ActionWord(
        "help",
        "show all options and actions, or with a second word the help of one action",
        takes_options=False,
    ),
    ActionWord("version", "show versions: Blackhole, Tornado, Python, OpenSSL", takes_options=False),
)
"""All actions, in the order of --help."""

ACTION_HELP: Final = {action.word: action.help for action in ACTION_TABLE}
"""Every action word and what it does."""

ACTION_BY_WORD: Final = {action.word: action for action in ACTION_TABLE}
