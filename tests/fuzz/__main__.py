"""The command line: python -m tests.fuzz [--inputs N] [--model N] [--scenarios N] [--live SECONDS] ..."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from tests.fuzz import inputs, live, model, reloads, scenarios

REPORT_INTERVAL = 60.0
"""Seconds between two lines of progress."""

Block = TypeVar("Block")


def blocks(count: int, block: int) -> list[tuple[int, int]]:
    """Return the number and the size of each block of a run."""
    return [(number, min(block, count - number * block)) for number in range(-(-count // block))]


def run_blocks(
    run_block: Callable[[int, int, int], Block], seed: int, count: int, size: int, workers: int
) -> Iterator[Block]:
    """Yield the result of each block of a run as it is done; `workers` processes divide the blocks."""
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(partial(_run_block, run_block, seed), blocks(count, size))


def _run_block(run_block: Callable[[int, int, int], Block], seed: int, block: tuple[int, int]) -> Block:
    return run_block(seed, *block)


class Progress:
    """A line of progress every minute."""

    def __init__(self, what: str, count: int) -> None:
        self.what, self.count = what, count
        self.began = self.reported = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self.began

    def report(self, done: int, findings: int) -> None:
        """Print a line if a minute has passed since the last one."""
        if time.monotonic() - self.reported >= REPORT_INTERVAL:
            self.reported = time.monotonic()
            rate = done / self.seconds
            print(
                f"{self.seconds / 60:.0f} min: {done} of {self.count} {self.what}, {rate:.0f} a second, "
                f"{findings} findings, {(self.count - done) / rate / 60:.0f} min to go",
                flush=True,
            )


def fuzz_inputs(count: int, seed: int, workers: int) -> int:
    """Run random inputs, and return the number of findings."""
    progress, result = Progress("inputs", count), inputs.InputResult()
    for block in run_blocks(inputs.run_block, seed, count, inputs.BLOCK_INPUTS, workers):
        for finding in block.findings[: max(0, 10 - len(result.findings))]:
            print(f"{finding.kind}, block {finding.block}: {finding.data!r}: {finding.what}", flush=True)
        result.add(block)
        progress.report(result.inputs, len(result.findings))
    print(
        f"{result.inputs} inputs, each whole and in pieces, in {progress.seconds:.0f} s, "
        f"{result.inputs / (result.seconds or 1):.0f} per second of processor time: "
        f"{len(result.findings)} findings, the slowest took {1000 * result.slowest:.1f} ms, "
        f"peak memory grew by {result.growth} KiB",
        flush=True,
    )
    return len(result.findings)


def compare_with_model(count: int, seed: int, workers: int) -> int:
    """Run random conversations, and return the number of those in which engine and model differ."""
    progress, result = Progress("conversations", count), model.ModelResult()
    for block in run_blocks(model.run_block, seed, count, model.BLOCK_CONVERSATIONS, workers):
        result.add(block)
        progress.report(result.conversations, result.differences)
    for example in result.examples:
        print(example)
    print(
        f"{result.conversations} conversations, {result.commands} commands in {progress.seconds:.0f} s: "
        f"{result.differences} differences",
        flush=True,
    )
    return result.differences


def compare_scenarios(count: int, seed: int, workers: int) -> int:
    """Run random scenarios, and return the number of those in which server and interpreter differ."""
    progress, result = Progress("scenarios", count), scenarios.ScenarioResult()
    for block in run_blocks(scenarios.run_block, seed, count, scenarios.BLOCK_SCENARIOS, workers):
        result.add(block)
        progress.report(result.scenarios, result.differences)
    for example in result.examples:
        print(example)
    print(
        f"{result.scenarios} scenarios, {result.commands} commands in {progress.seconds:.0f} s: "
        f"{result.differences} differences",
        flush=True,
    )
    return result.differences


def fuzz_live(seconds: float, seed: int) -> int:
    """Fuzz the real program with each of its options in turn, and return the number of findings."""
    total = live.LiveResult()
    began = time.monotonic()
    for options in live.OPTIONS:
        start = reported = time.monotonic()
        how = " ".join(options) or "no options"

        def report(result: live.LiveResult, start: float = start, how: str = how) -> None:
            nonlocal reported
            now = time.monotonic()
            if now - reported >= REPORT_INTERVAL:
                reported = now
                rate = result.connections / (now - start)
                print(
                    f"{(now - began) / 60:.0f} min, {how}: {result.connections} connections, {rate:.0f} a "
                    f"second, {len(result.findings)} findings",
                    flush=True,
                )

        result, new_descriptors, growth = live.fuzz_program(
            options, seconds / len(live.OPTIONS), seed, report
        )
        took = time.monotonic() - start
        print(
            f"{how}: {result.connections} connections, {result.octets} octets in {took:.0f} s, "
            f"{result.connections / took:.0f} a second; {new_descriptors:+} descriptors, {growth:+} KiB; "
            f"{len(result.findings)} findings",
            flush=True,
        )
        for finding in result.findings[:10]:
            print(finding, flush=True)
        total.add(result)
    took = time.monotonic() - began
    print(f"{total.connections} connections in {took:.0f} s: {len(total.findings)} findings")
    return len(total.findings)


def fuzz_reloads(seconds: float, seed: int) -> int:
    """Compare the real program with the model of scenarios while it is reloaded; return the findings.

    Every minute another program begins with other scenarios, every other one with --strict.
    """
    total, progress = reloads.ReloadResult(), Progress("seconds", round(seconds))
    for number in range(max(1, round(seconds / REPORT_INTERVAL))):
        run = reloads.ReloadRun(seed + number, strict=number % 2 == 1)
        result = run.run_for(min(seconds, REPORT_INTERVAL))
        total.add(result)
        for finding in result.findings[:3]:
            print(f"seed {run.seed}: {finding}", flush=True)
        progress.report(round(progress.seconds), len(total.findings))
    print(
        f"{total.connections} connections, {total.commands} commands, {total.reloads} reloads in "
        f"{progress.seconds:.0f} s: {len(total.findings)} findings",
        flush=True,
    )
    return len(total.findings)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Look for inputs that break the engine."
    )
    add = parser.add_argument
    add("--inputs", type=int, default=0, metavar="N", help="random inputs for a session")
    add("--model", type=int, default=0, metavar="N", help="random conversations against the model")
    add("--scenarios", type=int, default=0, metavar="N", help="random scenarios against their interpreter")
    add(
        "--live",
        type=float,
        default=0,
        metavar="SECONDS",
        help="random input for the real program over sockets",
    )
    add(
        "--reloads",
        type=float,
        default=0,
        metavar="SECONDS",
        help="random scenarios for the real program, which is reloaded meanwhile",
    )
    add(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="generate N inputs, and keep the most varied ones in tests/corpus",
    )
    add("--seed", type=int, default=time.time_ns() // 1000, help="the seed of an earlier run, to repeat it")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes to divide inputs and conversations among",
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    findings = 0
    if arguments.inputs:
        findings += fuzz_inputs(arguments.inputs, arguments.seed, arguments.workers)
    if arguments.model:
        findings += compare_with_model(arguments.model, arguments.seed, arguments.workers)
    if arguments.scenarios:
        findings += compare_scenarios(arguments.scenarios, arguments.seed, arguments.workers)
    if arguments.live:
        findings += fuzz_live(arguments.live, arguments.seed)
    if arguments.reloads:
        findings += fuzz_reloads(arguments.reloads, arguments.seed)
    if arguments.keep:
        for name, data in inputs.select_corpus(arguments.keep, 60, arguments.seed).items():
            (inputs.CORPUS / f"{name}.txt").write_bytes(data)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
