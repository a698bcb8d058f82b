"""Runs that are processes of this machine: a launcher that outlives the engine, its client, the runner, the manager."""
