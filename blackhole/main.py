"""The program: puts the parts together, and alone knows them all."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from blackhole import __version__, options, usage
from blackhole.metrics import rates, report
from blackhole.metrics.counters import Counters
from blackhole.net.client_table import ClientTable
from blackhole.process import daemonizer, logs, systemd
from blackhole.process.supervisor import ChildContext, Job, ProcessPlan, Supervisor
from blackhole.settings import DashboardAddress, Listener, OperatorError, RedisSettings, Settings
from blackhole.store.client_log import ClientLog
from blackhole.web.history import History

if TYPE_CHECKING:
    import socket
    import ssl

    from blackhole.rules.scenario import Scenario
    from blackhole.store.attempts import AttemptTable
    from blackhole.store.redis_attempts import RedisAttemptStore

# Tornado, asyncio and ssl are imported where a server begins: --help and stop need none of them.

log = logging.getLogger(__name__)

DASHBOARD = "blackhole: dashboard"
PROGRESS = "blackhole: progress"
"""Its title, as `ps` shows it."""

NOT_RUNNING = 7
"""What LSB has init scripts exit with when they were to reload what does not run."""

FIXED = ("user", "group", "pid", "log")
"""Settings that a reload cannot change: files were opened and given away by them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = False
    try:
        invocation = options.parse(arguments, os.environ)
        debug = invocation.settings.debug
        for warning in invocation.warnings:
            print_warning(warning)
        if invocation.request:
            return _REQUESTS[invocation.request](invocation.settings)
        if invocation.action == "explain":
            return _explain(invocation.settings, invocation.explain_options)
        return _ACTIONS[invocation.action](invocation.settings, arguments)
    except OperatorError as error:
        print_warning(str(error))
        return error.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if logging.getLogger().handlers:  # perhaps nobody sees our standard error any more
            log.critical("%r", error, exc_info=debug)
        elif debug:
            traceback.print_exc()
        print_warning(f"{error!r} is a mistake of ours, not of yours; --debug shows where")
        return os.EX_SOFTWARE


def print_warning(message: str) -> None:
    print_stderr(f"blackhole: {message}")


def print_stderr(line: str) -> None:
    """To standard error, if there is one: nothing ends because nobody reads it."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def print_stdout(text: str) -> int:
    """To standard output, which is success even if nobody reads on, as in `blackhole --help | head`."""
    with suppress(BrokenPipeError):
        os.write(1, text.encode(errors="backslashreplace"))
    return os.EX_OK


# In place of an action.


def _test(settings: Settings) -> int:
    _check(settings)
    return print_stdout("The configuration is good.\n")


def _check(settings: Settings) -> tuple[Settings, ssl.SSLContext | None, Scenario]:
    """The settings with a uid and gid for user and group, and passwords; what they say of TLS and of rules.

    Nothing is bound. Raises OperatorError.
    """
    from blackhole.rules import scenario

    uid, gid = daemonizer.resolve(settings.user, settings.group)
    if settings.attempt_store.host:
        from blackhole.store import redis_attempts

        redis_attempts.redis_errors()
    context = None
    if settings.ssl_cert:
        from blackhole.net import tls

        context = tls.context(settings.ssl_cert, settings.ssl_key)
    if any(listener.proxy for listener in settings.listeners):
        from blackhole.net import proxy

        proxy.parser()
    sources = tuple(map(scenario.read_source, settings.scenario))
    plot = scenario.Scenario(scenario.parse_sources(sources), sources=sources, at=time.time())
    if plot.wants:
        from blackhole.net import tls

        plot = replace(
            plot, certificates={name: tls.showing(tls.faulty(name, settings)) for name in plot.wants}
        )
    passwords = None
    if settings.auth not in ("off", "any"):
        from blackhole.process import auth_file

        passwords, warning = auth_file.load(settings.auth)
        if warning:
            print_warning(warning)
    return replace(settings, user=str(uid), group=str(gid), passwords=passwords), context, plot


_REQUESTS: dict[str, Callable[[Settings], int]] = {
    "help": lambda settings: print_stdout(usage.help_text()),
    "version": lambda settings: print_stdout(usage.version_text()),
    "print-config": lambda settings: print_stdout(usage.print_config(settings)),
    "test": _test,
}


# Actions.


def _explain(settings: Settings, told: Mapping[str, str]) -> int:
    from random import Random

    from blackhole.rules import explain, scenario

    listener = settings.listeners[0]
    for one in settings.listeners:
        if str(one) == told.get("listener"):
            listener = one
    case = explain.context(told, str(listener))
    for line in explain.explain(scenario.load_rules(settings.scenario), listener.mode, case, Random()):
        print(line)
    return os.EX_OK


def _run(settings: Settings, argv: Sequence[str]) -> int:
    return _serve(settings, argv, detached=False)


def _start(settings: Settings, argv: Sequence[str]) -> int:
    if daemonizer.pidfile_owner(settings.pid) is not None:
        return _status(settings, argv)  # success, as LSB has it: what was asked for is so
    return _serve(settings, argv, detached=True)


def _stop(settings: Settings, argv: Sequence[str]) -> int:
    stopped = daemonizer.stop(settings.pid, settings.drain_timeout + 2)
    return print_stdout("Blackhole has stopped.\n" if stopped else "Blackhole was not running.\n")


def _restart(settings: Settings, argv: Sequence[str]) -> int:
    _check(settings)
    _stop(settings, argv)
    return _start(settings, argv)


def _reload(settings: Settings, argv: Sequence[str]) -> int:
    _check(settings)
    if not daemonizer.send(settings.pid, signal.SIGHUP):
        raise OperatorError(f"not running ({settings.pid})", NOT_RUNNING)
    return os.EX_OK


def _status(settings: Settings, argv: Sequence[str]) -> int:
    """0, 1 and 3 mean what LSB has them mean."""
    pid = daemonizer.pidfile_owner(settings.pid)
    if pid:
        return print_stdout(_figures(settings, pid))
    if pid is not None:
        return print_stdout("Blackhole is about to run.\n")
    if os.path.lexists(settings.pid):
        print_stdout(f"Blackhole is not running; it died and left {settings.pid}.\n")
        return 1
    print_stdout("Blackhole is not running.\n")
    return 3


def _figures(settings: Settings, pid: int) -> str:
    """What there is to say of a server that runs; little, to those whom its figures are not for."""
    try:
        seen = Counters.of(pid).snapshot()
    except OperatorError as error:
        return f"Blackhole is running, pid {pid}; {error}.\n"
    uptime = time.time() - seen.started
    if settings.json:
        return json.dumps({"pid": pid, "uptime": uptime, **seen.as_dict()}, indent=2) + "\n"
    return f"Blackhole is running, pid {pid}.\n{report.status(seen, uptime)}"


def _running(settings: Settings) -> int:
    """The pid of the server to look at: of the pidfile, or else the only one there is."""
    pid = daemonizer.pidfile_owner(settings.pid)
    if pid:
        return pid
    found = [] if settings.origins.get("pid") != "default" else daemonizer.running_masters()
    if len(found) > 1:
        raise OperatorError(f"there are {len(found)} servers; give each a --pid", os.EX_USAGE)
    if not found:
        raise OperatorError(f"not running ({settings.pid})", NOT_RUNNING)
    return found[0]


def _report(settings: Settings, argv: Sequence[str]) -> int:
    seen = Counters.of(_running(settings)).snapshot()
    print_stdout(report.FORMATS["json" if settings.json else settings.format](seen))
    return 1 if report.failed(seen, settings.fail_on) else os.EX_OK


def _top(settings: Settings, argv: Sequence[str]) -> int:
    return rates.watch(_running(settings))


_ACTIONS: dict[str, Callable[[Settings, Sequence[str]], int]] = {
    "run": _run,
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "reload": _reload,
    "status": _status,
    "report": _report,
    "top": _top,
}


# The server.


def _serve(settings: Settings, argv: Sequence[str], detached: bool) -> int:
    _take_standard_streams()
    with ExitStack() as undo:
        pidfile = None
        if settings.pid:  # before the ports, or a second copy would only hear that they are busy
            pidfile = daemonizer.Pidfile(settings.pid)
            undo.callback(pidfile.remove)
        service = Service(settings, argv, pidfile)
        if detached:
            service.detach()
        return service.run()


def _take_standard_streams() -> None:
    """Leave descriptors 0, 1 and 2 to nobody: a client with such a socket would read our log."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Setup:
    """One configuration, and what was opened for it."""

    settings: Settings
    bound: dict[Listener, list[socket.socket]]
    http: list[socket.socket]
    """Of the dashboard; empty when there is none."""
    tls: ssl.SSLContext | None
    scenario: Scenario

    @property
    def doors(self) -> set[socket.socket]:
        """Where mail comes in."""
        return {listening for sockets in self.bound.values() for listening in sockets}

    @property
    def sockets(self) -> set[socket.socket]:
        return self.doors.union(self.http)

    def describe(self) -> Iterator[str]:
        """A line for each listener: where, and how it treats its clients."""
        count = self.settings.workers
        workers = f"{count} worker{'s' if count > 1 else ''}"
        many = len(self.scenario.rules)
        rules = f", {many} rule{'s' if many > 1 else ''}" if many else ""
        for listener, sockets in self.bound.items():
            where = _where(listener, sockets)
            delay = ", delay {:g} to {:g} s".format(*listener.delay) if listener.delay else ""
            tls = "TLS" if listener.tls else "STARTTLS" if self.tls else "no TLS"
            proxied = ", behind a proxy" if listener.proxy else ""
            yield f"listening on {where}, mode {listener.mode}{delay}{rules}, {workers}, {tls}{proxied}"
        if self.http:
            where = _where(replace(self.settings.dashboard, names=()), self.http)
            yield f"dashboard on http://{where.replace(' and ', '/ and http://')}/"
        if self.settings.attempt_store.host:
            yield f"attempts are remembered at {self.settings.attempt_store}"


def _where(asked: Listener | DashboardAddress, sockets: list[socket.socket]) -> str:
    """The addresses that were bound; a port 0 has become another."""
    names = [bound.getsockname() for bound in sockets]
    return " and ".join(str(replace(asked, host=host, port=port)) for host, port, *_ in names)


def _open(
    settings: Settings,
    held: _Setup | None,
    warn: Callable[[str], None],
    handed: list[socket.socket] | None = None,
) -> _Setup:
    """Open what the settings ask for; what is held or handed for an address already is kept.

    Raises OperatorError.
    """
    handed = handed or []
    from blackhole.net import server

    settings, context, plot = _check(settings)
    kept = held.bound if held else {}
    by_address = {(listener.host, listener.port): sockets for listener, sockets in kept.items()}
    setup = _Setup(settings, {}, [], context, plot)
    try:
        for listener in settings.listeners:
            sockets = kept.get(listener) or by_address.get((listener.host, listener.port))
            sockets = sockets or systemd.take(handed, listener)
            setup.bound[listener] = sockets or server.bind(listener, settings.backlog)
        if settings.dashboard.host:
            setup.http[:] = systemd.take(handed, settings.dashboard) or _open_dashboard(settings, held, warn)
        systemd.reject_unclaimed(handed)
    except OperatorError:
        _close(setup.sockets - (held.sockets if held else set()))
        raise
    return setup


def _open_dashboard(
    settings: Settings, held: _Setup | None, warn: Callable[[str], None]
) -> list[socket.socket]:
    """The sockets of the dashboard; none where its address is the default one and taken."""
    from blackhole.net import server

    asked = settings.dashboard
    if held and held.http and replace(held.settings.dashboard, names=asked.names) == asked:
        return held.http
    try:
        return server.bind(asked, settings.backlog)
    except OperatorError as error:
        if settings.origins.get("dashboard") != "default":
            raise
        warn(f"no dashboard: {error}; --dashboard ADDRESS:PORT moves it, --dashboard off turns it off")
        return []


def _close(sockets: set[socket.socket]) -> None:
    for listening in sockets:
        listening.close()


class Service:
    """The master's side of a server: what it opened for its workers, and how that may change."""

    def __init__(self, settings: Settings, argv: Sequence[str], pidfile: daemonizer.Pidfile | None) -> None:
        """Open all there is to open, so that every mistake comes to light now. Raises OperatorError."""
        from blackhole.process import worker  # before the fork: once, and not in every worker

        self._live = worker.run
        self._began = time.monotonic()
        """When the clock of all scenarios began. A reload leaves it alone, or an outage would begin again."""
        self._attempts: AttemptTable | None = None
        """The memory of all workers, from the first rule on that needs one."""
        self._past: AttemptTable | None = None
        """Another, of what became of messages, so that these do not push out what rules have to know."""
        self._fleets: dict[RedisSettings, RedisAttemptStore] = {}
        """Those that are shared with other machines, as they were asked for."""
        self._asked = settings
        self._argv, self._environ, self._directory = argv, dict(os.environ), os.getcwd()
        self._pidfile = pidfile
        self._shell = daemonizer.LauncherPipe()
        self._detached = False
        self._setup = _open(settings, None, print_warning, systemd.inherited_sockets(os.environ))
        self._next: _Setup | None = None
        """What was opened for a reload, until it is settled."""
        owner = int(self._setup.settings.user), int(self._setup.settings.group)
        if owner[0] == 0:
            print_warning("workers run as root, as you asked for")
        if settings.log and settings.origins.get("log") == "default":
            with suppress(OSError):  # said better when the file cannot be opened
                os.makedirs(os.path.dirname(settings.log), 0o700, exist_ok=True)
        self._log = logs.set_up(settings.log, settings.debug, owner)
        self._ledger = History()
        self._clients: ClientTable | None = None
        """Made when a configuration first wants clients to be counted."""

    def detach(self) -> None:
        """Become a daemon. The process our caller waits for ends in here."""
        self._detached = True
        keep = [self._log, *(listening.fileno() for listening in self._setup.sockets)]
        if self._pidfile is not None:
            keep.append(self._pidfile.descriptor)
        self._shell = daemonizer.detach(keep)

    def run(self) -> int:
        """Serve until the end; the exit code."""
        setproctitle(daemonizer.TITLE)
        from blackhole.store.control import ControlChannel

        # Not before we are detached: python-daemon would close their descriptors.
        self._stats = Counters(64 + 16 * self._asked.workers)  # so that some reloads may drain at once
        self._orders = ControlChannel()
        if self._pidfile is not None:
            self._pidfile.write()
        code = Supervisor(
            self._plan(self._setup),
            self._stats,
            reload=self._reload,
            settle=self._settle,
            reopen=logs.reopen,
            leave=self._leave,
        ).run()
        if code and self._asked.log:
            print_warning(f"no worker can be kept running, see {self._asked.log}")
        self._shell.tell(code or os.EX_UNAVAILABLE)
        return code

    def _plan(self, setup: _Setup) -> ProcessPlan:
        from blackhole.net import server
        from blackhole.process.worker import RETIRE_SIGNAL
        from blackhole.store.attempts import AttemptTable
        from blackhole.store.redis_attempts import RedisAttemptStore

        for listener, sockets in setup.bound.items():
            self._stats.listener(server.address(listener, sockets))
        if setup.settings.counts_clients and self._clients is None:
            self._clients = ClientTable(self._stats.rows)
        # Over the dashboard rules may be ordered that need one. What nobody uses takes no memory.
        if self._attempts is None and (setup.http or server.remembers(setup.bound, setup.scenario)):
            self._attempts = AttemptTable(self._stats.rows)
        if self._past is None and (setup.http or server.watches(setup.bound, setup.scenario)):
            self._past = AttemptTable()
        if self._stats.client_log is None and setup.settings.show_clients:
            self._stats.client_log = ClientLog(self._stats.rows)
        if (asked := setup.settings.attempt_store).host and asked not in self._fleets:
            self._fleets[asked] = RedisAttemptStore(asked)

        def worker(number: int) -> Job:
            title = f"blackhole: worker {number}"
            return Job(title, partial(self._work, setup, title), RETIRE_SIGNAL)

        others = [Job(DASHBOARD, partial(self._show, setup))] if setup.http else []
        if setup.settings.progress and not self._detached:
            others.append(Job(PROGRESS, partial(self._tell, setup)))
        return ProcessPlan(worker, setup.settings.workers, tuple(others), setup.settings.drain_timeout)

    def _work(self, setup: _Setup, title: str, context: ChildContext) -> None:
        """In a worker: serve."""
        self._stats.set_owner(context.row, title)
        self._let_go(setup, setup.doors)
        daemonizer.drop_privileges(setup.settings.user, setup.settings.group)
        plot = replace(setup.scenario, began=self._began, past=self._past)
        if self._attempts is not None:
            self._attempts.set_row(context.row)
            plot = replace(plot, memory=self._fleets.get(setup.settings.attempt_store) or self._attempts)
        clients = self._clients if setup.settings.counts_clients else None
        self._live(setup.settings, setup.bound, setup.tls, self._stats, context, plot, clients, self._orders)

    def _show(self, setup: _Setup, context: ChildContext) -> None:
        """In the dashboard: show what the workers count."""
        self._stats.set_owner(context.row, DASHBOARD)
        self._let_go(setup, set(setup.http))
        # Before root is gone: it may be that only root can read where Blackhole is installed.
        from blackhole.web.control import Control
        from blackhole.web.dashboard import Dashboard

        control = Control(setup.settings, setup.scenario, self._orders, self._stats)
        dashboard = Dashboard(setup.settings, self._stats, self._ledger, context, control)
        daemonizer.drop_privileges(setup.settings.user, setup.settings.group)
        dashboard.run(setup.http)

    def _tell(self, setup: _Setup, context: ChildContext) -> None:
        """Beside a server in the foreground: say how it goes."""
        self._stats.set_owner(context.row, PROGRESS)
        self._let_go(setup, set())
        daemonizer.drop_privileges(setup.settings.user, setup.settings.group)
        rates.progress(self._stats, context.row, context.master_alive_fd)

    def _let_go(self, setup: _Setup, needed: set[socket.socket]) -> None:
        """In a child: close all that is the master's or another child's."""
        if self._pidfile is not None:
            self._pidfile.forget()
        self._shell.forget()
        _close(self._sockets() - needed)
        logs.set_level(setup.settings.debug)

    def _sockets(self) -> set[socket.socket]:
        return self._setup.sockets | (self._next.sockets if self._next is not None else set())

    # What the supervisor asks for.

    def _reload(self) -> ProcessPlan:
        """What the configuration asks for now. Ports that are open stay open."""
        daemonizer.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._next = _open(self._reread(), self._setup, partial(log.warning, "%s"))
        except OperatorError:
            daemonizer.notify("READY=1")
            raise
        return self._plan(self._next)

    def _reread(self) -> Settings:
        try:
            with chdir(self._directory):  # where the paths we were given begin
                invocation = options.parse(self._argv, self._environ)
        except OSError as error:
            raise OperatorError(f"{self._directory} is gone: {error.strerror}") from None
        for warning in invocation.warnings:
            log.warning("%s", warning)
        fresh = invocation.settings
        if fresh.workers + self._setup.settings.workers > self._stats.rows:
            raise OperatorError(f"{fresh.workers} workers are too many without a restart")
        for name in FIXED:
            if getattr(fresh, name) != getattr(self._asked, name):
                log.warning("%s stays as it is until the next start", name)
        return replace(fresh, **{name: getattr(self._setup.settings, name) for name in FIXED})

    def _settle(self, taken: bool) -> None:
        """Workers are ready: the first, or those of a reload, or the old ones go on after all."""
        if self._next is None:
            self._announce()
        else:
            old, new = (self._setup, self._next) if taken else (self._next, self._setup)
            self._setup, self._next = new, None
            if not new.settings.show_clients:
                self._stats.client_log = None
            _close(old.sockets - new.sockets)
            for line in self._setup.describe():
                log.info("%s %s", "reloaded:" if taken else "still", line)
        daemonizer.notify("READY=1")

    def _announce(self) -> None:
        for line in self._setup.describe():
            print_stderr(f"blackhole {__version__}: {line}")
            if self._asked.log:
                log.info("%s", line)
        how = "blackhole stop ends it" if self._shell.waits else "Ctrl-C stops it"
        print_stderr(f"{how}. All mail is thrown away.")
        self._shell.tell(os.EX_OK)

    def _leave(self) -> None:
        """Let nobody in any more: while the master has a socket open, clients would come and wait."""
        daemonizer.notify("STOPPING=1")
        _close(self._sockets())
