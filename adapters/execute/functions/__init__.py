"""Runs that are calls of Python functions: on the engine's loop, in executors, in processes that executors start."""
