"""Fuzzing: random octets for the engine, conversations compared with a model, random input over sockets.

`python -m tests.fuzz --inputs N`, `--model N`, `--live SECONDS`. `--seed` repeats a run; its findings do not
depend on `--workers`.
"""
