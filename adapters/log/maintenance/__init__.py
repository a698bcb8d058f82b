"""The care of a log without an engine: archive, backup, compact, redact, restore."""
