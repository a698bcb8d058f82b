"""The log as SQL: four tables that the engine writes, four views that people read.

In: nothing. Out: SQLAlchemy Core tables, and `create_statements()`, the whole DDL of a new log. The tables
are ours to change between format versions; the views are an interface: their columns are documented in
`VIEW_COLUMNS`, tested, and stay. Names of all sorts (kinds, actors, tasks, repositories, jobs) are stored
once in `names` and by number elsewhere, which keeps an event near 140 bytes. Where the rows come from is
adapters/log/tail.py; where they are read, adapters/log/queries.py.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import UserDefinedType


class AnyValue(UserDefinedType[Any]):
    """The column type ANY of STRICT tables: keeps what it is given."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the DDL of the type."""
        return "ANY"


metadata = MetaData()

names = Table(
    "names",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("text", Text, nullable=False, unique=True),
    sqlite_strict=True,
)

log = Table(
    "log",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("kind", Integer, ForeignKey("names.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("essential", Integer, nullable=False),
    Column("actor", Integer, ForeignKey("names.id"), nullable=False),
    Column("cause", Integer),
    Column("task", Integer, ForeignKey("names.id")),
    Column("repository", Integer, ForeignKey("names.id")),
    Column("job", Integer, ForeignKey("names.id")),
    Column("run", Integer),
    Column("payload", Text),
    Column("salt", Integer),
    Column("digest", LargeBinary),
    Column("chain", LargeBinary),
    sqlite_strict=True,
)
"""One row an event. `run` of a `LaunchDecided` is its own position. `chain` stands on the last row of each
batch and so marks the batches; `digest` replaces the payload in the chain once that was redacted."""

job_position = Index("log_job_position", log.c.job, log.c.position)
"""The one secondary index: a job's history is what people ask for most."""

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", AnyValue()),
    sqlite_strict=True,
)
"""Facts about the file: `format.META_KEYS`."""

base = Table(
    "base",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("fold_version", Integer, nullable=False),
    Column("state", LargeBinary, nullable=False),
    Column("carried", LargeBinary, nullable=False),
    sqlite_strict=True,
)
"""The state on which a log stands whose beginning was archived; `carried` is the digest of the rows that stayed."""


_TIME = "strftime('%Y-%m-%dT%H:%M:%S', {0} / 1000000000, 'unixepoch') || printf('.%06dZ', {0} % 1000000000 / 1000)"
_KIND = "(SELECT id FROM names WHERE text = '{0}')"


def _time(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN {_TIME.format(column)} END"


def _hex(column: str) -> str:
    return f"CASE WHEN {column} IS NOT NULL THEN lower(hex({column})) END"


def _first_after(kinds: tuple[str, ...]) -> str:
    """Return the position of the first event of these kinds about the run `d`, found by its job's index."""
    wanted = ", ".join(_KIND.format(kind) for kind in kinds)
    return (
        "(SELECT x.position FROM log x WHERE x.job = d.job AND x.position > d.position"
        f" AND x.run = d.position AND x.kind IN ({wanted}) ORDER BY x.position LIMIT 1)"
    )


_EVENTS = f"""
CREATE VIEW events AS
SELECT l.position, l.at, {_TIME.format("l.at")} AS time, k.text AS kind, l.version, l.essential,
       a.text AS actor, l.cause, t.text AS task, r.text AS repository, j.text AS job, l.run,
       l.payload, l.salt, {_hex("l.digest")} AS digest, {_hex("l.chain")} AS chain
FROM log l
LEFT JOIN names k ON k.id = l.kind
LEFT JOIN names a ON a.id = l.actor
LEFT JOIN names t ON t.id = l.task
LEFT JOIN names r ON r.id = l.repository
LEFT JOIN names j ON j.id = l.job
"""

_RUNS = f"""
CREATE VIEW runs AS
SELECT d.position AS run, t.text AS task, j.text AS job,
       json_extract(d.payload, '$.episode') AS episode,
       json_extract(d.payload, '$.attempt') AS attempt,
       coalesce(json_extract(d.payload, '$.origin'), 'derived') AS origin,
       CASE WHEN e.position IS NOT NULL THEN json_extract(e.payload, '$.outcome')
            WHEN s.position IS NOT NULL THEN 'running' ELSE 'decided' END AS state,
       d.at AS decided_at, s.at AS started_at, e.at AS ended_at,
       {_time("d.at")} AS decided, {_time("s.at")} AS started, {_time("e.at")} AS ended,
       coalesce(json_extract(e.payload, '$.where'), json_extract(s.payload, '$.where')) AS where_,
       json_extract(e.payload, '$.exit_code') AS exit_code,
       json_extract(e.payload, '$.error.type') AS error_type,
       json_extract(e.payload, '$.error.message') AS error,
       json_extract(d.payload, '$.priority') AS priority,
       json_extract(d.payload, '$.resources') AS resources,
       json_extract(e.payload, '$.usage') AS usage,
       e.position AS end_position,
       (s.at - d.at) / 1e9 AS wait, (e.at - s.at) / 1e9 AS duration
FROM log d
LEFT JOIN names t ON t.id = d.task
LEFT JOIN names j ON j.id = d.job
LEFT JOIN log s ON s.position = {_first_after(("RunStarted", "RunAdopted"))}
LEFT JOIN log e ON e.position = {_first_after(("RunEnded",))}
WHERE d.kind = {_KIND.format("LaunchDecided")}
"""

_VALUES_NOW = f"""
CREATE VIEW values_now AS
WITH resets AS MATERIALIZED (
  SELECT repository, max(position) AS position FROM log
  WHERE kind = {_KIND.format("RepositoryReset")} GROUP BY repository)
SELECT r.text AS repository, j.text AS job, v.position, v.at, {_TIME.format("v.at")} AS time,
       v.payload -> '$.value' AS value,
       json_extract(v.payload, '$.digest') AS digest,
       json_extract(v.payload, '$.size') AS size,
       json_extract(v.payload, '$.version') AS version,
       coalesce(json_extract(v.payload, '$.origin'), 'written') AS origin,
       v.run
FROM log v
LEFT JOIN names r ON r.id = v.repository
LEFT JOIN names j ON j.id = v.job
LEFT JOIN resets z ON z.repository = v.repository
WHERE v.kind = {_KIND.format("ValuePut")}
  AND v.position > coalesce(z.position, 0)
  AND NOT EXISTS (
    SELECT 1 FROM log w WHERE w.job = v.job AND w.position > v.position AND w.repository = v.repository
      AND w.kind IN ({_KIND.format("ValuePut")}, {_KIND.format("ValueDeleted")}))
"""

_LINEAGE = f"""
CREATE VIEW lineage AS
SELECT d.position AS run, t.text AS task, j.text AS job, 'input' AS direction, i.key AS link,
       r.text AS repository, i.value AS position
FROM log d
JOIN json_each(d.payload, '$.inputs') i
LEFT JOIN names t ON t.id = d.task
LEFT JOIN names j ON j.id = d.job
LEFT JOIN log v ON v.position = i.value
LEFT JOIN names r ON r.id = v.repository
WHERE d.kind = {_KIND.format("LaunchDecided")}
UNION ALL
SELECT v.run, t.text, j.text, 'output', NULL, r.text, v.position
FROM log v
LEFT JOIN log d ON d.position = v.run
LEFT JOIN names t ON t.id = d.task
LEFT JOIN names j ON j.id = v.job
LEFT JOIN names r ON r.id = v.repository
WHERE v.kind = {_KIND.format("ValuePut")} AND v.run IS NOT NULL
"""

VIEWS: dict[str, str] = {"events": _EVENTS, "runs": _RUNS, "values_now": _VALUES_NOW, "lineage": _LINEAGE}
"""View name -> the statement that creates it."""

VIEW_COLUMNS: dict[str, dict[str, str]] = {
    "events": {
        "position": "where the event stands: 1, 2, 3 … without gaps",
        "at": "engine time, UTC nanoseconds",
        "time": "the same as ISO 8601, to the microsecond",
        "kind": "what happened: the event's stable name",
        "version": "the version of the kind's own fields",
        "essential": "1 when a reader that does not know the kind must refuse the log, else 0",
        "actor": "who caused it: `engine`, or `user@host: command`",
        "cause": "the position of the event that led to this one",
        "task": "the task it is about",
        "repository": "the id of the repository it is about",
        "job": "the job it is about",
        "run": "the run it is about; of a `LaunchDecided`, its own position",
        "payload": "the kind's own fields as JSON text, defaults left out; NULL when all are defaults",
        "salt": "what the payload is hashed with, a signed 64-bit integer",
        "digest": "the payload's salted SHA-256 in hex, once the payload was redacted",
        "chain": "the hash of the batch that ends here, in hex; NULL inside a batch",
    },
    "runs": {
        "run": "the run's id: the position of its `LaunchDecided`",
        "task": "its task",
        "job": "its job",
        "episode": "which occasion of this (task, job), from 1",
        "attempt": "which try within the episode, from 1",
        "origin": "`derived`, `forced` or `direct`",
        "state": "`decided`, `running`, or the outcome it ended with",
        "decided_at": "engine time of the decision, UTC nanoseconds",
        "started_at": "engine time at which the start (or adoption) was recorded",
        "ended_at": "engine time at which the end was recorded",
        "decided": "`decided_at` as ISO 8601",
        "started": "`started_at` as ISO 8601",
        "ended": "`ended_at` as ISO 8601",
        "where_": "the host, pod or process it ran in",
        "exit_code": "the exit code, where there is one",
        "error_type": "the exception's type, or the target's reason code",
        "error": "the error's message",
        "priority": "the priority it was decided with; NULL for 0",
        "resources": "what it was granted, JSON, in billionths",
        "usage": "what it used, JSON, in the runner's units",
        "end_position": "the position of its `RunEnded`",
        "wait": "seconds from the decision to the start",
        "duration": "seconds from the start to the end",
    },
    "values_now": {
        "repository": "the repository's id",
        "job": "the member",
        "position": "the position of the `ValuePut` that gave the present value",
        "at": "when, engine time, UTC nanoseconds",
        "time": "the same as ISO 8601",
        "value": "the document as JSON text; NULL when it is a blob or only membership is recorded",
        "digest": "SHA-256 of the content, in hex, where it is a blob",
        "size": "its size in bytes",
        "version": "the store's own version of it",
        "origin": "`written`, `observed`, `injected` or `derived`",
        "run": "the run that wrote it",
    },
    "lineage": {
        "run": "the run",
        "task": "its task",
        "job": "for inputs the run's job, for outputs the job that was written",
        "direction": "`input` (what the run was decided on) or `output` (what it wrote)",
        "link": "the input's link; NULL for outputs",
        "repository": "the repository's id",
        "position": "the position of the `ValuePut` read or written",
    },
}
"""View name -> column -> what it holds; docs/log.md is tested against it."""


def create_statements() -> list[str]:
    """Return the statements that make an empty log, in order."""
    dialect = sqlite.dialect()
    tables = [str(CreateTable(table).compile(dialect=dialect)) for table in (names, log, meta, base)]
    return [*tables, str(CreateIndex(job_position).compile(dialect=dialect)), *VIEWS.values()]
