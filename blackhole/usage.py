"""Texts for the operator, made from the option table: --help, --version, --print-config, the sample conf."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from blackhole import __version__, copies
from blackhole.action_table import ACTION_BY_WORD, ACTION_HELP, ActionWord
from blackhole.compiled_modules import is_compiled
from blackhole.conf_file import quoted
from blackhole.option_table import LISTENER_ROWS, OPTION_BY_NAME, OPTIONS, Option
from blackhole.options import EXPLAIN_OPTIONS, REQUEST_FLAGS, UNUSED
from blackhole.settings import MODES, Listener, Settings
from blackhole.tls_menu import AUTO_CERTIFICATE
from blackhole.values import value_text

SIGNALS: Final = {
    "TERM": "let open sessions finish their messages, then stop",
    "INT, QUIT": "stop at once",
    "HUP": "reload",
    "USR1": "reopen the log file, after it was rotated",
    "TTIN, TTOU": "add a worker, remove a worker",
}
"""The signals that the master takes, and what each does."""

EXAMPLES: Final = {
    "blackhole --port 2525": "accept and discard mail; needs neither root nor a conf file",
    "blackhole --conf /etc/blackhole.conf start": "start a detached server",
    "blackhole --scenario FILE explain --rcpt bob@example.com": "show which rule would answer",
    "blackhole --listen :2525 --listen [::1]:2526,mode=bounce,delay=1,5":
        "two listeners: one accepts mail, one rejects it slowly",
}  # fmt: skip

UNITS: Final = (
    "A TIME is a number of seconds, or has a unit: 250ms, 1.5s, 5m, 2h, 1d. "
    "A SIZE is a number of bytes, or has a unit: 64k, 50M, 1G, which are powers of 1024."
)
"""How times and sizes are written."""

WIDTH: Final = 79
"""Columns of all texts: one less than those of the usual terminal."""


def help_text() -> str:
    """Return the text of --help."""
    requests = [(", ".join(flags), about) for flags, about in REQUEST_FLAGS.values()]
    explain = [(f"--{name} {value}", about) for name, (value, about) in EXPLAIN_OPTIONS.items()]
    lines = [
        "Usage: blackhole [OPTIONS] [ACTION]",
        "",
        "An SMTP server that accepts any mail from anyone and discards it.",
        "Defaults are in [brackets].",
        *_section("Actions", 15, ACTION_HELP.items()),
    ]
    for title, rows in _groups():
        lines += _section(title, 28, ((row.usage, row.summary) for row in rows))
    lines += [
        *_section("Instead of an action", 28, requests),
        *_section("With explain", 28, explain),
        *_section("Settings of one listener", 28, ((row.usage, row.help) for row in LISTENER_ROWS)),
        *_section("Modes", 15, MODES.items()),
        *_section("Signals to the master process", 15, SIGNALS.items()),
        "",
        *_wrapped(
            "Options can also be set in a conf file (port = 2525) or in the environment "
            "(BLACKHOLE_PORT=2525). The command line overrides the environment, which overrides "
            "the conf file. In names, - and _ are the same."
        ),
        "",
        *_wrapped(UNITS),
        "",
        *_wrapped("blackhole ACTION --help shows the help of one action."),
        "",
        "Examples:",
    ]
    for command, about in EXAMPLES.items():
        lines += [f"  {command}", f"      {about}"]
    return "\n".join(lines) + "\n"


def action_help(word: str) -> str:
    """Return the text of `blackhole ACTION --help`."""
    action = ACTION_BY_WORD[word]
    takes = " [OPTIONS]" if action.takes_options else " [ACTION]" if word == "help" else ""
    lines = [f"Usage: blackhole {word}{takes}", "", *_wrapped(_sentence(action.help))]
    if action.notes:
        lines += ["", *_wrapped(action.notes)]
    lines += _options_of(action)
    if word == "explain":
        explain = [(f"--{name} {value}", about) for name, (value, about) in EXPLAIN_OPTIONS.items()]
        lines += _section("The case to explain", 28, explain)
    statuses = {**action.statuses, **({64: "mistake on the command line"} if action.takes_options else {})}
    if statuses:
        lines += _section("Exit status", 7, ((str(code), about) for code, about in sorted(statuses.items())))
    return "\n".join(lines) + "\n"


def _options_of(action: ActionWord) -> Iterator[str]:
    """Yield the options that make a difference to an action."""
    if action.options:
        rows = (OPTION_BY_NAME[name] for name in action.options)
        yield from _section("Options", 28, ((row.usage, row.summary) for row in rows))
    elif action.takes_options:
        yield from ("", *_wrapped("It takes all options that blackhole --help lists."))


def sample_conf() -> str:
    """Return the text of blackhole.conf.sample."""
    lines = [
        "# A conf file for Blackhole: blackhole --conf FILE",
        "#",
        "# It lists every option with its default. To change one, remove the # before its name.",
        "# Write one name = value per line. Values may be in quotes; # begins a comment.",
        *_wrapped(UNITS, "# "),
        "# The environment (BLACKHOLE_PORT=25) overrides this file, the command line both.",
    ]
    for title, rows in _groups():
        lines += ["", "", f"# {title}"]
        for row in rows:
            if row.name != "conf":
                default = row.default_note and f"Default: {row.default_note}."
                public = row.public_default and f"With public: {row.public_default}."
                words = " ".join(filter(None, (_sentence(row.help), default, public, row.notes)))
                lines += ["", *_wrapped(words, "# "), f"#{row.name} = {row.default}".rstrip()]
    lines += [
        "",
        "",
        "# Listeners with settings of their own, at the end of the file",
        "",
        *_wrapped("A section is a listener as listen has it, with one setting per line.", "# "),
        "#",
        "#[listener 127.0.0.1:2526]",
    ]
    for setting in LISTENER_ROWS:
        text = f"#{setting.name} = {setting.metavar or 'yes'}"
        lines += [*_wrapped(_sentence(setting.help), "# "), text]
    return "\n".join(lines) + "\n"


def print_config(settings: Settings) -> str:
    """Return a conf file that gives these settings, with a comment where each value came from."""
    lines = [f"# Blackhole {__version__} would listen on"]
    lines += [f"#   {listener_text(listener)}" for listener in settings.listeners]
    for title, rows in _groups():
        lines += ["", f"# {title}"]
        for row in rows:
            origin = settings.origins.get(row.name, "default")
            value = settings.texts.get(row.name, row.default)
            mark = "#" if row.name == "conf" or origin.endswith(UNUSED) else ""
            note = "" if value else _path_note(row.name, settings)
            lines.append(f"{f'{mark}{row.name} = {quoted(value)}':<45} # {origin}{note}")
    for address, settings_of_listener in settings.sections:
        lines += ["", f"[listener {address}]"]
        lines += [f"{name} = {quoted(value)}" for name, value in settings_of_listener]
    return "\n".join(lines) + "\n"


def listener_text(listener: Listener) -> str:
    """Return a listener and what is set for it, as --print-config shows it."""
    parts = [f"{listener}", f"mode {listener.mode}"]
    parts += [f"delay {value_text(listener.delay)}"] if listener.delay else []
    parts += ["LMTP"] if listener.lmtp else []
    parts += ["implicit TLS"] if listener.tls else []
    parts += ["behind a proxy"] if listener.proxy else []
    if listener.path:
        parts.append(f"permissions {listener.socket_mode:04o}")
    parts += [
        f"{name} {getattr(listener, name)}"
        for name in ("socket_user", "socket_group")
        if getattr(listener, name)
    ]
    parts += [f"{OPTION_BY_NAME[name].of_listener} {value_text(value)}" for name, value in listener.own]
    return ", ".join(parts)


def _path_note(name: str, settings: Settings) -> str:
    """Return which file is used where an option for one is empty."""
    if name in settings.detached_paths:
        here = "standard error" if name == "log" else "none"
        return f": {here} in the foreground, {settings.detached_paths[name]} with start"
    certificate = {"ssl_key": settings.ssl_cert, "dashboard_key": settings.dashboard_cert}.get(name, "")
    return f": read from {certificate}" if certificate not in ("", AUTO_CERTIFICATE) else ""


def version_text() -> str:
    """Return the versions that a bug report should begin with."""
    import platform
    import ssl

    import tornado

    lines = [
        f"Blackhole {__version__}{' (compiled)' if is_compiled() else ''}",
        f"Tornado {tornado.version}",
        f"Python {platform.python_version()} ({platform.python_implementation()})",
        ssl.OPENSSL_VERSION,
        *copies.warnings(),
    ]
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[tuple[str, list[Option]]]:
    for title in dict.fromkeys(option.group for option in OPTIONS):
        yield title, [option for option in OPTIONS if option.group == title]


def _section(title: str, column: int, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield two columns under a title; a left cell that is too wide gets a line of its own."""
    yield from ("", f"{title}:")
    for left, right in rows:
        head = f"  {left}".ljust(column - 1) + " "
        first, *more = _wrapped(right, " " * column)
        if len(head) > column:
            yield head.rstrip()
            yield first
        else:
            yield head + first[column:]
        yield from more


def _wrapped(text: str, indent: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _sentence(phrase: str) -> str:
    return f"{phrase[0].upper()}{phrase[1:]}."
