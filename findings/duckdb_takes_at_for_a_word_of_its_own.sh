#!/bin/sh
# DuckDB: a column named `at` cannot be used without quotes or its table's name before it.
#
# Version: duckdb 2.0.1.
# What one would guess: `SELECT at FROM events` works, as it does in SQLite; `at` is no word of SQL.
# What happens: the parser takes `at` for a keyword, and refuses what comes after it.
# `"at"` and `events.at` work.
# What datatask does: columns keep their names; docs/log.md quotes it. tests/acceptance/test_documents.py runs that SQL.
# Output seen:
#   at: ParserException
#   "at": [(1,)]
#   events.at: [(1,)]
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import duckdb

duckdb.sql('CREATE TABLE events AS SELECT 1 AS "at"')
seen = {}
for column in ("at", '"at"', "events.at"):
    try:
        seen[column] = str(duckdb.sql(f"SELECT {column} FROM events WHERE {column} > 0").fetchall())
    except duckdb.Error as error:
        seen[column] = type(error).__name__
    print(f"{column}: {seen[column]}")
assert seen["at"] != "[(1,)]", "no longer so"
assert seen['"at"'] == seen["events.at"] == "[(1,)]"
PYTHON
