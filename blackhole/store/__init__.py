"""Memory that outlives a session: shared by the processes of a server, or by several machines."""
