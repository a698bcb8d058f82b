"""The invariants of a log and of a state, checked from scratch."""
