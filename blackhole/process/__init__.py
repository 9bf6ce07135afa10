"""The processes of a server: supervisor, workers, and their relation to the operating system."""
