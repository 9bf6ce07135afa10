"""The tables of a report, in Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """An upper limit for a figure of Blackhole, and its value."""

    name: str
    limit: float
    value: float


@dataclass
class Table:
    """The result of a measurement: rows, and how their columns are printed."""

    name: str
    title: str
    columns: Mapping[str, tuple[str, str]]
    """Key of a row -> heading and format. Other keys of a row appear in JSON only."""
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""

    def failed(self) -> bool:
        """Return whether a row has failed."""
        return any("failure" in row for row in self.rows)


def cell(value: object, form: str) -> str:
    """Return a value as text; a dash for None."""
    return "-" if value is None else format(value, form)


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; all but the first `left` columns are aligned as numbers."""
    marks = ["---" if number < left else "--:" for number in range(len(headings))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, marks, *rows))


def markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and note."""
    rows = []
    for row in table.rows:
        if "failure" in row:
            key = next(iter(table.columns))
            rows.append([str(row[key]), row["failure"], *[""] * (len(table.columns) - 2)])
        else:
            rows.append([cell(row.get(key), form) for key, (_, form) in table.columns.items()])
    parts = [f"### {table.title}", grid([heading for heading, _ in table.columns.values()], rows)]
    return "\n\n".join(parts + ([table.note] if table.note else []))


def heading(machine: Mapping[str, str]) -> str:
    """Return the header of a report."""
    return "## Benchmarks\n\n" + "\n".join(f"- {key}: {value}" for key, value in machine.items())


def summary(tables: Sequence[Table]) -> str:
    """Return the table of all goals; empty without goals."""
    rows = [
        [goal.name, f"{goal.limit:g}", f"{goal.value:.3g}", "yes" if goal.value <= goal.limit else "**no**"]
        for table in tables
        for goal in table.goals
    ]
    return "### Goals\n\n" + grid(["Blackhole", "at most", "now", "met"], rows) if rows else ""


def as_json(machine: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Return all tables as JSON text."""
    return json.dumps(
        {
            "machine": machine,
            "tables": [
                {
                    "name": table.name,
                    "title": table.title,
                    "rows": table.rows,
                    "goals": [vars(goal) for goal in table.goals],
                }
                for table in tables
            ],
        },
        indent=1,
    )
