"""Fuzzing: random octets against the engine, random commands against a model of it, noise over sockets.

`python -m tests.fuzz --inputs N`, `--model N`, `--live SECONDS`; a seed repeats a run.
"""
