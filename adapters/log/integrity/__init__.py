"""Whether a log is what was written: the chain, anchors, and what SQLite has not read."""
