"""Runs that are processes of other machines: a shell script there, one connection a host, the runner, the manager."""
