"""The command line: python -m tests.fuzz [--inputs N] [--model N] [--live SECONDS] [--seed N] [--keep N]"""

from __future__ import annotations

import argparse
import resource
import sys
import time

from tests.fuzz import inputs, live, model
from tests.program import Program


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Look for inputs that break the engine."
    )
    parser.add_argument("--inputs", type=int, default=0, metavar="N", help="random inputs for a session")
    parser.add_argument(
        "--model", type=int, default=0, metavar="N", help="random conversations against the model"
    )
    parser.add_argument("--live", type=float, default=0, metavar="SECONDS", help="noise for the real program")
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="of so many inputs keep interesting ones in tests/corpus",
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1000, help="repeats a run")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    bad = 0
    if chosen.inputs:
        inputs.run(2000, chosen.seed + 1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = inputs.run(chosen.inputs, chosen.seed)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(
            f"{found.inputs} inputs, each whole and in pieces, in {found.seconds:.0f} s of processor time: "
            f"{len(found.findings)} findings, the slowest took {1000 * found.slowest:.1f} ms, "
            f"peak memory grew by {grown} KiB"
        )
        for number, said, what in found.findings[:10]:
            print(f"kind {number}: {said!r}: {what}")
        bad += len(found.findings)
    if chosen.model:
        done = model.run(chosen.model, chosen.seed)
        print(
            f"{done.conversations} conversations, {done.commands} commands "
            f"in {done.seconds:.0f} s: {done.disagreements} disagreements"
        )
        for example in done.examples:
            print(example)
        bad += done.disagreements
    if chosen.live:
        with Program("--workers=2") as program:
            heard = live.run(program.address, chosen.live, chosen.seed)
            tracebacks = program.output().count("Traceback")
            print(
                f"{heard.connections} connections, {heard.octets} octets: "
                f"{len(heard.findings)} invalid replies, {tracebacks} tracebacks"
            )
            for answer in heard.findings[:10]:
                print(answer)
            bad += len(heard.findings) + tracebacks
    if chosen.keep:
        for name, said in inputs.collect(chosen.keep, 60, chosen.seed).items():
            (inputs.CORPUS / f"{name}.txt").write_bytes(said)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
