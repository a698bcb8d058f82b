"""Touches the world: one foreign system a file or folder."""
