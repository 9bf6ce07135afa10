"""What came in, how fast, and what the senders did wrong: shared counters and what is read from them."""
