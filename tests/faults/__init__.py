"""Faults that a mail server on the Internet meets, done to the real program and measured.

`python -m tests.faults` does each fault, and prints its goal and what was measured. `fault.py` says what a
fault is. Those whose names begin with G are in `processes.py`, with L in `load.py`, with S in `protocol.py`.
"""
