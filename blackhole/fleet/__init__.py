"""The fleet: several machines that are one sink, by way of a Redis server that they share."""
