"""Sockets: listeners, connections and their streams."""
