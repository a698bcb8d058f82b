"""The log as files for other programs: Parquet, CSV, JSON lines, OpenLineage.

In: a reader, a state and what is wanted. Out: files, whole or not at all, written in bounded memory. `tables` says
what the rows are, `files` how they are written, `openlineage` speaks of runs in that standard's words, and `export`
puts them together.
"""
