"""The service: the master's side of a server, from opening its sockets to stopping its workers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, chdir, suppress
from dataclasses import dataclass, replace
from functools import partial
from socket import socket
from typing import Final

from setproctitle import setproctitle

from blackhole import __version__, options
from blackhole.metrics import rates
from blackhole.process import configuration, daemonizer, logs, systemd, worker
from blackhole.process.configuration import Configuration
from blackhole.process.console import print_stderr, print_warning
from blackhole.process.pidfile import MASTER_TITLE, Pidfile
from blackhole.process.plan import ChildContext, Job, ProcessPlan
from blackhole.process.privileges import drop_privileges
from blackhole.process.shared_state import SharedState
from blackhole.process.supervisor import Supervisor
from blackhole.process.worker import RETIRE_SIGNAL, WorkerContext
from blackhole.settings import OperatorError, Settings
from blackhole.web.history import History

log = logging.getLogger(__name__)

WORKER_TITLE: Final = "blackhole: worker {}"
DASHBOARD_TITLE: Final = "blackhole: dashboard"
PROGRESS_TITLE: Final = "blackhole: progress"

FIXED_SETTINGS: Final = ("user", "group", "pid", "log")
"""Settings that a reload cannot change: files were opened and given to a user by them."""

SPARE_ROWS: Final = 64
ROWS_PER_WORKER: Final = 16
"""Rows of the shared counters, so many that the workers of several reloads can drain at once."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Where the settings came from, so that a reload can read them again."""

    arguments: Sequence[str]
    environ: Mapping[str, str]
    directory: str
    """Relative paths begin here; a daemon has another working directory."""

    def read(self) -> options.Invocation:
        """Return what the command line, the environment and the conf file ask for now.

        Raises OperatorError.
        """
        try:
            with chdir(self.directory):
                return options.parse(self.arguments, self.environ)
        except OSError as error:
            raise OperatorError(f"cannot enter {self.directory}: {error.strerror}") from None


def serve(settings: Settings, arguments: Sequence[str], detached: bool) -> int:
    """Run a server until it is told to stop; return the exit status. Raises OperatorError."""
    _reserve_standard_streams()
    with ExitStack() as on_exit:
        pidfile = None
        if settings.pid:  # before the ports: a second copy should hear "already running", not "port in use"
            pidfile = Pidfile(settings.pid)
            on_exit.callback(pidfile.remove)
        command_line = CommandLine(arguments, dict(os.environ), os.getcwd())
        service = Service(settings, command_line, pidfile)
        if detached:
            service.detach()
        return service.run()


def _reserve_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 where they are closed: a socket with such a number would get log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


class Service:
    """What the master opened for its workers, and how a reload changes it.

    Service(settings, command_line, pidfile).run()  # serves until a signal; returns the exit status
    """

    def __init__(self, settings: Settings, command_line: CommandLine, pidfile: Pidfile | None) -> None:
        """Load and open everything, so that every mistake shows before the start. Raises OperatorError."""
        self._settings: Final = settings
        """As given at the start; `self._current` has those of the last reload."""
        self._command_line: Final = command_line
        self._pidfile: Final = pidfile
        self._launcher = daemonizer.LauncherPipe()
        self._detached = False
        self._began: Final = time.monotonic()
        """When the clock of all scenarios began. A reload does not restart an outage."""
        self._current = configuration.open_sockets(
            configuration.load(settings, print_warning),
            None,
            systemd.inherited_sockets(os.environ),
            print_warning,
        )
        self._next: Configuration | None = None
        """What a reload opened, until its workers are ready or have failed."""
        owner = int(self._current.settings.user), int(self._current.settings.group)
        if owner[0] == 0:
            print_warning("workers run as root, as you asked for")
        if settings.log and settings.origins.get("log") == "default":
            with suppress(OSError):  # opening the file gives the reason
                os.makedirs(os.path.dirname(settings.log), 0o700, exist_ok=True)
        self._log_fd: Final = logs.set_up(settings.log, settings.debug, owner)
        self._history: Final = History()

    def detach(self) -> None:
        """Become a daemon. The process that was started ends in here once the daemon is ready."""
        self._detached = True
        keep = [self._log_fd, *(listening.fileno() for listening in self._current.sockets)]
        if self._pidfile is not None:
            keep.append(self._pidfile.descriptor)
        self._launcher = daemonizer.detach(keep)

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        setproctitle(MASTER_TITLE)
        # Not before `detach`, in which python-daemon closes all descriptors it was not told to keep.
        self._shared = SharedState(SPARE_ROWS + ROWS_PER_WORKER * self._settings.workers)
        if self._pidfile is not None:
            self._pidfile.write()
        code = Supervisor(self._plan(self._current), self._shared.counters, self).run()
        if code and self._settings.log:
            print_warning(f"no worker can be kept running, see {self._settings.log}")
        self._launcher.send_exit_code(code or os.EX_UNAVAILABLE)
        return code

    def _plan(self, wanted: Configuration) -> ProcessPlan:
        self._shared.prepare(wanted)

        def worker_job(number: int) -> Job:
            title = WORKER_TITLE.format(number)
            return Job(title, partial(self._run_worker, wanted, title), RETIRE_SIGNAL)

        others = []
        if wanted.dashboard_sockets:
            others.append(Job(DASHBOARD_TITLE, partial(self._run_dashboard, wanted)))
        if wanted.settings.progress and not self._detached:
            others.append(Job(PROGRESS_TITLE, partial(self._run_progress, wanted)))
        return ProcessPlan(worker_job, wanted.settings.workers, tuple(others), wanted.settings.drain_timeout)

    # The jobs. Each runs in a child process.

    def _run_worker(self, wanted: Configuration, title: str, child: ChildContext) -> None:
        """Serve SMTP."""
        settings, shared = wanted.settings, self._shared
        shared.counters.set_owner(child.row, title)
        self._close_unneeded(wanted, wanted.smtp_sockets)
        drop_privileges(settings.user, settings.group)
        scenario = replace(shared.attach(wanted, child.row), clock_origin=self._began)
        worker.run(
            WorkerContext(
                settings,
                wanted.bound,
                wanted.tls,
                scenario,
                shared.counters,
                shared.control,
                child,
                shared.clients(wanted),
            )
        )

    def _run_dashboard(self, wanted: Configuration, child: ChildContext) -> None:
        """Show what the workers count."""
        settings, shared = wanted.settings, self._shared
        shared.counters.set_owner(child.row, DASHBOARD_TITLE)
        self._close_unneeded(wanted, set(wanted.dashboard_sockets))
        # Imported here: workers need no tornado.web. Before root is dropped: the installation may be
        # readable by root alone.
        from blackhole.web.control import ScenarioControl
        from blackhole.web.dashboard import Dashboard

        control = ScenarioControl(settings, wanted.scenario.scenario, shared.control, shared.counters)
        dashboard = Dashboard(settings, shared.counters, self._history, child, control)
        drop_privileges(settings.user, settings.group)
        dashboard.run(wanted.dashboard_sockets)

    def _run_progress(self, wanted: Configuration, child: ChildContext) -> None:
        """Write the live rate to standard error."""
        self._shared.counters.set_owner(child.row, PROGRESS_TITLE)
        self._close_unneeded(wanted, set())
        drop_privileges(wanted.settings.user, wanted.settings.group)
        rates.progress(self._shared.counters, child.row, child.master_alive_fd)

    def _close_unneeded(self, wanted: Configuration, needed: set[socket]) -> None:
        """Close what belongs to the master or to other children."""
        if self._pidfile is not None:
            self._pidfile.close()
        self._launcher.close()
        configuration.close(self._sockets() - needed)
        logs.set_level(wanted.settings.debug)

    def _sockets(self) -> set[socket]:
        return self._current.sockets | (self._next.sockets if self._next is not None else set())

    # What the supervisor calls, in the master.

    def reload(self) -> ProcessPlan:
        """Return the plan of the configuration as it is now; open ports stay open. Raises OperatorError."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        warn = partial(log.warning, "%s")
        try:
            loaded = configuration.load(self._read_settings(), warn)
            self._next = configuration.open_sockets(loaded, self._current, [], warn)
        except OperatorError:
            systemd.notify("READY=1")
            raise
        return self._plan(self._next)

    def _read_settings(self) -> Settings:
        """Return the settings of a reload; those of FIXED_SETTINGS stay. Raises OperatorError."""
        invocation = self._command_line.read()
        for warning in invocation.warnings:
            log.warning("%s", warning)
        fresh, current = invocation.settings, self._current.settings
        if fresh.workers + current.workers > self._shared.counters.rows:
            raise OperatorError(f"{fresh.workers} workers are too many for a reload; restart instead")
        for name in FIXED_SETTINGS:
            if getattr(fresh, name) != getattr(self._settings, name):
                log.warning("%s stays as it is until the next start", name)
        return replace(fresh, **{name: getattr(current, name) for name in FIXED_SETTINGS})

    def ready(self) -> None:
        """Tell the operator, the launcher and systemd that the first workers accept connections."""
        for line in self._current.describe():
            print_stderr(f"blackhole {__version__}: {line}")
            if self._settings.log:
                log.info("%s", line)
        how = 'Stop it with "blackhole stop".' if self._launcher.is_open else "Ctrl-C stops it."
        print_stderr(f"{how} All mail is thrown away.")
        self._launcher.send_exit_code(os.EX_OK)
        systemd.notify("READY=1")

    def reload_finished(self, succeeded: bool) -> None:
        """Close what is no longer used: of the old configuration, or of the new one if it failed."""
        assert self._next is not None
        old, new = (self._current, self._next) if succeeded else (self._next, self._current)
        self._current, self._next = new, None
        if not new.settings.show_clients:
            self._shared.counters.client_log = None
        configuration.close(old.sockets - new.sockets)
        for line in new.describe():
            log.info("%s %s", "reloaded:" if succeeded else "still", line)
        systemd.notify("READY=1")

    def reopen_log(self) -> None:
        """Open the log file again after its rotation."""
        logs.reopen()

    def stop_listening(self) -> None:
        """Close the sockets: as long as the master has one open, clients connect and wait in vain."""
        systemd.notify("STOPPING=1")
        configuration.close(self._sockets())
