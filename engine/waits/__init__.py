"""The waiting ledger: every nanosecond of a job under exactly one cause."""
