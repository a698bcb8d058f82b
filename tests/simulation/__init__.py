"""The whole engine in an imagined world: one seed, one life; `python -m tests.simulation SEED` lives it again."""
