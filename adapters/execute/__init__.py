"""Runners and the task classes that use them."""
