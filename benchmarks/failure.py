"""A measurement that could not be taken, and why."""


class Failure(Exception):
    """One line: what was run, and what went wrong. The row says so; the other rows go on."""
