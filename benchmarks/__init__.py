"""Benchmarks: Blackhole beside other mail sinks, on this machine. Read README.md here."""
