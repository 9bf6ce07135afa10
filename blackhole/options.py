"""What an operator asks for: the command line, the environment and the conf file become an `Invocation`.

The command line overrides the environment, the environment the conf file, and that the default.
The options themselves are the rows of `blackhole.option_table`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NoReturn

from blackhole import conf_file, listeners, option_checks, values
from blackhole.action_table import ACTION_HELP
from blackhole.conf_file import Assignment, SectionHeader
from blackhole.given_values import GivenValue, GivenValues
from blackhole.hostname import own_hostname
from blackhole.listeners import GivenListener
from blackhole.option_checks import NEED_TLS, TLS_FILES, has_certificate
from blackhole.option_table import (
    LISTENER_SETTINGS,
    NAMES,
    OPTION_BY_NAME,
    OPTIONS,
    RENAMED,
    Option,
    flag,
    variable,
)
from blackhole.settings import ACCELERATORS, Listener, OperatorError, Settings
from blackhole.tls_menu import AUTO_CERTIFICATE
from blackhole.values import did_you_mean, shown, without_password

EXPLAIN_OPTIONS: Final = {
    "phase": ("PHASE", "phase of the session [the last that fits the other options]"),
    "client": ("ADDRESS", "address of the client [127.0.0.1]"),
    "listener": ("ADDRESS:PORT", "address of the listener [the first]"),
    "tls": ("yes|no|VERSION", "whether TLS is on, or its version, as 1.3 [no]"),
    "sni": ("NAME", "name of the server that the client asks for in the TLS handshake"),
    "helo": ("NAME", "argument of HELO or EHLO"),
    "login": ("NAME", "user that has authenticated"),
    "sender": ("ADDRESS", "address in MAIL"),
    "rcpt": ("ADDRESS", "address in RCPT"),
    "extension": ("KEYWORDS", "SMTP extensions that the client has used, as SIZE,SMTPUTF8"),
    "recipients": ("COUNT", "recipients of the message, with the one in RCPT [1 from RCPT on]"),
    "message": ("COUNT", "number of the message in the connection, from 1 [1]"),
    "size": ("SIZE", "size of the message [0]"),
    "header": ("FIELD", 'a header field of the message, as "Subject: hello"'),
    "attempt": ("COUNT", "number of the attempt, from 1 [1]"),
    "at": ("TIME", "time since the server started: 90, 90s or 5m [0]"),
}
"""Options of the action explain alone: name -> (metavar, meaning)."""

REQUEST_FLAGS: Final = {
    "help": (("-h", "--help"), "show this text, or with an action its own help"),
    "version": (("-v", "-V", "--version"), ACTION_HELP["version"]),
    "print-config": (("--print-config",), "show the value of every option and where it was set"),
    "test": (("-t", "--test-config", "--check-config"), "check the configuration without opening a port"),
}
"""Requests instead of an action: `Invocation.request` -> its flags and its help.

If several are given, the first in this table is done.
"""

RENAMED_FLAGS: Final = {
    "-b": "give the action start",
    "-c": "write --conf FILE",
    "-d": "write --debug",
    "-ls": "leave it out",
    "-q": "leave it out",
}
"""Flags of Blackhole 2.x alone -> what to do instead."""

READERS_OPTIONS: Final = frozenset(
    ("conf", "pid", "format", "json", "fail_on", "scope", "namespace", "follow", "conversation")
)
"""Options of the commands that read from a server, or find it: not of the server itself."""

UNUSED: Final = ", not used"
"""The end of the origin of a value that has no effect."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """What one command line, with its environment and conf file, asks for."""

    action: str = "run"
    """A key of ACTION_HELP; with the request for help, the action to be explained, or "help" for all."""
    settings: Settings = field(default_factory=Settings)
    request: str = ""
    """Empty, or a key of REQUEST_FLAGS: what to do instead of the action."""
    warnings: tuple[str, ...] = ()
    """One line each, for standard error."""
    explain_options: Mapping[str, str] = field(default_factory=dict)
    """The keys of EXPLAIN_OPTIONS that were given."""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Invocation:
    """Return what `argv` (without the program's name) and `environ` ask for.

    Reads the conf file and, for the host name, /etc/mailname and /etc/hosts. Raises OperatorError, with
    the code EX_USAGE for a mistake on the command line and EX_CONFIG for one elsewhere.

    >>> parse(["--port", "2525", "start"], {}).action
    'start'
    """
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, rest = _parser().parse_known_args(_normalized(argv[:end]))
    words = (*rest, *argv[end + 1 :])
    request = _request(arguments.requests or (), words)
    if request in ("help", "version"):
        return Invocation(_topic(words) if request == "help" else "version", request=request)
    action = _action(rest, argv[end + 1 :], arguments.daemon)
    of_explain = _explain_options(arguments, action)
    warnings: list[str] = []
    given = _from_environment(environ, warnings) | _from_command_line(arguments)
    if conf := given.get("conf"):
        of_file = _from_conf_file(conf)
        stores = [of_file[name].value for name in ("attempt_store", "fleet") if name in of_file]
        if any(store.password for store in stores) and conf_file.is_exposed(conf.value):
            warnings.append(f"{conf.value}: every user can read the password in it; chmod o-r {conf.value}")
        given = of_file | given
    for name, found in given.items():
        if OPTION_BY_NAME[name].warning and found.value:
            warnings.append(f"{found.where}: {OPTION_BY_NAME[name].warning}")
    settings = _settings(given, action, environ, warnings)
    return Invocation(action, settings, request, tuple(warnings), of_explain)


def _read(option: Option, text: str, origin: str, where: str, exit_code: int) -> GivenValue:
    try:
        return GivenValue(option.read(text.strip()), origin, where, exit_code)
    except ValueError as error:
        raise OperatorError(f"{where}: {error}", exit_code) from None


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OperatorError(message.removeprefix("argument "), os.EX_USAGE)


def _parser() -> argparse.ArgumentParser:
    """Return a parser that splits the command line and leaves every value as text."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    for request, (flags, _) in REQUEST_FLAGS.items():
        parser.add_argument(*flags, dest="requests", action="append_const", const=request)
    parser.add_argument("--daemon", action="store_true")
    for name in EXPLAIN_OPTIONS:
        parser.add_argument(f"--{name}")
    for option in OPTIONS:
        parser.add_argument(option.flag, dest=option.name, action="append" if option.repeats else "store")
    return parser


_FLAGS: Final = {
    flag[2:].replace("-", "_"): flag
    for flag in ("--daemon", *(flag for flags, _ in REQUEST_FLAGS.values() for flag in flags))
    if flag.startswith("--")
}
_SPELLINGS: Final = _FLAGS | {name: option.flag for name, option in OPTION_BY_NAME.items()}
"""Name with underscores, or alias -> the flag that the parser knows."""


def _normalized(argv: Sequence[str]) -> list[str]:
    """Return `argv` with names as the table has them, and a yes for every switch without a value."""
    words = list(argv)
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            key = name[2:].replace("-", "_")
            if not equals and key in OPTION_BY_NAME and OPTION_BY_NAME[key].read is values.switch:
                following = words[place + 1].lower() if place + 1 < len(words) else ""
                equals, value = ("", "") if following in values.SWITCH else ("=", "yes")
            if value == "--":  # argparse would take it away
                raise OperatorError(f"{shown(name)}: expected a value, not '--'", os.EX_USAGE)
            words[place] = _SPELLINGS.get(key, name) + equals + value
    return words


def _action(rest: Sequence[str], last: Sequence[str], daemon: bool) -> str:
    """Return the action word of what the parser left over. Raises OperatorError for anything else."""
    for word in rest:
        if word.startswith("-"):
            if word in RENAMED_FLAGS:
                raise OperatorError(f"{word}: an option of Blackhole 2.x; {RENAMED_FLAGS[word]}", os.EX_USAGE)
            name = word.partition("=")[0]
            known = (*_FLAGS.values(), *(option.flag for option in OPTIONS))
            close = did_you_mean(flag(name.strip("-")), known)
            raise OperatorError(f"{shown(name)}: unknown option{close}", os.EX_USAGE)
    words = dict.fromkeys((*rest, *last, *(["start"] if daemon else [])))
    for word in words:
        if word not in ACTION_HELP:
            message = (
                f"{without_password(word)[:60]!r}: unknown action; the actions are {', '.join(ACTION_HELP)}"
            )
            raise OperatorError(message + did_you_mean(word, ACTION_HELP), os.EX_USAGE)
    if len(words) > 1:
        raise OperatorError(f"expected one action, not {' and '.join(words)}", os.EX_USAGE)
    return next(iter(words), "run")


def _request(flags: Collection[str], words: Collection[str]) -> str:
    """Return the first of REQUEST_FLAGS that was asked for, by a flag or by a word; or nothing."""
    words = {"help", "version"}.intersection(words)
    return next((request for request in REQUEST_FLAGS if request in flags or request in words), "")


def _topic(words: Iterable[str]) -> str:
    """Return the action whose help is asked for, "help" for that of all.

    Other mistakes do not matter then, but `blackhole help` names an action that it does not know.
    """
    words = [word for word in words if not word.startswith("-")]
    if words[:1] == ["help"] and len(words) > 1:
        return _action(words[1:], (), False)
    return next((word for word in words if word in ACTION_HELP), "help")


def _explain_options(arguments: argparse.Namespace, action: str) -> dict[str, str]:
    """Return the options of explain that were given. Raises OperatorError with any other action."""
    found = {
        name: getattr(arguments, name) for name in EXPLAIN_OPTIONS if getattr(arguments, name) is not None
    }
    if found and action != "explain":
        raise OperatorError(f"--{next(iter(found))}: only for the action explain", os.EX_USAGE)
    return found


def _from_command_line(arguments: argparse.Namespace) -> GivenValues:
    found = {}
    for option in OPTIONS:
        text = getattr(arguments, option.name)
        if text is not None:
            text = " ".join(text) if option.repeats else text
            found[option.name] = _read(option, text, "command line", option.flag, os.EX_USAGE)
    return found


# The environment


def _from_environment(environ: Mapping[str, str], warnings: list[str]) -> GivenValues:
    """Return the values of all variables that are set and not empty; a name overrides its aliases."""
    options = {variable(name): option for name, option in OPTION_BY_NAME.items()}
    found: GivenValues = {}
    for name, text in environ.items():
        where = f"environment {shown(name)}"
        option = options.get(name)
        if option is None:
            if name.startswith("BLACKHOLE_"):
                # Other programs may use such names, so only one that looks mistyped is worth a warning.
                close = did_you_mean(name[10:].lower(), NAMES, 0.75)
                warnings += [f"{where}: unknown option{close}"] if close else []
        elif text.startswith(("tcp://", "udp://")):
            # Kubernetes sets BLACKHOLE_PORT=tcp://10.0.0.7:25 in every pod beside a Service "blackhole".
            warnings.append(
                f"{where}: {text[:60]!r} is ignored: Kubernetes sets it for a Service of that name"
            )
        elif text and (name == option.variable or option.name not in found):
            found[option.name] = _read(option, text, where, where, os.EX_CONFIG)
    return found


# The conf file


def _from_conf_file(conf: GivenValue) -> GivenValues:
    found: GivenValues = {}
    listener: GivenListener | None = None
    for line in conf_file.read(conf.value, conf.where):
        if isinstance(line, SectionHeader):
            listener = _begin_section(line)
            _add_listener(found, listener, line)
        elif listener is not None:
            listener = _listener_with(listener, line)
            listen = found["listen"]
            found["listen"] = listen._replace(value=(*listen.value[:-1], listener))
        else:
            _add_assignment(found, line)
    return found


def _add_assignment(found: GivenValues, line: Assignment) -> None:
    """Add a line before all sections to what was found."""
    option = OPTION_BY_NAME.get(line.name)
    if line.name in RENAMED:
        raise line.error(f"{line.name}: an option of Blackhole 2.x; {RENAMED[line.name]}")
    if not option:
        raise line.error(f"{shown(line.name)}: unknown option{did_you_mean(line.name, NAMES)}")
    if option.name == "conf":
        raise line.error("conf: a conf file cannot name another conf file; remove the line")
    if line.value is None:
        return
    given = _read(option, line.value, f"conf {line.where}", f"{line.where}: {line.name}", os.EX_CONFIG)
    if option.name in found:
        first = found[option.name]
        if not option.repeats:
            place = first.origin.removeprefix("conf ")
            raise line.error(f"{line.name}: already set at {place}; remove one of the two")
        given = _joined(first, given, line)
    found[option.name] = given


def _joined(first: GivenValue, second: GivenValue, line: Assignment | SectionHeader) -> GivenValue:
    """Return the values of an option that was given on several lines, of which `line` is the last."""
    number = line.where.rpartition(":")[2]
    return first._replace(value=first.value + second.value, origin=f"{first.origin},{number}")


def _begin_section(line: SectionHeader) -> GivenListener:
    """Return the listener of a section, without its settings. Raises OperatorError."""
    try:
        return listeners.read_address(line.listener)._replace(where=line.where)
    except ValueError as error:
        raise line.error(f"listener: {error}") from None


def _add_listener(found: GivenValues, listener: GivenListener, line: SectionHeader) -> None:
    """Add the listener of a section to those of `listen`."""
    where = f"{line.where}: listener"
    given = GivenValue((listener,), f"conf {line.where}", where, os.EX_CONFIG)
    found["listen"] = _joined(found["listen"], given, line) if "listen" in found else given


def _listener_with(listener: GivenListener, line: Assignment) -> GivenListener:
    """Return the listener of a section with the setting on a line. Raises OperatorError."""
    if line.value is None:
        return listener
    try:
        if line.name not in LISTENER_SETTINGS and line.name in OPTION_BY_NAME:
            raise ValueError(f"{line.name}: holds for all listeners; move it above the first section")
        setting = listeners.read_setting(LISTENER_SETTINGS, line.name, line.value)
        return listeners.add_setting(LISTENER_SETTINGS, listener, setting)
    except ValueError as error:
        raise line.error(f"listener {listener.address}: {error}") from None


# Settings


_PIDFILE: Final = ("/run/blackhole.pid", "XDG_RUNTIME_DIR", "~/.blackhole.pid")
_LOG_FILE: Final = ("/var/log/blackhole.log", "XDG_STATE_HOME", "~/.local/state/blackhole.log")


def _default_file(environ: Mapping[str, str], of_root: str, directory: str, otherwise: str) -> str:
    """Return `of_root`; without root a file in `$directory` (XDG Base Directory), or `otherwise`."""
    if os.geteuid() == 0:
        return of_root
    folder = environ.get(directory, "")
    if folder.startswith("/") and folder.isprintable():
        return f"{folder}/{os.path.basename(of_root)}"
    return values.path(otherwise)


def _settings(given: GivenValues, action: str, environ: Mapping[str, str], warnings: list[str]) -> Settings:
    """Return the settings: what was given, and defaults for everything else."""
    defaults, public = _defaults(given)
    found = defaults | {name: one.value for name, one in given.items()}
    found["hostname"] = found["hostname"] or own_hostname()
    detached_paths = {"pid": _default_file(environ, *_PIDFILE), "log": _default_file(environ, *_LOG_FILE)}
    if action != "run":
        found["pid"] = found["pid"] or detached_paths["pid"]
    if action in ("start", "restart"):
        found["log"] = found["log"] or detached_paths["log"]
    option_checks.check_fleet(found, given)
    sections = [one for one in found["listen"] if one.where]
    lines = tuple(one for one in found["listen"] if not one.where)
    texts = {name: values.value_text(value) for name, value in {**found, "listen": lines}.items()}
    option_checks.check_tls(found, given, warnings)
    option_checks.check_dashboard(found, given, warnings)
    option_checks.check_inspection(found, given, warnings)
    of_server, unused = _listeners(found, given, warnings)
    origins = dict.fromkeys(found, "default") | dict.fromkeys(public, "public")
    origins |= {name: one.origin for name, one in given.items()}
    origins |= {name: origins[name] + UNUSED for name in unused}
    of_settings = {field.name: found[field.name] for field in fields(Settings) if field.name in found}
    of_settings["accelerators"] = _accelerators(environ)
    return Settings(
        listeners=of_server,
        origins=origins,
        texts=texts,
        sections=tuple((one.address, one.texts) for one in sections),
        detached_paths=detached_paths,
        **of_settings,
    )


def is_given(origin: str) -> bool:
    """Return whether a value with this origin in `Settings.origins` was given, and is no default."""
    return not origin.startswith(("default", "public"))


def _accelerators(environ: Mapping[str, str]) -> frozenset[str]:
    """Return the accelerators that BLACKHOLE_ACCELERATORS names, with commas between; `off` is none."""
    text = environ.get("BLACKHOLE_ACCELERATORS", "")
    if not text:
        return ACCELERATORS
    names = frozenset() if text == "off" else frozenset(text.split(","))
    if not names <= ACCELERATORS:
        known = ",".join(sorted(ACCELERATORS))
        where = f"environment BLACKHOLE_ACCELERATORS: {shown(text)}"
        raise OperatorError(f"{where}: unknown accelerator; give off, or some of {known}")
    return names


def _defaults(given: GivenValues) -> tuple[dict[str, Any], list[str]]:
    """Return the default of every option, and the names of those whose default --public changes."""
    is_public = "public" in given and given["public"].value
    public = [option.name for option in OPTIONS if is_public and option.public_default]
    return {
        option.name: option.read(option.public_default if option.name in public else option.default)
        for option in OPTIONS
    }, public


def _listeners(
    found: Mapping[str, Any], given: GivenValues, warnings: list[str]
) -> tuple[tuple[Listener, ...], set[str]]:
    """Return the listeners, and the names of options that have no effect on them."""
    tls = bool(found["ssl_cert"])
    mode, delay = found["mode"], found["delay"]
    made = []
    unused = set(NEED_TLS) if found["ssl"] and not has_certificate(found) else set()
    only_listen = found["listen"] and given.keys().isdisjoint(("host", "port"))
    if only_listen:
        unused |= {"host", "port"}
    else:
        made.append(Listener(found["host"], found["port"], False, mode, delay))
    if tls and ("ssl_port" in given or not only_listen):
        made.append(Listener(found["host"], found["ssl_port"], True, mode, delay))
    else:
        unused.add("ssl_port")
    for item in found["listen"]:
        listener = listeners.make(LISTENER_SETTINGS, item, mode, delay)
        if not found["ssl"]:
            listener = replace(listener, own=tuple(one for one in listener.own if one[0] not in TLS_FILES))
        elif "tls_menu" in dict(listener.own) and not {**found, **dict(listener.own)}["ssl_cert"]:
            listener = replace(listener, own=(*listener.own, ("ssl_cert", AUTO_CERTIFICATE)))
        option_checks.check_listener(item, listener, found, given["listen"], warnings)
        made.append(listener)
    option_checks.check_distinct(made, given)
    return tuple(made), unused
