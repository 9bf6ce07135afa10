"""The service: the master's side of a server, from opening its sockets to stopping its workers."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from socket import socket
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from setproctitle import setproctitle

from blackhole import __version__
from blackhole.metrics import rates, status
from blackhole.process import configuration, daemonizer, logs, orphans, systemd, worker
from blackhole.process.configuration import Configuration, Inputs
from blackhole.process.console import print_stderr, print_warning, try_print_stderr
from blackhole.process.message_total import COMPLETION_POLL
from blackhole.process.order_guard import OrderGuard
from blackhole.process.pidfile import Pidfile
from blackhole.process.plan import ChildContext, Job, ProcessPlan
from blackhole.process.prctl import signal_when_parent_dies
from blackhole.process.privileges import drop_privileges
from blackhole.process.processes import MASTER_TITLE
from blackhole.process.program_files import ProgramFiles
from blackhole.process.settings_source import SettingsSource, working_directory
from blackhole.process.shared_state import SharedState
from blackhole.process.start_warnings import StartWarnings
from blackhole.process.supervisor import Supervisor
from blackhole.process.terminal import Terminal
from blackhole.process.timing import Timing
from blackhole.process.worker import RETIRE_SIGNAL, WorkerContext
from blackhole.rules import scenario
from blackhole.settings import OperatorError, Settings
from blackhole.web.history import History

if TYPE_CHECKING:
    from blackhole.web.static_files import StaticFile

log = logging.getLogger(__name__)

WORKER_TITLE: Final = "blackhole: worker {}"
DASHBOARD_TITLE: Final = "blackhole: dashboard"
PROGRESS_TITLE: Final = "blackhole: progress"

FIXED_SETTINGS: Final = ("user", "group", "pid", "log")
"""Settings that a reload cannot change: files were opened and given to a user by them."""

ENDING_SIGNALS: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
"""Signals that end a start; afterwards the supervisor takes them."""

MAX_LOAD_SECONDS: Final = 5.0
"""Processor time that a reload may take in the master, which answers no signal meanwhile."""

MAX_OTHER_JOBS: Final = 2
"""The dashboard and the progress line."""

SPARE_ROWS: Final = 64
ROWS_PER_WORKER: Final = 16
"""Rows of the shared counters, so many that the workers of several reloads can drain at once."""


class ReloadInputs(NamedTuple):
    """What a child process read for a reload."""

    inputs: Inputs
    warnings: tuple[str, ...]


def serve(settings: Settings, arguments: Sequence[str], detached: bool, warnings: Sequence[str] = ()) -> int:
    """Run a server until it is told to stop; return the exit status. Raises OperatorError.

    `warnings` are those that the operator has seen already; they and all others of the start go to the log
    file too.
    """
    for number in ENDING_SIGNALS:
        signal.signal(number, _end)
    told = StartWarnings(warnings)
    with ExitStack() as on_exit:
        pidfile = None
        if settings.pid:  # before the ports: a second copy should hear "already running", not "port in use"
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)  # in between, it would leave a file
            try:
                pidfile = Pidfile(settings.pid)
                on_exit.callback(pidfile.remove)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
            for line in orphans.end_listening(pidfile.left_behind):
                told.warn(line)
        source = SettingsSource(arguments, dict(os.environ), working_directory())
        service = Service(settings, source, pidfile, told)
        on_exit.callback(service.remove_socket_files)
        if detached:
            service.detach()
        return service.run()


def _end(number: int, frame: object) -> NoReturn:
    """End during the start, and remove the pidfile. Further signals do not interrupt that."""
    for other in ENDING_SIGNALS:
        # Not SIG_IGN: CPython would write of one that is pending that it was "ignored due to race condition".
        signal.signal(other, _go_on)
    raise SystemExit(128 + number)


def _go_on(number: int, frame: object) -> None:
    """Do nothing for a signal."""


class Service:
    """What the master opened for its workers, and how a reload changes it.

    Service(settings, source, pidfile, warnings).run()  # serves until a signal; returns the exit status
    """

    def __init__(
        self, settings: Settings, source: SettingsSource, pidfile: Pidfile | None, warnings: StartWarnings
    ) -> None:
        """Load and open everything, so that every mistake shows before the start. Raises OperatorError."""
        self._settings: Final = settings
        """As given at the start; `self._current` has those of the last reload."""
        self._source: Final = source
        self._pidfile: Final = pidfile
        self._launcher = daemonizer.LauncherPipe()
        self._detached = False
        self._began: Final = time.monotonic()
        """When the clock of all scenarios began. A reload does not restart an outage."""
        self._terminal: Final = Terminal()
        self._current = configuration.open_sockets(
            configuration.load(settings, warnings.warn),
            None,
            systemd.inherited_sockets(os.environ),
            warnings.warn,
        )
        self._next: Configuration | None = None
        """What a reload opened, until its workers are ready or have failed."""
        self._profiles: Final = scenario.read_profiles()
        self._prepare_dashboard()
        self._program: Final = ProgramFiles()
        owner = int(self._current.settings.user), int(self._current.settings.group)
        if owner[0] == 0:
            warnings.warn("workers run as root, as you asked for")
        if settings.log and settings.origins.get("log") == "default":
            with suppress(OSError):  # opening the file gives the reason
                os.makedirs(os.path.dirname(settings.log), 0o700, exist_ok=True)
        self._log_fd: Final = logs.set_up(settings.log, settings.debug, owner, settings.log_format)
        if settings.log:
            warnings.write_to_log()
        self._history: Final = History()

    def _prepare_dashboard(self) -> None:
        """Import and read what the dashboard needs: an upgrade replaces the files of the program.

        Mail does not depend on it, so an error is reported by the process of the dashboard.
        """
        self._page: Mapping[str, StaticFile] = {}
        with suppress(Exception):
            from blackhole.web import control, dashboard, static_files  # noqa: F401

            self._page = static_files.load_files()

    def detach(self) -> None:
        """Become a daemon. The process that was started ends in here once the daemon is ready."""
        self._detached = True
        keep = [self._log_fd, *(listening.fileno() for listening in self._current.sockets)]
        if self._pidfile is not None:
            keep += [self._pidfile.descriptor, self._pidfile.lock_descriptor]
        self._launcher = daemonizer.detach(keep)

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        setproctitle(MASTER_TITLE)
        self._master_pid = os.getpid()
        # Not before `detach`, in which python-daemon closes all descriptors it was not told to keep.
        self._shared = SharedState(SPARE_ROWS + ROWS_PER_WORKER * self._settings.workers)
        self._order_guard = OrderGuard(self._shared.counters, self._shared.control)
        self._write_facts(())
        if self._pidfile is not None:
            self._pidfile.write()
        timing = Timing(poll=COMPLETION_POLL) if self._settings.stop_after else Timing()
        code = Supervisor(self._plan(self._current), self._shared.counters, self, timing).run()
        if code and self._settings.log:
            print_warning(f"no worker can be kept running, see {self._settings.log}")
        if not code:
            self._report_figures()
        self._launcher.send_exit_code(code or os.EX_UNAVAILABLE)
        return code

    def _report_figures(self) -> None:
        """Report the figures of the run: on standard error in the foreground, and in a log file."""
        lines = list(status.end_lines(self._shared.counters.snapshot()))
        if not self._detached:
            all(try_print_stderr(f"blackhole: {line}") for line in lines)
        if self._settings.log:
            for line in lines:
                log.info("%s", line)

    def _write_facts(self, failed: Collection[str]) -> None:
        """Write what other processes may know of the server. `failed` are the jobs that did not start."""
        facts = self._current.facts(DASHBOARD_TITLE not in failed)
        at_start = {
            name: self._settings.texts[name] for name in FIXED_SETTINGS if name in self._settings.texts
        }
        self._shared.facts.write(facts | {"options": facts["options"] | at_start})

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
        logs.receive_from(child.log_channel)
        self._drop_privileges(settings)
        active = replace(shared.attach(wanted, child.row), clock_origin=self._began)
        worker.run(
            WorkerContext(
                settings,
                wanted.bound,
                wanted.tls,
                active,
                shared.counters,
                shared.control,
                child,
                shared.clients(wanted),
                shared.limit_log,
                shared.messages,
                shared.recent(wanted),
                shared.fleet_store(wanted),
                shared.namespace_state(wanted),
                wanted.dkim_keys,
            )
        )

    def _run_dashboard(self, wanted: Configuration, child: ChildContext) -> None:
        """Show what the workers count."""
        settings, shared = wanted.settings, self._shared
        shared.counters.set_owner(child.row, DASHBOARD_TITLE)
        self._close_unneeded(wanted, set(wanted.dashboard_sockets))
        logs.receive_from(child.log_channel)
        from blackhole.web.dashboard import Dashboard

        dashboard = Dashboard(
            settings,
            shared.counters,
            self._history,
            self._page,
            child,
            replace(wanted.scenario, clock_origin=self._began),
            self._profiles,
            shared.control,
            shared.machine_id,
            set(wanted.tls.values()),
            wanted.menu,
            shared.recent(wanted),
            shared.messages,
            shared.shared_outcomes(wanted),
            shared.namespace_state(wanted),
        )
        self._drop_privileges(settings)
        dashboard.run(wanted.dashboard_sockets, wanted.dashboard_tls)

    def _run_progress(self, wanted: Configuration, child: ChildContext) -> None:
        """Write the live rate to standard error."""
        self._shared.counters.set_owner(child.row, PROGRESS_TITLE)
        self._close_unneeded(wanted, set())
        self._drop_privileges(wanted.settings)
        rates.progress(self._shared.counters, child.heartbeat.beat, child.master_alive_fd)

    def _drop_privileges(self, settings: Settings) -> None:
        """Become the user of the workers, in a child that may not outlive the master while it is stopped."""
        drop_privileges(settings.user, settings.group)
        # A stopped process does not notice that the master is gone, and keeps its ports. Continued, it does.
        signal_when_parent_dies(signal.SIGCONT, self._master_pid)

    def _close_unneeded(self, wanted: Configuration, needed: set[socket]) -> None:
        """Close what belongs to the master or to other children."""
        if self._pidfile is not None:
            self._pidfile.close()
        self._launcher.close()
        configuration.close(self._sockets() - needed)
        logs.configure(wanted.settings.debug, wanted.settings.log_format)

    def remove_socket_files(self) -> None:
        """Remove the files of UNIX sockets, in the master when it ends."""
        for one in filter(None, (self._current, self._next)):
            configuration.remove_files(one, None)

    def _sockets(self) -> set[socket]:
        return self._current.sockets | (self._next.sockets if self._next is not None else set())

    # What the supervisor calls, in the master.

    def reload_began(self) -> None:
        """Tell systemd."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def read(self) -> ReloadInputs:
        """Read the configuration as it is now. Raises OperatorError.

        It runs in a child process, because a file system or a resolver may keep it waiting.
        """
        warnings: list[str] = []
        self._close_unneeded(self._current, set())
        settings = self._read_settings(warnings.append)
        inputs = configuration.read(settings, warnings.append, self._current.menu)
        began = time.process_time()
        configuration.make(inputs, warnings.append)
        seconds = time.process_time() - began
        if seconds > MAX_LOAD_SECONDS:
            raise OperatorError(f"the scenarios take {seconds:.0f} s to load; restart instead")
        configuration.resolve_listeners(inputs.settings)
        return ReloadInputs(inputs, tuple(warnings))

    def _read_settings(self, warn: Callable[[str], None]) -> Settings:
        """Return the settings of a reload; those of FIXED_SETTINGS stay. Raises OperatorError."""
        invocation = self._source.read()
        for warning in invocation.warnings:
            warn(warning)
        fresh, current = invocation.settings, self._current.settings
        for name in FIXED_SETTINGS:
            if getattr(fresh, name) != getattr(self._settings, name):
                warn(f"{name} stays as it is until the next start")
        if self._program.changed():
            warn("the files of the program have changed since its start: restart it to run them")
        return replace(fresh, **{name: getattr(current, name) for name in FIXED_SETTINGS})

    def reload(self, what: object) -> ProcessPlan:
        """Return the plan of the configuration that was read; open ports stay open. Raises OperatorError."""
        assert isinstance(what, ReloadInputs)
        for warning in what.warnings:
            log.warning("%s", warning)
        workers = what.inputs.settings.workers
        if workers + MAX_OTHER_JOBS > self._shared.counters.rows // 2:
            raise OperatorError(f"{workers} workers are too many for a reload; restart instead")
        loaded = configuration.make(what.inputs, lambda warning: None)
        self._next = configuration.open_sockets(loaded, self._current, [], partial(log.warning, "%s"))
        return self._plan(self._next)

    def ready(self, failed: Collection[str]) -> None:
        """Tell the operator, the launcher and systemd that the first workers accept connections."""
        self._write_facts(failed)
        for line in self._current.describe(DASHBOARD_TITLE not in failed):
            print_stderr(f"blackhole {__version__}: {line}")
            if self._settings.log:
                log.info("%s", line)
        how = 'Stop it with "blackhole stop".' if self._launcher.is_open else "Ctrl-C stops it."
        print_stderr(f"{how} All mail is thrown away.")
        self._launcher.send_exit_code(os.EX_OK)
        systemd.notify("READY=1")

    def reload_failed(self) -> None:
        """Tell systemd."""
        systemd.notify("READY=1")

    def reload_finished(self, succeeded: bool, failed: Collection[str]) -> None:
        """Close what is no longer used: of the old configuration, or of the new one if it failed."""
        assert self._next is not None
        old, new = (self._current, self._next) if succeeded else (self._next, self._current)
        self._current, self._next = new, None
        logs.configure(new.settings.debug, new.settings.log_format)
        self._shared.forget_unused(new)
        configuration.close(old.sockets - new.sockets)
        configuration.remove_files(old, new)
        self._write_facts(failed)
        for line in new.describe(DASHBOARD_TITLE not in failed):
            log.info("%s %s", "reloaded:" if succeeded else "still", line)
        systemd.notify("READY=1")

    def child_started(self, pid: int) -> None:
        """Write it down."""
        if self._pidfile is not None:
            self._pidfile.record_child(pid)

    def is_complete(self, messages: int) -> bool:
        """Return whether there were as many messages as the server was started for."""
        settings, total = self._current.settings, self._shared.messages
        if settings.fleet.host and total is not None:
            messages += total.elsewhere
        if not settings.stop_after or messages < settings.stop_after:
            return False
        log.info("%d messages have come", settings.stop_after)
        return True

    def is_terminal_closed(self) -> bool:
        """Return whether the terminal of a server in the foreground is gone."""
        return not self._detached and self._terminal.is_closed()

    def open_log(self, channel: socket) -> None:
        """Open the log file again after its rotation, in a child process, and send it to the master."""
        self._close_unneeded(self._current, set())
        logs.open_again(channel)

    def use_log(self, channel: socket) -> None:
        """Use the log file that was sent."""
        logs.use(channel)

    def check_order(self, row: int, hung: bool) -> None:
        """Drop the order in force if a child has died of it."""
        self._order_guard.check(row, hung)

    def child_exited(self, row: int) -> None:
        """Release what a child that has exited still held in shared memory."""
        self._shared.release_row(row)

    def send_log(self, channel: socket) -> None:
        """Send the log file to a child, which may not be able to open it."""
        logs.send(channel)

    def stop_listening(self) -> None:
        """Close the sockets: as long as the master has one open, clients connect and wait in vain."""
        systemd.notify("STOPPING=1")
        configuration.close(self._sockets())
        self.remove_socket_files()
