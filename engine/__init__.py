"""Decides: folds events into state, derives decisions, and drives adapters through the ports."""
