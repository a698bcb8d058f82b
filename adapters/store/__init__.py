"""Repositories: where values live."""
