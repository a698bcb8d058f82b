"""Measurements, never tests: each module prints one JSON object; `python -m benchmarks` makes one table of them."""
