"""The command line: maps actions and errors to exit statuses (sysexits.h, and LSB for `status`)."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from blackhole import __version__, options, usage
from blackhole.metrics import rates, report, status
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.options import Invocation
from blackhole.process import pidfile, processes, running_servers
from blackhole.process.console import print_stdout, print_warning, reserve_standard_streams
from blackhole.settings import OperatorError, Settings
from blackhole.store.server_facts import ServerFacts

if TYPE_CHECKING:
    from blackhole.process.configuration import Configuration

# What begins a server or loads a scenario is imported in the function that needs it: Tornado,
# asyncio and ssl take several times as long to import as --help, `status` and `stop` to run.

log = logging.getLogger(__name__)

NOT_RUNNING: Final = 7
"""Exit status of an action that needs a running server (LSB 5.0, 22.2: "program is not running")."""

DEFERRED_SIGNALS: Final = frozenset(
    (
        *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
        *(signal.SIGTTIN, signal.SIGTTOU, signal.SIGALRM),
    )
)
"""Signals that would end a server during its start, and whose meaning can wait until it runs."""

SHORTAGES: Final = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    )
)
"""Errors of a machine that is short of something: no mistake of the program."""

KILL_DELAY: Final = 2
"""Seconds after `drain_timeout` until `stop` kills a server."""

STATUS_DEAD_WITH_PIDFILE: Final = 1
STATUS_NOT_RUNNING: Final = 3
"""Exit statuses of `blackhole status` (LSB 5.0, 22.2)."""

REPORT_FAILED: Final = 1
"""Exit status of `blackhole report` when a condition of --fail-on is met."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for and return the exit status."""
    reserve_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    debug = False
    try:
        invocation = options.parse(arguments, os.environ)
        debug = invocation.settings.debug
        for warning in invocation.warnings:
            print_warning(warning)
        if invocation.request:
            return REQUESTS[invocation.request](invocation)
        if invocation.action == "explain":
            return _explain(invocation.settings, invocation.explain_options)
        if invocation.action in STARTS:
            return STARTS[invocation.action](invocation, arguments)
        return ACTIONS[invocation.action](invocation.settings, arguments)
    except OperatorError as error:
        print_warning(str(error))
        return error.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            print_warning(f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror))
            return os.EX_OSERR
        if logging.getLogger().handlers:  # of a daemon, the log may be all that anyone sees
            log.critical("internal error: %r", error, exc_info=debug)
        elif debug:
            traceback.print_exc()
        print_warning(f"internal error: {error!r}; run with --debug for a traceback")
        return os.EX_SOFTWARE


# Requests: options that take the place of an action.


def _help(invocation: Invocation) -> int:
    word = invocation.action
    print_stdout(usage.help_text() if word == "help" else usage.action_help(word))
    return os.EX_OK


def _version(invocation: Invocation) -> int:
    print_stdout(usage.version_text())
    return os.EX_OK


def _print_config(invocation: Invocation) -> int:
    print_stdout(usage.print_config(invocation.settings))
    return os.EX_OK


def _test(invocation: Invocation) -> int:
    from blackhole.rules import unreachable

    settings = invocation.settings
    active = _check(settings).scenario
    own = [one for one in settings.listeners if str(one) in active.own_rules]
    others = [one for one in settings.listeners if one not in own]
    for listeners in (others, *([one] for one in own)):
        rules = active.of_listener(str(listeners[0])).rules if listeners else ()
        has_tls = any(settings.of_listener(one).ssl_cert for one in listeners)
        for line in unreachable.find_mistakes(rules, list(map(str, listeners)), has_tls):
            print_warning(f"scenario: {line}")
    print_stdout("The configuration is good.\n")
    return os.EX_OK


def _check(settings: Settings) -> Configuration:
    """Load everything and bind nothing. Raises OperatorError."""
    from blackhole.process import configuration

    return configuration.load(settings, print_warning)


REQUESTS: Final[dict[str, Callable[[Invocation], int]]] = {
    "help": _help,
    "version": _version,
    "print-config": _print_config,
    "test": _test,
}


# Actions.


def _explain(settings: Settings, values: Mapping[str, str]) -> int:
    from random import Random

    from blackhole.rules import explain, scenario

    listener = settings.listeners[0]
    for one in settings.listeners:
        if str(one) == values.get("listener"):
            listener = one
    context = explain.read_context(values, str(listener))
    own = settings.of_listener(listener)
    rules = scenario.load_rules(own.scenario, own.set)
    for line in explain.explain(rules, listener.mode, context, Random()):
        print_stdout(f"{line}\n")
    return os.EX_OK


def _run(invocation: Invocation, arguments: Sequence[str]) -> int:
    return _serve(invocation, arguments, detached=False)


def _start(invocation: Invocation, arguments: Sequence[str]) -> int:
    settings = invocation.settings
    pid = pidfile.known_owner(settings.pid)
    if pid is None:
        return _serve(invocation, arguments, detached=True)
    differing = _differences(settings, pid)
    if differing:
        raise OperatorError(
            f"already running, pid {pid}, with other options: {'; '.join(differing)}", os.EX_TEMPFAIL
        )
    return _status(settings, arguments)  # success: LSB has `start` of a running server succeed


def _differences(settings: Settings, pid: int, of_command_line: bool = False) -> list[str]:
    """Return what a running server has set otherwise: none if that cannot be told.

    `of_command_line`: only options of the command line are compared, but for those that chose the server,
    else all that were given, to either.
    """
    by_address = of_command_line and running_servers.chooses_by_address(settings)
    left_out = options.READERS_OPTIONS.union(running_servers.ADDRESS_OPTIONS if by_address else ())
    facts = ServerFacts.of(pid) if os.access(f"/proc/{pid}/fd", os.R_OK) else {}
    running, given = facts.get("options", {}), facts.get("given", ())
    return [
        f"{name} is {running[name] or 'empty'}, not {text or 'empty'}"
        for name, text in settings.texts.items()
        if name not in left_out
        and running.get(name, text) != text
        and (
            settings.origins[name].startswith("command line")
            if of_command_line
            else name in given or options.is_given(settings.origins[name])
        )
    ]


def _serve(invocation: Invocation, arguments: Sequence[str], detached: bool) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)
    from blackhole import service

    return service.serve(invocation.settings, arguments, detached, invocation.warnings)


def _stop(settings: Settings, arguments: Sequence[str]) -> int:
    if not running_servers.chooses_by_address(settings):
        return _stop_owner(settings)
    pid = running_servers.server_at_address(settings)
    stopped = pid is not None and running_servers.stop(pid, settings.drain_timeout + KILL_DELAY)
    return _tell_stopped(settings, stopped)


def _stop_owner(settings: Settings) -> int:
    """Stop the pidfile's owner, and remove what one that was killed has left."""
    stopped = pidfile.stop(settings.pid, settings.drain_timeout + KILL_DELAY)
    for line in pidfile.clear(settings.pid):
        print_warning(line)
    return _tell_stopped(settings, stopped)


def _tell_stopped(settings: Settings, stopped: bool) -> int:
    others = "" if stopped else running_servers.others(settings)
    if others:
        print_warning(others)
    print_stdout("Blackhole has stopped.\n" if stopped else "Blackhole was not running.\n")
    return os.EX_OK


def _restart(invocation: Invocation, arguments: Sequence[str]) -> int:
    _check(invocation.settings)
    _stop_owner(invocation.settings)
    return _start(invocation, arguments)


def _reload(settings: Settings, arguments: Sequence[str]) -> int:
    _check(settings)
    pid = _pid_to_signal(settings)
    version = _running_version(settings, pid)
    differing = _differences(settings, pid, of_command_line=True)
    if differing:
        raise OperatorError(
            f"reload takes no options: the server reads its own command line and conf file again, and there"
            f" {'; '.join(differing)}; change the conf file, or restart",
            os.EX_USAGE,
        )
    _send(pid, signal.SIGHUP)
    if version not in ("", __version__):
        print_warning(f"the server still runs Blackhole {version}: restart it to run {__version__}")
    return os.EX_OK


def _reopen(settings: Settings, arguments: Sequence[str]) -> int:
    _send(_pid_to_signal(settings), signal.SIGUSR1)
    return os.EX_OK


def _send(pid: int, number: signal.Signals) -> None:
    """Signal a master. Raises OperatorError."""
    if not processes.send_signal(pid, number):
        raise OperatorError(f"pid {pid} has just ended", NOT_RUNNING)


def _pid_to_signal(settings: Settings) -> int:
    """Return the pid of the pidfile's owner, or of the server that listens at the address that was given.

    Raises OperatorError if there is none.
    """
    if running_servers.chooses_by_address(settings):
        pid = running_servers.server_at_address(settings)
    else:
        pid = pidfile.known_owner(settings.pid)
    if pid is None:
        raise OperatorError(running_servers.not_running(settings), NOT_RUNNING)
    return pid


def _running_version(settings: Settings, pid: int) -> str:
    """Return the version that a server runs; empty if that is not known."""
    if running_servers.chooses_by_address(settings):
        return str(ServerFacts.of(pid).get("version", ""))
    return pidfile.running_version(settings.pid)


def _status(settings: Settings, arguments: Sequence[str]) -> int:
    by_address = running_servers.chooses_by_address(settings)
    leaves_pidfile = not by_address and os.path.lexists(settings.pid)
    pid = running_servers.find(settings, or_only=not leaves_pidfile)
    if pid:
        print_stdout(_figures(settings, pid))
        return os.EX_OK
    if pid is not None:
        print_stdout("Blackhole is starting.\n")
        return os.EX_OK
    if leaves_pidfile:
        print_stdout(f"Blackhole is not running; it died and left {settings.pid}.\n")
        return STATUS_DEAD_WITH_PIDFILE
    print_stdout("Blackhole is not running.\n")
    return STATUS_NOT_RUNNING


def _figures(settings: Settings, pid: int) -> str:
    """Return the figures of a running server, or why this user may not read them."""
    try:
        snapshot = Counters.of(pid).snapshot()
        facts = ServerFacts.of(pid)
        from blackhole.store.control import ControlChannel

        order, one_shot_replies = ControlChannel.order_of(pid)
    except OperatorError as error:
        return f"Blackhole is running, pid {pid}; {error}.\n"
    if settings.scope == "fleet":
        return _fleet_status(settings, facts)
    uptime = snapshot.seconds
    if settings.json:
        shown = {name: value for name, value in facts.items() if name not in HIDDEN_FACTS}
        in_force = {"runtime_scenario": order.name or None, "one_shot_replies": one_shot_replies}
        return (
            json.dumps({"pid": pid, "uptime": uptime, **shown, **in_force, **snapshot.as_dict()}, indent=2)
            + "\n"
        )
    head = f"Blackhole {facts.get('version', '')}".rstrip()
    server = status.server_lines(facts, order.name, one_shot_replies)
    return f"{head} is running, pid {pid}.\n{status.status_text(snapshot, uptime, server)}"


HIDDEN_FACTS: Final = ("lines", "options", "given", "authority", "dashboard_certificate")
"""Facts that are for other commands."""


def _fleet_status(settings: Settings, facts: Mapping[str, Any]) -> str:
    """Return the figures of the fleet that a server belongs to. Raises OperatorError."""
    from blackhole.fleet import remote

    view = remote.read(facts, _dashboard_token(settings))
    if settings.json:
        return json.dumps(view.as_dict(), indent=2) + "\n"
    return remote.status_text(view)


def _snapshot_reader(settings: Settings, pid: int) -> tuple[Callable[[], Snapshot], Callable[[], str]]:
    """Return a function that reads the counters of a server, or of its fleet, and one that returns what is to
    be shown of the machines of the fleet. Raises OperatorError."""
    if settings.namespace and settings.scope == "fleet":
        raise OperatorError(
            f"namespace {settings.namespace}: shown for one machine only; for those of a fleet, ask a"
            f" dashboard for GET /namespaces/{settings.namespace}/report"
        )
    if settings.namespace:
        from blackhole.metrics import namespace_counters

        return namespace_counters.reader(pid, settings.namespace), str
    if settings.scope == "machine":
        return Counters.of(pid).snapshot, str
    from blackhole.fleet import remote

    reader = remote.FleetReader(partial(ServerFacts.of, pid), _dashboard_token(settings))
    return reader.snapshot, reader.machine_rates


def _dashboard_token(settings: Settings) -> str:
    """Return the token of the dashboard, if this command was told of it as the server was."""
    from blackhole.process import auth_file

    return auth_file.load_token(settings.dashboard.token_file)[0] if settings.dashboard.token_file else ""


def _check_health(settings: Settings, arguments: Sequence[str]) -> int:
    from blackhole import health_check

    print_stdout(f"{health_check.check(settings)}\n")
    return os.EX_OK


def _running_pid(settings: Settings) -> int:
    """Return the pid of the server that a command reads from. Raises OperatorError if there is none."""
    pid = running_servers.find(settings)
    if not pid:
        raise OperatorError(running_servers.not_running(settings), NOT_RUNNING)
    return pid


def _report(settings: Settings, arguments: Sequence[str]) -> int:
    snapshot = _snapshot_reader(settings, _running_pid(settings))[0]()
    wanted = "json" if settings.json else settings.format
    if wanted == "junit":
        print_stdout(report.report_junit(snapshot, settings.fail_on))
    else:
        print_stdout(report.FORMATS[wanted](snapshot))
    nothing = report.uninspected(snapshot, settings.fail_on)
    if nothing:
        print_warning(nothing)
    return REPORT_FAILED if nothing or report.fails(snapshot, settings.fail_on) else os.EX_OK


def _top(settings: Settings, arguments: Sequence[str]) -> int:
    pid = _running_pid(settings)
    return rates.watch(pid, *_snapshot_reader(settings, pid))


def _recent(settings: Settings, arguments: Sequence[str]) -> int:
    pid = _running_pid(settings)
    from blackhole.metrics import recent_lines

    return recent_lines.show(pid, settings)


def _authority(settings: Settings, arguments: Sequence[str]) -> int:
    authority = ServerFacts.of(_running_pid(settings)).get("authority", "")
    if not authority:
        raise OperatorError("the server has issued no certificates; give it ssl_cert = auto, or tls_menu")
    print_stdout(authority)
    return os.EX_OK


STARTS: Final[dict[str, Callable[[Invocation, Sequence[str]], int]]] = {
    "run": _run,
    "start": _start,
    "restart": _restart,
}
"""The actions that start a server."""

ACTIONS: Final[dict[str, Callable[[Settings, Sequence[str]], int]]] = {
    "stop": _stop,
    "reload": _reload,
    "reopen": _reopen,
    "status": _status,
    "check": _check_health,
    "report": _report,
    "top": _top,
    "recent": _recent,
    "authority": _authority,
}
"""Every other action except `explain`, which takes the case to explain as well, and what is a request too."""
