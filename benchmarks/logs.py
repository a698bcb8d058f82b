"""Large logs for benchmarks, as an engine would have written them, at about 150,000 events a second.

In: a path and a number of jobs. Out: a log whose chain holds, whose decisions were admissible and whose rounds
derive again: native repositories, `stages` tasks in a chain, each job put once and run once a task. Rows are made
without building events; tests/integration/test_benchmark_logs.py holds them against the codec and the decider.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sqlite3
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from datatask.adapters.log.open import Opener, create_log
from datatask.adapters.log.tail import COLUMNS, seeded_salts
from datatask.engine.core.decide import DECIDER_VERSION
from datatask.schema.codec import chain, encode, payload_digest
from datatask.schema.definition import All, In, LinkDef, Not, PipelineDef, RepositoryDef, TaskDef
from datatask.schema.events import DecisionRound, EngineClosed, EngineOpened, Event, PipelineDefined
from datatask.schema.tables import create_statements

UUID = "b" * 32
PIPELINE = "bench"
NOW = 1_700_000_000_000_000_000
STEP = 1_000_000
"""Engine time from one batch to the next: a millisecond."""

WAVE = 300
"""Jobs put at once; a round launches as many of each stage, fewer than a round's bound."""

BOUND = 1000
_HELD_ROWS = 20_000
_STATEMENT_ROWS = 500
_VALUES = 1000

Line = tuple[Any, ...]
"""The columns of a codec row, with the payload's text at the end (None for none)."""


def repository(stage: int) -> str:
    """Return the id of the repository that a stage reads; the last stage writes the one behind it."""
    return f"values{stage}"


def definition(stages: int) -> PipelineDef:
    """Return the pipeline: task{n} reads values{n}, writes values{n+1} and done{n}."""
    ids = [repository(stage) for stage in range(stages + 1)] + [f"done{stage}" for stage in range(stages)]
    return PipelineDef(
        name=PIPELINE,
        repositories=tuple(
            RepositoryDef(id=leaf, kind="InProcessMetadataRepository", medium="native") for leaf in ids
        ),
        tasks=tuple(_task(stage) for stage in range(stages)),
    )


def _task(stage: int) -> TaskDef:
    source, target, done = (
        In(leaf=name) for name in (repository(stage), repository(stage + 1), f"done{stage}")
    )
    return TaskDef(
        name=f"task{stage}",
        kind="InProcessSyncTask",
        ready=All(of=(source, Not(of=done))),
        done=done.leaf,
        links=(
            LinkDef(name="input", expr=source, is_input=True, required_for_start=True),
            LinkDef(name="output", expr=target, is_output=True),
            LinkDef(name="done", expr=done, is_status=True, inhibits_start=True),
        ),
    )


def make_log(path: Path, jobs: int, stages: int = 3) -> int:
    """Write the log of `jobs` jobs that went through all stages, the engine closed; return its head.

    A job has 1 + 5 * stages events: 187,500 jobs in three stages make 3 million.
    """
    salts = seeded_salts(1)
    create_log(path, Opener(PIPELINE, "0", "bench", os.getpid(), NOW), UUID, salts)
    writer = _Writer(path, next(salts))
    writer.batch(
        [
            _line(EngineOpened(at=NOW, version="0", host="bench", pid=1, boot="b", epoch=1)),
            _line(
                PipelineDefined(
                    at=NOW,
                    definition=definition(stages),
                    digest=definition(stages).digest(),
                    decider=DECIDER_VERSION,
                )
            ),
        ]
    )
    writer.batch([_line(EngineClosed(at=_life(writer, jobs, stages), epoch=1))])
    return writer.close()


def _life(writer: _Writer, jobs: int, stages: int) -> int:
    """Put a wave, launch all that is ready, start it, end it: until every job has passed; return the time."""
    at, put = NOW, 0
    waiting: list[tuple[int, str, int]] = []
    while put < jobs or waiting:
        at += STEP
        wave = range(put, min(put + WAVE, jobs))
        put = wave.stop
        if wave:
            first = writer.batch(
                [_put(at, repository(0), f"job-{number:07d}", _value(number)) for number in wave]
            )
            waiting += [(0, f"job-{number:07d}", first + index) for index, number in enumerate(wave)]
        at += STEP
        state = writer.next - 1
        record = DecisionRound(
            at=at,
            state=state,
            now=at,
            bound=BOUND,
            mode="run",
            decider=DECIDER_VERSION,
            decisions=len(waiting),
        )
        writer.batch([_line(record), *(_decision(at, state + 2 + n, *one) for n, one in enumerate(waiting))])
        runs = [(run, stage, job) for run, (stage, job, _) in enumerate(waiting, state + 2)]
        for run, stage, job in runs:
            pid = 1000 + run % 4096
            payload = f'{{"handle":{{"pid":{pid}}},"where":"local"}}'
            at += STEP
            writer.batch(
                [(at, "RunStarted", 1, True, "engine", run, f"task{stage}", None, job, run, payload)]
            )
        waiting = []
        for run, stage, job in runs:
            at += STEP
            written = writer.batch(_ending(at, run, stage, job))
            if stage + 1 < stages:
                waiting.append((stage + 1, job, written))
    return at


def _decision(at: int, run: int, stage: int, job: str, value: int) -> Line:
    payload = f'{{"episode":1,"attempt":1,"inputs":{{"input":{value}}}}}'
    return (at, "LaunchDecided", 1, True, "engine", value, f"task{stage}", None, job, run, payload)


def _ending(at: int, run: int, stage: int, job: str) -> list[Line]:
    task = f"task{stage}"
    begun, ended = _clock(at - 5 * STEP), _clock(at)
    done = f'{{"value":{{"result":"success","start_time":"{begun}","end_time":"{ended}","success":true}}}}'
    how = f'{{"outcome":"succeeded","started_at":{at - 5 * STEP},"ended_at":{at},"where":"local"}}'
    return [
        _put(at, repository(stage + 1), job, _value(run), task, run),
        _put(at, f"done{stage}", job, done, task, run),
        (at, "RunEnded", 1, True, "engine", run, task, None, job, run, how),
    ]


@lru_cache(maxsize=64)
def _clock(at: int) -> str:
    return f"{dt.datetime.fromtimestamp(at / 1e9, dt.UTC)}"


def _put(at: int, leaf: str, job: str, payload: str, task: str | None = None, run: int | None = None) -> Line:
    return (at, "ValuePut", 1, True, "engine", None, task, leaf, job, run, payload)


def _value(number: int) -> str:
    return f'{{"value":{{"path":"/data/{number % _VALUES:04d}.npz","rows":1024,"ok":true}}}}'


def _line(event: Event) -> Line:
    row = encode(event)
    return (*row[:-1], None if row.payload is None else row.payload.decode())


class _Writer:
    """Appends batches to a new log's file: positions, names, chain and rows, thousands of rows a statement."""

    def __init__(self, path: Path, salt: int) -> None:
        """Go on behind `LogCreated`; one salt for all, so that equal payloads are hashed once."""
        self._file = sqlite3.connect(path, isolation_level=None)
        execute = self._file.execute
        self._index = next(sql for sql in create_statements() if "log_job_position" in sql)
        for statement in (
            "PRAGMA journal_mode = MEMORY",
            "PRAGMA synchronous = OFF",
            "PRAGMA cache_size = -65536",
            "DROP INDEX log_job_position",
            "BEGIN",
        ):
            execute(statement)
        ((self._chain,),) = execute("SELECT chain FROM log")
        self._names: dict[str | None, int | None] = {None: None}
        self._names.update((text, number) for number, text in execute("SELECT id, text FROM names"))
        self._salt = salt
        self._digests: dict[str | None, str] = {None: ""}
        self._held: list[Any] = []
        self._fresh: list[Any] = []
        self.next = 2

    def batch(self, lines: list[Line]) -> int:
        """Append a batch; return the position of its first event."""
        first, names, digests, salt = self.next, self._names, self._digests, self._salt
        found = []
        for line in lines:
            payload = line[10]
            digest = digests.get(payload)
            if digest is None:
                digest = payload_digest(payload.encode(), salt)
                if payload.startswith('{"value":{"path"') or payload.startswith('{"handle"'):
                    digests[payload] = digest  # few of these differ
            found.append(digest)
        self._chain = chain(self._chain, UUID, first, lines, found)  # type: ignore[arg-type]
        position = first
        held = self._held
        for line in lines:
            kind, task, leaf, job, payload = line[1], line[6], line[7], line[8], line[10]
            if job not in names or kind not in names or task not in names or leaf not in names:
                self._learn((kind, line[4], task, leaf, job))
            held += (position, line[0], names[kind], line[2], line[3], names[line[4]], line[5], names[task])
            held += (names[leaf], names[job], line[9], payload, payload and salt, None, None)
            position += 1
        held[-1] = self._chain
        self.next = position
        if len(self._held) >= _HELD_ROWS * COLUMNS:
            self._write()
        return first

    def _learn(self, texts: tuple[str | None, ...]) -> None:
        for text in texts:
            if text not in self._names:
                self._names[text] = number = len(self._names)
                self._fresh += (number, text)

    def _write(self) -> None:
        """Write what is held, as few statements of many rows."""
        self._insert("names", 2, self._fresh)
        self._insert("log", COLUMNS, self._held)

    def _insert(self, table: str, columns: int, values: list[Any]) -> None:
        for start in range(0, len(values), _STATEMENT_ROWS * columns):
            part = values[start : start + _STATEMENT_ROWS * columns]
            rows = ", ".join([f"({', '.join('?' * columns)})"] * (len(part) // columns))
            self._file.execute(f"INSERT INTO {table} VALUES {rows}", part)
        values.clear()

    def close(self) -> int:
        """Write the rest, the index and the header; return the head."""
        self._write()
        header = {"epoch": 1, "host": "bench", "pid": 1, "started": NOW}
        self._file.executemany("UPDATE meta SET value = ? WHERE key = ?", [(v, k) for k, v in header.items()])
        self._file.execute(self._index)
        self._file.execute("COMMIT")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.close()
        return self.next - 1


def main() -> None:
    """Write one, by default a small one that is thrown away: `python -m benchmarks.logs [JOBS [PATH]]`."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder) / "log.db"
        began = time.perf_counter()
        head = make_log(path, jobs)
        seconds = time.perf_counter() - began
    print(json.dumps({"events": head, "events_written_per_second": round(head / seconds)}))


if __name__ == "__main__":
    main()
