"""One event of each kind with every field set, so that a golden file shows all that is stored.

`python -m tests.golden.samples` writes the golden files that are missing; what is there is never written again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from datatask.schema import events as e
from datatask.schema.codec import encode
from datatask.schema.definition import (
    All,
    GatheredDef,
    In,
    LinkDef,
    Not,
    ParameterDef,
    PipelineDef,
    QuotaDef,
    RepositoryDef,
    RetryDef,
    Selection,
    TaskDef,
)

FOLDER = Path(__file__).parent / "events"

AT = 1_700_000_000_123_456_789
PERSON: dict[str, Any] = {"at": AT, "actor": "ada@lab: datatask", "cause": 3}
OURS: dict[str, Any] = {"at": AT, "cause": 3}
ASKED: dict[str, Any] = {"reason": "gone bad", "request": "0b7c9d1e-0000-4000-8000-000000000001"}
RUN: dict[str, Any] = {**OURS, "task": "resize", "job": "img-0001", "run": 17}
VALUE: dict[str, Any] = {**OURS, "repository": "images", "job": "img-0001", "run": 17}
ENDING: dict[str, Any] = {
    "outcome": "conflicted",
    "exit_code": 3,
    "error": e.ErrorInfo(type="ValueError", message="größer als 0 \u2028", traceback="Traceback …"),
    "started_at": AT + 1,
    "ended_at": AT + 2,
    "usage": {"cpu_seconds": 1.5},
    "reads": {"input": 9},
    "where": "node-1",
    "detail": {"reason": "Error"},
}
DEFINITION = PipelineDef(
    name="thumbnails",
    repositories=(
        RepositoryDef(id="images", kind="MetadataRepository", medium="native"),
        RepositoryDef(
            id="gathered(resize)",
            kind="Gathered",
            medium="derived",
            derived=GatheredDef(
                base=In(leaf="resize.done"),
                translator=In(leaf="images"),
                key="name",
                pattern="^img",
                keys=In(leaf="images"),
                size=2,
                rest=True,
                share=900_000_000,
                count=3,
                late="ignore",
                job="every",
            ),
        ),
    ),
    tasks=(
        TaskDef(
            name="resize",
            kind="FunctionTask",
            ready=All(of=(In(leaf="images"), Not(of=In(leaf="resize.done")))),
            links=(LinkDef(name="input", expr=In(leaf="images"), is_input=True, required_for_start=True),),
            quota="default",
            resources={"cpu": 1_000_000_000},
            later=({"cpu": 2_000_000_000},),
            retry=RetryDef(attempts=3),
            timeout=60_000_000_000,
            done="resize.done",
            fingerprint={"function shrink (shop.py)": "0a" * 16},
            on_change="rerun",
            cache=True,
        ),
    ),
    quotas=(
        QuotaDef(
            name="default",
            limits={"cpu": 8_000_000_000, "gpu": 2_000_000_000},
            identities={"gpu": ("0", "1")},
            variables={"gpu": "CUDA_VISIBLE_DEVICES"},
        ),
    ),
    parameters=(
        ParameterDef(name="threshold", kind="number", value=0.7, default=0.5, help="the least that counts"),
    ),
)

SAMPLES: tuple[e.Event, ...] = (
    e.LogCreated(at=AT, log="0123456789abcdef0123456789abcdef", pipeline="thumbnails"),
    e.EngineOpened(
        **OURS,
        version="0.1.0",
        host="lab",
        pid=4711,
        boot="b00t",
        epoch=2,
        last_sign=AT - 5,
        reason="after the update",
    ),
    e.EngineClosed(**OURS, epoch=2, reason="done"),
    e.ClockStepped(**OURS, wall_before=AT, wall_after=AT + 3_600_000_000_000),
    e.LogUpgraded(**OURS, format_before=1, format_after=2, version="0.2.0"),
    e.ArchiveCut(
        **PERSON, until=100, archive="log-1.db", digest="ab" * 32, state="cd" * 32, reason="the disk is small"
    ),
    e.CheckpointWritten(**OURS, position=2, fold_version=1, sha256="00ff" * 16, verified=True),
    e.BlobsCollected(**PERSON, count=2, size=1024, kept="current", reason="space"),
    e.PayloadRedacted(**PERSON, position=9, left="ab" * 32, reason="personal data", request="0b7c9d1e"),
    e.PipelineDefined(
        **OURS, definition=DEFINITION, digest=DEFINITION.digest(), decider=1, reason="more tries"
    ),
    e.Renamed(**OURS, what="task", old="shrink", new="resize", reason="its name misled"),
    e.RepositorySynced(
        **OURS, repository="images", listed_at=AT - 7, members=1000, root="66306:131", **ASKED
    ),
    e.RepositoryReset(**OURS, repository="images", incarnation=2),
    e.ObservationHeld(
        **OURS, repository="images", vanished=500, members=1000, sample=("a", "b"), why="unmounted?"
    ),
    e.RepositoryUnreachable(**OURS, repository="images", why="OSError: the share is gone"),
    e.ChangesMissed(**OURS, repository="images", missed=3, sample=("a", "b")),
    e.ContentHashed(**VALUE, version="7-1700000000-3", digest="ab" * 32),
    e.ValuePut(
        **VALUE,
        value=msgspec.Raw(b'{"a":[1,2.5,null],"b":"\xc3\xa9"}'),
        digest="ef" * 32,
        size=33,
        version="etag-1",
        origin="injected",
        **ASKED,
    ),
    e.ValueDeleted(**VALUE, origin="observed", version="etag-1", **ASKED),
    e.StoreWriteIntended(
        **VALUE,
        op="put",
        value=msgspec.Raw(b'"x"'),
        digest="ef" * 32,
        size=3,
        settles=e.Ending(**ENDING),
        **ASKED,
    ),
    e.Evaluated(
        **OURS,
        task="resize",
        job="img-0001",
        what="priority",
        inputs=(4, 9),
        value=msgspec.Raw(b"1.5"),
        error="ZeroDivisionError: division by zero",
        retry_at=AT + 9,
        volatile=True,
    ),
    e.DecisionRound(
        **OURS,
        state=16,
        now=AT,
        bound=1000,
        mode="drain",
        decider=1,
        decisions=1,
        unavailable=("pods",),
        constraints={"resize": "quota default: cpu"},
        selection=Selection(tasks=("resize",), jobs=Not(of=In(leaf="job(lab-*)")), left=3),
    ),
    e.LaunchDecided(
        **{**RUN, "run": None},
        episode=1,
        attempt=2,
        origin="forced",
        resources={"cpu": 1_000_000_000},
        priority=2.5,
        inputs={"input": 9},
        meta=False,
        over_quota=True,
        identities={"gpu": ("0",)},
        **ASKED,
    ),
    e.StopDecided(**RUN, reason="timeout", grace=10_000_000_000, why="over 60 s", request=ASKED["request"]),
    e.RetryScheduled(**RUN, not_before=AT + 100, attempt=2, budget="machine", spent=2),
    e.RetriesExhausted(**RUN, attempts=3, budget="conflict"),
    e.RunStarted(**RUN, handle={"pid": 99, "boot": "b00t"}, where="node-1", started_at=AT + 1),
    e.RunAdopted(**RUN, handle={"pid": 99}, where="node-1"),
    e.RunUnreachable(**RUN, where="node-1", message="no route to host"),
    e.RunReachable(**RUN, where="node-1"),
    e.RunResized(**RUN, resources={"cpu": 1_500_000_000, "mem": 64 << 50}),
    e.RunObserved(**RUN, phase="pending", reason="Unschedulable", message="0/3 nodes", source_at=AT - 1),
    e.RunEnded(**RUN, **ENDING, final=False),
    e.LateFact(**RUN, fact="Ended", detail={"exit_code": 0}),
    e.CancelRequested(**PERSON, task="resize", job="img-0001", **ASKED),
    e.RetryRequested(**PERSON, task="resize", job="img-0001", **ASKED),
    e.ResultAccepted(**PERSON, task="resize", job="img-0001", seen=77, withdrawn=True, **ASKED),
    e.TaskPaused(**PERSON, task="resize", **ASKED),
    e.TaskResumed(**PERSON, task="resize", **ASKED),
    e.QuotaChanged(**PERSON, quota="default", limits={"cpu": 4_000_000_000}, launches=10, **ASKED),
)


def to_line(event: e.Event) -> bytes:
    """Return the event as one JSON object, envelope, `kind` and own fields together."""
    return msgspec.json.encode(event)


def golden_path(kind: type[e.Event]) -> Path:
    """Return where the golden file of a kind's present version is."""
    return FOLDER / f"{kind.__name__}.v{kind.VERSION}.json"


def golden(event: e.Event) -> bytes:
    """Return the golden file of an event: its line, and its row with the payload as text."""
    row = encode(event)
    columns = {**row._asdict(), "payload": None if row.payload is None else row.payload.decode()}
    document = {"line": to_line(event).decode(), "row": columns}
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def main() -> None:
    """Write the golden files that are missing."""
    FOLDER.mkdir(exist_ok=True)
    for event in SAMPLES:
        path = golden_path(type(event))
        if not path.exists():
            path.write_bytes(golden(event))


if __name__ == "__main__":
    main()
