"""Server facts: what a running server tells other processes of itself, in shared memory.

`blackhole status` and `blackhole start` read it, by the pid of the master. The master alone writes it. The
map has two slots: facts are written into the slot that is not in force, and its number last, so a reader
finds the facts before or those after, whatever happens to the master.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from blackhole.store.shared_memory import CELL_OCTETS, attach, create

FACTS_MAP: Final = "blackhole.store.server_facts"
"""Name of the anonymous file."""

FACTS_CELLS: Final = 1 << 13
"""Cells of a slot, 64 KiB: the length of the text, and the text."""

MAX_FACTS_OCTETS: Final = (FACTS_CELLS - 1) * CELL_OCTETS


class ServerFacts:
    """The map, made by the master.

    >>> facts = ServerFacts()
    >>> facts.write({"version": "1.9"})
    >>> import os
    >>> ServerFacts.of(os.getpid())
    {'version': '1.9'}
    """

    def __init__(self) -> None:
        self._cells: Final = create(FACTS_MAP, 1 + 2 * FACTS_CELLS)
        self._number = 0
        """The number of the facts in force. Any worker could change that in the map."""

    def write(self, facts: Mapping[str, Any]) -> None:
        """Put other facts in force. Facts that are too long are left out, the longest first."""
        facts = dict(facts)
        while len(octets := json.dumps(facts).encode()) > MAX_FACTS_OCTETS:
            del facts[max(facts, key=lambda name: len(json.dumps(facts[name])))]
        self._number += 1
        slot = _slot(self._cells, self._number)
        slot[0] = len(octets)
        slot[1:].cast("B")[: len(octets)] = octets
        self._cells[0] = self._number

    @staticmethod
    def of(pid: int) -> Mapping[str, Any]:
        """Return the facts of a running master; none if it has not written any yet.

        Raises OperatorError if the process has ended, or is not ours to read.
        """
        cells = attach(pid, FACTS_MAP)
        if cells is None or len(cells) != 1 + 2 * FACTS_CELLS or not cells[0]:
            return {}
        slot = _slot(cells, cells[0])
        text = slot[1:].cast("B")[: slot[0]].tobytes()
        try:
            found = json.loads(text)
        except ValueError:  # another version
            return {}
        return found if isinstance(found, dict) else {}


def _slot(cells: memoryview, number: int) -> memoryview:
    start = 1 + number % 2 * FACTS_CELLS
    return cells[start : start + FACTS_CELLS]
