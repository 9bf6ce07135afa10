"""Fuzzing: random octets, conversations and scenarios compared with models, random input over sockets.

`python -m tests.fuzz --inputs N`, `--model N`, `--scenarios N`, `--live SECONDS`. `--seed` repeats a run; its
findings do not depend on `--workers`.
"""
