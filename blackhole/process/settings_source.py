"""The source of the settings: the command line, the environment and the conf file, read again by a reload."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass

from blackhole import options
from blackhole.settings import OperatorError


@dataclass(frozen=True, slots=True)
class SettingsSource:
    """Where the settings came from, so that a reload can read them again."""

    arguments: Sequence[str]
    environ: Mapping[str, str]
    directory: str
    """Relative paths begin here; a daemon has another working directory. Empty if it is deleted."""

    def read(self) -> options.Invocation:
        """Return what the command line, the environment and the conf file ask for now.

        Raises OperatorError.
        """
        try:
            with chdir(self.directory or "/"):
                return options.parse(self.arguments, self.environ)
        except OSError as error:
            raise OperatorError(f"cannot enter {self.directory}: {error.strerror}") from None


def working_directory() -> str:
    """Return the path of the working directory; nothing if it is deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:  # no path is relative: `options.parse` has refused that
        return ""
