"""Findings: the rules that senders broke, how often that was seen, and where.

Most violations are all counted. Some are looked for in a sample of the sessions or messages (--inspect), and
what was seen there is no count: it is stated with the size of the sample and of the whole, and with what can
be expected of the whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from blackhole.metrics.evidence import NO_EVIDENCE, Evidence, Example
from blackhole.metrics.samples import CONFIDENCE, SampledCount
from blackhole.metrics.snapshot import Snapshot
from blackhole.smtp.violations import LEVELS, OF_CONTENT, VIOLATIONS, Violation


class Finding(NamedTuple):
    """A rule that was broken.

    >>> rule = next(one for one in VIOLATIONS if one.name == "bare-lf")
    >>> found = Finding(rule, counted=3, sample=SampledCount(2, 20, 64, "messages"))
    >>> found.seen
    'counted 3 times; seen in 2 of 20 messages inspected, of 64'
    >>> found.expected
    'about 6 of 64 messages (95 % confidence interval: 2 to 19)'
    """

    rule: Violation
    counted: int
    """How often it was seen where all is seen."""
    sample: SampledCount | None = None
    """In how many of the sessions or messages that were inspected it was seen; None if it was in none."""
    connections: int = 0
    """In how many connections it was seen; 0 for violations that belong to no connection."""
    evidence: Evidence = NO_EVIDENCE

    @property
    def times(self) -> int:
        """How often it was seen, counted and in the sample: for sorting, not as a figure."""
        return self.counted + (self.sample.found if self.sample else 0)

    @property
    def seen(self) -> str:
        """How often it was seen, and of how many, as text."""
        if self.sample is None:
            return times(self.counted)
        found, inspected, of, what = self.sample
        if self.sample.is_complete:
            sampled = f"in {found:,} of {plural(of, what.removesuffix('s'))}, all inspected"
        else:
            sampled = f"in {found:,} of {plural(inspected, what.removesuffix('s'))} inspected, of {of:,}"
        return f"counted {times(self.counted)}; seen {sampled}" if self.counted else sampled

    @property
    def expected(self) -> str:
        """The estimate for all by the sample, as text; empty where everything was inspected."""
        if self.sample is None or self.sample.is_complete:
            return ""
        low, high = self.sample.interval
        return (
            f"about {self.sample.estimate:,} of {self.sample.of:,} {self.sample.what}"
            f" ({CONFIDENCE} % confidence interval: {low:,} to {high:,})"
        )

    @property
    def when(self) -> str:
        """In how many connections and when it was seen, as far as that is known, as text."""
        first, last = self.evidence.first, self.evidence.last
        parts = [f"in {plural(self.connections, 'connection')}"] if self.connections else []
        parts += [f"first {date(first)}"] if first else []
        parts += [f"last {date(last)}"] if last and last != first else []
        return ", ".join(parts)

    @property
    def evidence_lines(self) -> list[str]:
        """A line for each example: what was sent, in which phase, and after which reply."""
        return [example_text(example) for example in self.evidence.examples]

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report below the line on the rule."""
        if self.expected:
            yield f"{self.expected[0].upper()}{self.expected[1:]}."
        yield f"{self.rule.source}. {self.rule.hint[0].upper()}{self.rule.hint[1:]}."
        if self.when:
            yield f"{self.when[0].upper()}{self.when[1:]}."
        yield from self.evidence_lines

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON."""
        rule = self.rule
        return {
            "rule": rule.name,
            "level": rule.level,
            "source": rule.source,
            "providers": list(rule.providers),
            "meaning": rule.meaning,
            "hint": rule.hint,
            "counted": self.counted,
            "sample": self.sample.as_dict() if self.sample else None,
            "seen": self.seen,
            "expected": self.expected,
            "connections": self.connections,
            "evidence": self.evidence.as_dict(),
        }


def findings(snapshot: Snapshot) -> list[Finding]:
    """Return the rules that were broken, ordered by level and then by how often."""
    samples, evidence = snapshot.sampled_violations, snapshot.evidence
    found = []
    for rule in VIOLATIONS:
        counted, sample = snapshot.counted_violations[rule.name], samples.get(rule.name)
        if counted or (sample and sample.found):
            found.append(
                Finding(
                    rule,
                    counted,
                    sample if sample and sample.found else None,
                    snapshot.violating_connections[rule.name],
                    evidence.get(rule.name, NO_EVIDENCE),
                )
            )
    return sorted(found, key=lambda finding: (LEVELS.index(finding.rule.level), -finding.times))


def inspection_text(snapshot: Snapshot) -> str:
    """Return how many sessions and messages were inspected, of how many, as text.

    Of what they contain it is said where any was inspected.
    """
    parts = (
        f"{one.inspected:,} of {plural(one.of, what.removesuffix('s'))}"
        for what, one in snapshot.inspected.items()
        if one.inspected or what not in OF_CONTENT
    )
    return f"inspected: {', '.join(parts)}"


def example_text(example: Example) -> str:
    """Return an example as a line: MAIL after "250 OK": MAIL FROM:ann."""
    phase = "message" if example.phase == "." else example.phase
    where = f'{phase} after "{example.reply}"' if example.reply else phase
    return f"{where.strip()}: {example.line}" if example.line else where.strip()


def date(seconds: float) -> str:
    """Return a time, in seconds since 1970, as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """Return a count and its noun: "1 message", "2,000 messages"."""
    return f"{count:,} {noun if count == 1 else plural_noun or f'{noun}s'}"


def times(count: int) -> str:
    """Return "once" or "1,200 times"."""
    return "once" if count == 1 else f"{count:,} times"
