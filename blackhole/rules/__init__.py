"""The simulator: scenario files become rules, and rules decide what a client meets. Pure."""
