"""Event logs: SQLite (`sqlite.SqliteLog`, read by anyone with `reader.LogReader`) and memory (`memory.MemoryLog`).

Facts come in as batches of events and go out as batches again, durable, chained and in one order; the port is
`datatask.engine.ports.EventLog`. Beside the file live its sidecars: lease, inbox, blobs and checkpoints.
What the tables and views hold is in docs/log.md.
"""
