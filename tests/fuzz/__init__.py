"""Fuzzing: random octets against the engine, random commands against a model of it, noise over sockets.

`python -m tests.fuzz --inputs N`, `--model N`, `--live SECONDS`; `--seed` repeats a run, and what it
finds does not depend on `--workers`.
"""
