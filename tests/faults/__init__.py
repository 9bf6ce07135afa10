"""Faults: what can happen to a mail server that the world can reach, done to the real program and measured.

`python -m tests.faults` prints each fault, its goal and what was measured. `row.py` says what a row is;
those whose names begin with G are in `processes.py`, with L in `load.py`, with S in `protocol.py`.
"""
