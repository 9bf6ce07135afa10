"""The man page and the completions for shells, made from the tables of the program.

`setup.py` installs them with the package. To see them: python docs/manual.py FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import shtab

from blackhole import __version__, usage
from blackhole.action_table import ACTION_HELP, ACTION_TABLE
from blackhole.option_table import LISTENER_ROWS, OPTIONS, Option
from blackhole.options import EXPLAIN_OPTIONS, REQUEST_FLAGS
from blackhole.settings import MODES

CHOICES = {"MODE": tuple(MODES), "yes|no": ("yes", "no")}
"""Metavar -> the values that a shell offers. A metavar with bars offers what is between them."""

PATHS = {"FILE": shtab.FILE, "FILE|profile:NAME": shtab.FILE, "DIRECTORY": shtab.DIRECTORY}
"""Metavar -> how a shell completes it."""

FILES = {
    "/etc/blackhole.conf": "conf file of the systemd unit; no file is read unless conf names it",
    "/run/blackhole.pid": "default pidfile of root",
    "/var/log/blackhole.log": "default log file of root, with the action start",
}

INSTALLED = {
    "share/man/man1/blackhole.1": lambda: man_page(),
    "share/bash-completion/completions/blackhole": lambda: completion("bash"),
    "share/zsh/site-functions/_blackhole": lambda: completion("zsh"),
}
"""Place below the prefix -> what returns its text."""


def man_page() -> str:
    """Return the man page, in the macros of man(7)."""
    return "\n".join(_man_lines()) + "\n"


def _man_lines() -> Iterator[str]:
    yield f'.TH BLACKHOLE 1 "" "Blackhole {__version__}" "User commands"'
    yield from (".SH NAME", r"blackhole \- SMTP server that accepts any mail and discards it")
    yield from (".SH SYNOPSIS", ".B blackhole", r".RI [ OPTIONS ]\ [ ACTION ]")
    yield from (
        ".SH DESCRIPTION",
        "An SMTP server for tests: it accepts any mail from anyone and discards it,",
    )
    yield "or misbehaves as a scenario says, and reports what the sender did wrong."
    yield from _section("ACTIONS", ACTION_HELP.items())
    yield ".SH OPTIONS"
    yield "Options can also be set in a conf file (port = 2525) or in the environment (BLACKHOLE_PORT=2525)."
    yield "The command line overrides the environment, which overrides the conf file."
    yield r"In names, \- and _ are the same. Defaults are in [brackets]."
    yield _roff(usage.UNITS)
    for group in dict.fromkeys(option.group for option in OPTIONS):
        yield f".SS {_roff(group)}"
        yield from _list((option.usage, _about(option)) for option in OPTIONS if option.group == group)
    yield ".SS Settings of one listener"
    yield from _list((row.usage, row.help[0].upper() + row.help[1:]) for row in LISTENER_ROWS)
    yield ".SS Instead of an action"
    yield from _list((", ".join(flags), about) for flags, about in REQUEST_FLAGS.values())
    yield ".SS With explain"
    yield from _list((f"--{name} {value}", about) for name, (value, about) in EXPLAIN_OPTIONS.items())
    yield from (".SH EXIT STATUS", "0 is success, 64 to 78 are those of sysexits.h. Besides:")
    yield from _list(
        (
            action.word,
            "; ".join(f"{code}: {about}" for code, about in action.statuses.items() if code) + ".",
        )
        for action in ACTION_TABLE
        if any(action.statuses)
    )
    yield from _section("MODES", MODES.items())
    yield from _section("SIGNALS", usage.SIGNALS.items())
    yield from _section("FILES", FILES.items())
    yield from _section("EXAMPLES", usage.EXAMPLES.items())


def _about(option: Option) -> str:
    text = option.summary[0].upper() + option.summary[1:]
    return f"{text}. {option.notes}" if option.notes else text


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f".SH {title}"
    yield from _list(rows)


def _list(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, about in rows:
        yield from (".TP", f".B {_roff(term)}", _roff(about))


def _roff(text: str) -> str:
    """Return a text with what is special to troff escaped."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text[0] in ".'" else text


def parser() -> argparse.ArgumentParser:
    """Return a parser of the command line that completions are made from."""
    found = argparse.ArgumentParser(
        "blackhole", description="SMTP server that discards all mail", add_help=False
    )
    for flags, about in REQUEST_FLAGS.values():
        found.add_argument(*flags, action="store_true", help=_plain(about))
    for option in OPTIONS:
        choices = CHOICES.get(option.metavar) or (
            tuple(word for word in option.metavar.split("|") if word.islower())
            if "|" in option.metavar
            else ()
        )
        added = found.add_argument(
            option.flag,
            choices=choices or None,
            nargs=None if option.metavar else "?",
            help=_plain(option.help),
        )
        if option.metavar in PATHS:
            added.choices = None
            added.complete = PATHS[option.metavar]  # type: ignore[attr-defined]
    found.add_argument("action", nargs="?", choices=tuple(ACTION_HELP), help="what to do")
    return found


def _plain(text: str) -> str:
    """Return a help text without what argparse and shells would take for something else."""
    return text.replace("%", "%%").replace("'", "").replace('"', "")


def completion(shell: str) -> str:
    """Return the completions for a shell."""
    return shtab.complete(parser(), shell)


def write(folder: Path) -> None:
    """Write all files below a folder."""
    for place, text in INSTALLED.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
