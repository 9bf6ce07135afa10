"""The protocol by computation alone: bytes become replies, without a socket, a clock or a log."""
