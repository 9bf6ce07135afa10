"""Blackhole: an SMTP server that accepts any mail from anyone and forgets it."""

__version__ = "1.9.0.dev0"
