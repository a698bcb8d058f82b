"""Measure Python's own standard library, file by file: a pipeline with every kind of task that needs no server.

    sources ─┬─▶ checksum (a process each) ──▶ compare (in-process, by a translator) ─┐
             └─▶ measure (in a process pool) ─────────────────────────────────────────┴─▶ report

Run it with `datatask -p examples/stdlib/pipeline.py run --failures-ok`. Files that cannot be parsed fail, and stay
failed until somebody asks for a retry; everything else goes on. Run it again, and there is nothing to do.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from measuring import measured
from reporting import Findings, chart, text
from sources import HERE, Sources, job_of, path_of

from datatask import (
    AggregateAndRepository,
    AggregateOrRepository,
    BlobRepository,
    ExecutorTask,
    FileRepository,
    Gathered,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    MetadataRepository,
    Pipeline,
    ProcessTask,
    Repository,
    ResourceManager,
    Resources,
    Session,
)

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

session = Session()
sources = Sources(name="sources")


# (a) a shell script for each file, four at a time for each core

sums = LogBlobRepository("sums")
checksum = ProcessTask(
    "checksum",
    LocalLinuxManager("stdlib", HERE / ".datatask" / "processes"),
    ResourceManager(Resources.parse(cpu=CORES, mem="1Gi")),
    Resources.parse(cpu="250m", mem="1Mi"),
    LogMetadataRepository("checksum.pids"),
    """\
#!/bin/sh -e
sha256sum {{ source | sh }}
wc {{ source | sh }}
""",
    done=LogMetadataRepository("checksum.done"),
    stdout=sums,
)
checksum.link("source", sources, is_input=True)


# (b) a Python function for each file, in a pool of processes

metrics = LogMetadataRepository("metrics")
measure = ExecutorTask(
    "measure",
    lambda: ProcessPoolExecutor(CORES),  # made when the pipeline opens, shut down when it closes
    LogMetadataRepository("measure.done"),
    timeout=60.0,
    concurrency=2 * CORES,
)
measure.link("source", sources, is_input=True)
measure.link("metrics", metrics, is_output=True)


@measure
async def measure_file(job: str, source: Repository, metrics: MetadataRepository) -> None:
    """Parse a file and write down what it is made of."""
    await metrics.dump(job, measured(Path(await source.info(job))))


# (c) an async function for each file, on the engine's own loop: is it a copy of another one?

first_with: dict[str, str] = {}
one_at_a_time = asyncio.Lock()


async def first_with_same_digest(info: str) -> str:
    """Return the first file that has the digest which `sha256sum` printed into the file at `info`."""
    async with one_at_a_time:
        if not first_with:  # a later run goes on with what earlier ones have found
            async for job in checksum.succeeded:
                digest, file = printed(await sums.info(job))
                first_with.setdefault(digest, job_of(file))
        digest, file = printed(info)
        return first_with.setdefault(digest, job_of(file))


def printed(info: str) -> tuple[str, Path]:
    """Return digest and file from the output of `sha256sum` and `wc`."""
    digest, file = Path(info).read_text().splitlines()[0].split(maxsplit=1)
    return digest, Path(file)


copies = LogMetadataRepository("copies")
compare = InProcessSyncTask("compare", LogMetadataRepository("compare.done"))
compare.plug(
    checksum, translator=sums.map(first_with_same_digest), require_success=True
)  # `stdout` is the first one's
compare.link("sums", sums)  # … and `sums` one's own
compare.link("copies", copies, is_output=True)


@compare
async def compare_with_first(job: str, stdout: BlobRepository, copies: MetadataRepository) -> None:
    """Note which file this one is a copy of, and how large it is."""
    async with stdout.open(job) as stream:
        _digest, first = (await stream.read()).splitlines()[0].split(maxsplit=1)
    if (other := job_of(Path(first))) != job:
        assert path_of(other).read_bytes() == path_of(job).read_bytes()
        await copies.dump(job, {"of": other, "bytes": path_of(job).stat().st_size})


# (d) one report when all files are through

texts = FileRepository(HERE / "report", ".md", name="reports")
charts = FileRepository(HERE / "report", ".svg", name="charts")
report = InProcessSyncTask("report", LogMetadataRepository("report.done"))
measured_or_not = AggregateOrRepository(yes=measure.succeeded, no=measure.failed)
compared_or_not = AggregateOrRepository(yes=compare.succeeded, no=compare.failed, unread=checksum.failed)
through = AggregateAndRepository(measured=measured_or_not, compared=compared_or_not)
every_file = Gathered(through, expected=sources, late="again", job="stdlib", name="every-file")
report.link(
    "every_file", every_file, is_input=True
)  # a file that comes later, or is mended, makes `stdlib.2`
report.link("texts", texts, is_output=True)
report.link("charts", charts, is_output=True)
report.link("metrics", metrics)
report.link("copies", copies)
report.link("unparsed", measure.failed)
report.link("measured", measure.done)


@report
async def write_report(
    job: str,
    texts: BlobRepository,
    charts: BlobRepository,
    metrics: Repository,
    copies: Repository,
    unparsed: Repository,
    measured: Repository,
) -> None:
    """Write the Markdown text, and the chart that it shows."""
    errors = {file: (await measured.info(file))["exception"] async for file in unparsed}
    findings = Findings(metrics=await metrics.info_all(), copies=await copies.info_all(), errors=errors)
    async with charts.open(job, "w") as stream:
        await stream.write(chart(findings))
    async with texts.open(job, "w") as stream:
        await stream.write(text(findings, chart=f"{job}.svg"))


pipeline = Pipeline([checksum, measure, compare, report], session, [], name="stdlib")
