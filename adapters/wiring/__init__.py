"""Puts engine and adapters together."""
