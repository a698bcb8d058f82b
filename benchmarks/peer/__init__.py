"""The same three no-op stages in other programs, each run by the interpreter of its own environment (peers.py)."""
