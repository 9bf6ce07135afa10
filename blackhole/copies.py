"""Other copies of Blackhole on this machine: packages that Python could import, and commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final

PACKAGE: Final = "blackhole"


def other_packages(own: str, path: Iterable[str]) -> Iterator[str]:
    """Yield the folders of other packages of that name on `path`; `own` is the folder of this one."""
    yield from _others((os.path.join(folder, PACKAGE) for folder in path), "__init__.py", own)


def other_commands(own: str, path: str) -> Iterator[str]:
    """Yield other commands of that name on `path`, as PATH has it; `own` is the one that runs."""
    folders = (folder for folder in path.split(os.pathsep) if folder)
    found = (os.path.join(folder, PACKAGE) for folder in folders)
    yield from _others(filter(lambda command: os.access(command, os.X_OK), found), "", own)


def _others(found: Iterable[str], file: str, own: str) -> Iterator[str]:
    seen = {os.path.realpath(own)}
    for place in found:
        if os.path.isfile(os.path.join(place, file) if file else place):
            real = os.path.realpath(place)
            if real not in seen:
                seen.add(real)
                yield place


def warnings() -> Iterator[str]:
    """Yield a line for each other copy."""
    package = os.path.dirname(__file__)
    for place in other_packages(package, sys.path):
        yield f"Another package {PACKAGE} is in {place}; this one is in {package}"
    command = sys.argv[0]
    if os.path.basename(command) == PACKAGE:  # else it runs as a module
        for place in other_commands(command, os.environ.get("PATH", "")):
            yield f"Another command {PACKAGE} is {place}; this one is {command}"
