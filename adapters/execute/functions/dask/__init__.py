"""Runs that are calls in Dask's workers and outlive the engine: what holds there, the runner, the worker's side."""
