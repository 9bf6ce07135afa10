"""The command line: python -m tests.faults [--only G1,L3] [--quick|--full] [--markdown FILE] [--json FILE]"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.fault import Fault, Trial, all_faults


def sort_key(name: str) -> tuple[str, int]:
    """Order L2 before L10."""
    return name[0], int(name[1:])


def machine() -> str:
    """Return a line about the machine, for the reader of the figures."""
    load = os.getloadavg()[0]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} cores, load {load:.1f}, {python}, Linux {platform.release()}"


def measure(fault: Fault, full: bool, whole: bool) -> dict[str, Any]:
    """Measure one fault and return its row of the table."""
    began, load = time.monotonic(), os.getloadavg()[0]
    error = ""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        Path(folder).chmod(0o755)
        trial = Trial(Path(folder), full, whole)
        try:
            if fault.needs_root and os.geteuid() != 0:
                raise PermissionError("only root can measure this fault")
            fault.measure(trial)
        except Exception as exception:
            traceback.print_exc()
            error = f"failed: {exception!r}"
    measured = "; ".join([*map(str, trial.figures), *([error] if error else [])])
    if trial.notes:
        measured += f" ({'; '.join(trial.notes)})"
    return {
        "id": fault.id,
        "fault": fault.fault,
        "goal": fault.goal,
        "method": fault.method,
        "measured": measured,
        "reached": not error and all(figure.reaches_goal for figure in trial.figures),
        "figures": [figure._asdict() for figure in trial.figures],
        "seconds": round(time.monotonic() - began, 1),
        "load": round(load, 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of results."""
    lines = ["| | fault | goal | measured | goal reached |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['id']} | {row['fault']} | {row['goal']} | {row['measured']} | "
        f"{'yes' if row['reached'] else '**no**'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Measure Blackhole under faults."
    )
    parser.add_argument("--only", metavar="IDS", help="measure only these faults, such as G1,L3")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small trials, as in `make test`")
    size.add_argument("--full", action="store_true", help="the sizes that the goals name: two hours")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    arguments = parser.parse_args()
    faults = all_faults()
    names = arguments.only.split(",") if arguments.only else sorted(faults, key=sort_key)
    if unknown := set(names) - faults.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    machine_before = machine()
    print(machine_before)
    rows = []
    for name in names:
        row = measure(faults[name], not arguments.quick, arguments.full)
        rows.append(row)
        print(
            f"{name:4} {'ok' if row['reached'] else 'MISSED':6} {row['seconds']:6.1f} s  "
            f"{row['fault']}: {row['measured']}",
            flush=True,
        )
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine_before, "rows": rows}, indent=1) + "\n")
    missed = [row["id"] for row in rows if not row["reached"]]
    print(
        f"{len(rows) - len(missed)} of {len(rows)} goals reached "
        f"in {sum(row['seconds'] for row in rows) / 60:.1f} minutes"
        + (f"; missed: {' '.join(missed)}" if missed else "")
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
