"""The exception for a measurement that failed."""


class Failure(Exception):
    """A measurement failed. The message is one line, shown in the row; other rows continue."""
