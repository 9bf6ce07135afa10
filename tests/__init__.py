"""The tests of Blackhole, and what they share: see README.md."""
