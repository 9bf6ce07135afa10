"""The command `blackhole`, and `python -m blackhole`."""

from __future__ import annotations

import sys

NO_LINUX = (
    "Blackhole runs on Linux only. Elsewhere, run it in a container: "
    "podman run --rm -p 2525:2525 -p 8025:8025 IMAGE, built as contrib/container/README.md says"
)
UNAVAILABLE = 69
"""EX_UNAVAILABLE of sysexits.h, which `os` does not have on Windows."""


def main() -> int:
    """Do what the command line asks for and return the exit status."""
    if sys.platform != "linux":
        print(NO_LINUX, file=sys.stderr)
        return UNAVAILABLE
    try:
        from blackhole import main as program  # it imports what only Linux has
    except KeyboardInterrupt:  # Ctrl-C in the first tenths of a second
        return 128 + 2

    return program.main()


if __name__ == "__main__":
    raise SystemExit(main())
