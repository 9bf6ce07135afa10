"""The command line: python -m benchmarks [--quick] [--shapes connection,reused] ..."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import (
    comparison,
    fairness,
    features,
    growth,
    idle,
    latency,
    machine,
    scenarios,
    spread,
    stages,
    startup,
    waiting,
)
from benchmarks.failure import Failure
from benchmarks.plan import Plan
from benchmarks.server import SERVERS, Server, blackhole
from benchmarks.table import Table, as_json, grid, heading, markdown, summary

SHAPES: dict[str, Callable[[Plan], Table]] = {
    **{shape.name: comparison.compare_servers(shape) for shape in comparison.LOADS},
    **{shape.name: comparison.compare_over_tls(shape) for shape in comparison.TLS_LOADS},
    **{f"workers-{shape.name}": comparison.compare_workers(shape) for shape in comparison.LOADS[:2]},
    "idle": idle.measure,
    "spread": spread.measure,
    "latency": latency.measure,
    "start": startup.measure,
    "noops": fairness.NOOPS,
    "data": fairness.DATA,
    "scenarios": scenarios.measure,
    "stages": stages.measure,
    "growth": growth.measure_rules,
    "tracking": growth.measure_memory,
    "waiting": waiting.measure,
    "features": features.measure,
}

DEFAULT_SHAPES = [shape for shape in SHAPES if shape != "features"]
"""The shapes measured by default: `features` compares Blackhole with itself only."""

QUICK = ["smtp-sink", "blackhole", "kernel floor", "openssl s_server"]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the type of an option that takes a comma-separated list of these names."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {','.join(known)}")
        return chosen

    return parse


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Blackhole beside other mail sinks."
    )
    known = [server.name for server in SERVERS]
    parser.add_argument("--quick", action="store_true", help="short turns, few peers: under two minutes")
    parser.add_argument("--rounds", type=int, help="turns each server has (default 9, quick 3)")
    parser.add_argument("--warm", type=int, default=0, help="messages ahead of a server's turns, for a JIT")
    parser.add_argument(
        "--shapes",
        type=names(list(SHAPES)),
        default=DEFAULT_SHAPES,
        help=f"of {','.join(SHAPES)}; default all but features",
    )
    parser.add_argument(
        "--servers",
        type=names(known),
        help=f"default all: {','.join(known)}; quick {','.join(QUICK)}",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME [python=INTERPRETER] [checkout=DIRECTORY] [BLACKHOLE_VARIABLE=VALUE...] [OPTION...]'",
        help="another Blackhole: by another interpreter, from another checkout, with variables or options",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    return parser.parse_args(argv)


def certificate(directory: Path) -> None:
    """Write a certificate for the servers with TLS: ECDSA P-256, whose signatures are cheap."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost"
    files = ["-keyout", f"{directory}/key.pem", "-out", f"{directory}/cert.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=20)


def available(servers: Sequence[Server]) -> dict[Server, str]:
    """Return the available servers and their versions; write why others are not to standard error."""
    found = {}
    for server in servers:
        try:
            server.prepare()
            found[server] = server.version()
        except Failure as failure:
            print(f"{server.name} is left out: {failure}", file=sys.stderr)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements, print the tables, and return the exit status."""
    chosen = options(argv)
    begun = time.monotonic()
    machine.open_files(machine.MAX_OPEN_FILES)
    picked = chosen.servers or (QUICK if chosen.quick else [server.name for server in SERVERS])
    wanted = [server for server in SERVERS if server.name in picked]
    servers = available([*wanted, *map(blackhole, chosen.variant)])
    about = machine.description()
    versions = grid(["server", "version"], [[server.name, version] for server, version in servers.items()], 2)
    head = f"{heading(about)}\n\n{versions}"
    print(head, flush=True)
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # some servers drop root before they read their files
        certificate(directory)
        rounds = chosen.rounds or (3 if chosen.quick else 9)
        seconds = 0.25 if chosen.quick else 1.0
        plan = Plan(tuple(servers), rounds, seconds, chosen.quick, chosen.warm, directory)
        for shape in chosen.shapes:
            tables.append(SHAPES[shape](plan))
            print(f"\n{markdown(tables[-1])}", flush=True)
    took = f"{rounds} rounds; in all {time.monotonic() - begun:.0f} s."
    foot = "\n\n".join(filter(None, [summary(tables), took]))
    print(f"\n{foot}")
    if chosen.markdown:
        chosen.markdown.write_text("\n\n".join([head, *map(markdown, tables), foot]) + "\n")
    if chosen.json:
        about |= {server.name: version for server, version in servers.items()}
        chosen.json.write_text(as_json(about, tables) + "\n")
    return int(any(table.failed() for table in tables))


if __name__ == "__main__":
    sys.exit(main())
