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

from tests.faults.row import Row, Trial, table


def order(name: str) -> tuple[str, int]:
    return name[0], int(name[1:])


def machine() -> str:
    load = os.getloadavg()[0]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} cores, load {load:.1f}, {python}, Linux {platform.release()}"


def attempt(row: Row, full: bool, whole: bool) -> dict[str, Any]:
    """Measure one row."""
    began, busy = time.monotonic(), os.getloadavg()[0]
    error = ""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        Path(folder).chmod(0o755)
        trial = Trial(Path(folder), full, whole)
        try:
            if row.root and os.geteuid() != 0:
                raise PermissionError("only root can measure it")
            row.measure(trial)
        except Exception as fault:
            traceback.print_exc()
            error = f"failed: {fault!r}"
    measured = "; ".join([*map(str, trial.figures), *([error] if error else [])])
    if trial.notes:
        measured += f" ({'; '.join(trial.notes)})"
    return {
        "id": row.id,
        "fault": row.fault,
        "goal": row.goal,
        "how": row.how,
        "measured": measured,
        "reached": not error and all(figure.reached for figure in trial.figures),
        "figures": [figure._asdict() for figure in trial.figures],
        "seconds": round(time.monotonic() - began, 1),
        "load": round(busy, 1),
    }


def markdown(results: list[dict[str, Any]]) -> str:
    lines = ["| | fault | goal | measured | |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['id']} | {one['fault']} | {one['goal']} | {one['measured']} | "
        f"{'yes' if one['reached'] else '**no**'} |"
        for one in results
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Measure Blackhole under faults."
    )
    parser.add_argument("--only", help="some rows: G1,L3")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small trials, as the tests run them")
    size.add_argument("--full", action="store_true", help="as much as each goal names: two hours")
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    chosen = parser.parse_args()
    rows = table()
    names = chosen.only.split(",") if chosen.only else sorted(rows, key=order)
    if unknown := set(names) - rows.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    before = machine()
    print(before)
    results = []
    for name in names:
        one = attempt(rows[name], not chosen.quick, chosen.full)
        results.append(one)
        print(
            f"{name:4} {'ok' if one['reached'] else 'MISSED':6} {one['seconds']:6.1f} s  "
            f"{one['fault']}: {one['measured']}",
            flush=True,
        )
    if chosen.markdown:
        chosen.markdown.write_text(markdown(results))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": before, "rows": results}, indent=1) + "\n")
    missed = [one["id"] for one in results if not one["reached"]]
    print(
        f"{len(results) - len(missed)} of {len(results)} goals reached "
        f"in {sum(one['seconds'] for one in results) / 60:.1f} minutes"
        + (f"; not: {' '.join(missed)}" if missed else "")
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
