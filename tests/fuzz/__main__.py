"""The command line: python -m tests.fuzz [--inputs N] [--model N] [--live SECONDS] [--seed N] ..."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from tests.fuzz import inputs, live, model

MINUTE = 60.0
"""Seconds between two lines about how far it is."""

Block = TypeVar("Block")


def sizes(count: int, block: int) -> list[tuple[int, int]]:
    """The numbers of the blocks of a run, and how much is in each."""
    return [(number, min(block, count - number * block)) for number in range(-(-count // block))]


def made(
    run: Callable[[int, int, int], Block], seed: int, count: int, size: int, workers: int
) -> Iterator[Block]:
    """The blocks of a run, as they are done, by so many processes."""
    with get_context("fork").Pool(workers) as pool:
        yield from pool.imap_unordered(partial(_one, run, seed), sizes(count, size))


def _one(run: Callable[[int, int, int], Block], seed: int, task: tuple[int, int]) -> Block:
    return run(seed, *task)


class Progress:
    """A line a minute."""

    def __init__(self, what: str, count: int) -> None:
        self.what, self.count = what, count
        self.began = self.told = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def tell(self, done: int, bad: int) -> None:
        if time.monotonic() - self.told >= MINUTE:
            self.told = time.monotonic()
            pace = done / self.passed
            print(
                f"{self.passed / 60:.0f} min: {done} of {self.count} {self.what}, {pace:.0f} a second, "
                f"{bad} findings, {(self.count - done) / pace / 60:.0f} min to go",
                flush=True,
            )


def put(count: int, seed: int, workers: int) -> int:
    """Inputs; how many broke something."""
    progress, done = Progress("inputs", count), inputs.Done()
    for block in made(inputs.run, seed, count, inputs.BLOCK, workers):
        for finding in block.findings[: max(0, 10 - len(done.findings))]:
            print(f"{finding.kind}, block {finding.block}: {finding.said!r}: {finding.what}", flush=True)
        done.add(block)
        progress.tell(done.inputs, len(done.findings))
    print(
        f"{done.inputs} inputs, each whole and in pieces, in {progress.passed:.0f} s, "
        f"{done.inputs / (done.seconds or 1):.0f} in a second of a processor: "
        f"{len(done.findings)} findings, the slowest took {1000 * done.slowest:.1f} ms, "
        f"peak memory grew by {done.grown} KiB",
        flush=True,
    )
    return len(done.findings)


def compare(count: int, seed: int, workers: int) -> int:
    """Conversations of the engine and the model; in how many they disagree."""
    progress, done = Progress("conversations", count), model.Done()
    for block in made(model.run, seed, count, model.BLOCK, workers):
        done.add(block)
        progress.tell(done.conversations, done.disagreements)
    for example in done.examples:
        print(example)
    print(
        f"{done.conversations} conversations, {done.commands} commands in {progress.passed:.0f} s: "
        f"{done.disagreements} disagreements",
        flush=True,
    )
    return done.disagreements


def shout(seconds: float, seed: int) -> int:
    """Noise for the program, each way to start it in its turn; how much went wrong."""
    every = live.Heard()
    began = time.monotonic()
    for options in live.OPTIONS:
        start = told = time.monotonic()
        how = " ".join(options) or "no options"

        def tell(heard: live.Heard, start: float = start, how: str = how) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= MINUTE:
                told = now
                pace = heard.connections / (now - start)
                print(
                    f"{(now - began) / 60:.0f} min, {how}: {heard.connections} connections, {pace:.0f} a "
                    f"second, {len(heard.findings)} findings",
                    flush=True,
                )

        heard, more, grown = live.run(options, seconds / len(live.OPTIONS), seed, tell)
        took = time.monotonic() - start
        print(
            f"{how}: {heard.connections} connections, {heard.octets} octets in {took:.0f} s, "
            f"{heard.connections / took:.0f} connections a second; {more:+} descriptors, {grown:+} KiB; "
            f"{len(heard.findings)} findings",
            flush=True,
        )
        for finding in heard.findings[:10]:
            print(finding, flush=True)
        every.add(heard)
    took = time.monotonic() - began
    print(f"{every.connections} connections in {took:.0f} s of noise: {len(every.findings)} findings")
    return len(every.findings)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Look for inputs that break the engine."
    )
    add = parser.add_argument
    add("--inputs", type=int, default=0, metavar="N", help="random inputs for a session")
    add("--model", type=int, default=0, metavar="N", help="random conversations against the model")
    add("--live", type=float, default=0, metavar="SECONDS", help="noise for the real program")
    add(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="of so many inputs keep interesting ones in tests/corpus",
    )
    add("--seed", type=int, default=time.time_ns() // 1000, help="repeats a run")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that inputs and conversations are shared by",
    )
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    bad = 0
    if chosen.inputs:
        bad += put(chosen.inputs, chosen.seed, chosen.workers)
    if chosen.model:
        bad += compare(chosen.model, chosen.seed, chosen.workers)
    if chosen.live:
        bad += shout(chosen.live, chosen.seed)
    if chosen.keep:
        for name, said in inputs.collect(chosen.keep, 60, chosen.seed).items():
            (inputs.CORPUS / f"{name}.txt").write_bytes(said)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
