"""Runs that get identities of a resource: told to processes and functions, shown in the history, never twice at a time."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    CallerError,
    ExecutorTask,
    History,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
    identities,
)
from datatask.schema.messages import ChangeQuota, LaunchJob
from datatask.schema.units import NANO
from tests.integration.pipeline_kit import content, documents

SECONDS = 100
CARDS = ["0", "1", "2"]


def cards(**more: Any) -> ResourceManager:
    return ResourceManager(Resources.parse(64, "64GiB", gpu=CARDS), name="box", **more)


def printing(tmp_path: Path, box: ResourceManager, script: str) -> tuple[ProcessTask, Any, Any]:
    source, printed = documents("in"), LogBlobRepository("printed")
    task = ProcessTask(
        "show",
        LocalLinuxManager("app", tmp_path / "runs"),
        box,
        Resources.parse(1, "1MiB", gpu=1),
        InProcessMetadataRepository(),
        script,
        stdout=printed,
        done=documents("show.done"),
    )
    task.link("inp", source, is_input=True)
    return task, source, printed


async def read(repository: Any, job: str) -> str:
    async with repository.open(job, "rb") as stream:
        return bytes(await stream.read()).decode()


async def test_processes_have_their_own_at_a_time(tmp_path: Path) -> None:
    """A lock for each card shows that no two have one; the history tells which run had which."""
    locks = tmp_path / "locks"
    locks.mkdir()
    script = f"#!/bin/sh\nexec 9>{locks}/$CUDA_VISIBLE_DEVICES\nflock -n 9 || exit 9\nsleep 0.05\nprintf %s $CUDA_VISIBLE_DEVICES\n"
    task, source, printed = printing(tmp_path, cards(), script)
    log = str(tmp_path / "log.db")
    async with Pipeline([task], Session(), [], log=log) as pipe:
        for number in range(9):
            await pipe.put(source, f"j{number}", number)
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        own = {f"j{number}": await read(printed, f"j{number}") for number in range(9)}
        assert set(own.values()) == set(CARDS)
        assert not any(quota.held for quota in pipe.state.quotas.values())
    with History(log) as history:
        assert {run["job"]: run["identities"] for run in history.runs()} == {
            job: {"gpu": [card]} for job, card in own.items()
        }
        line = history.trace("j0")
        assert f"gpu {own['j0']}" in str(line)
        spans = [span.to_json() for lane in line.lanes for span in lane.spans]
        assert [span["identities"] for span in spans if span["phase"] == "running"] == [{"gpu": (own["j0"],)}]


async def held(job: str, out: Any) -> None:
    """Tell what the run has, by the function and by the environment of its process."""
    await asyncio.sleep(0.02)
    await out.dump(job, {"own": list(identities("gpu")), "told": os.environ.get("CARDS")})


@pytest.mark.parametrize("workers", ["loop", "threads", "processes"])
async def test_functions_have_their_own(workers: str) -> None:
    """By `identities`, and in a worker process in its environment too, but for others no more."""
    box, out = cards(variables={"gpu": "CARDS"}), documents("out")
    two = Resources.parse(1, 1, gpu=2)
    makers: dict[str, Any] = {
        "threads": partial(ThreadPoolExecutor, 2),
        "processes": partial(ProcessPoolExecutor, 1),
    }
    task: InProcessSyncTask | ExecutorTask
    if workers == "loop":
        task = InProcessSyncTask("f", documents("done"), func=held, resource_manager=box, resources=two)
    else:
        maker: Executor = makers[workers]
        task = ExecutorTask("f", maker, documents("done"), func=held, resource_manager=box, resources=two)
    source = documents("in")
    task.link("inp", source, is_input=True)
    task.link("out", out, is_output=True)
    assert "CARDS" not in os.environ
    async with Pipeline([task], Session(), [], log="memory:") as pipe:
        for job in ("a", "b"):
            await pipe.put(source, job, 1)
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        told = "0,1" if workers == "processes" else None
        assert await content(out) == {key: {"own": ["0", "1"], "told": told} for key in "ab"}
    assert "CARDS" not in os.environ


async def test_a_launch_beyond_the_limit_gets_what_is_free(tmp_path: Path) -> None:
    """None at last: the variable is empty, which hides all cards; and limits grow only with the list."""
    gate = tmp_path / "go"
    script = f'#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.02; done\nprintf "%s" "[$CUDA_VISIBLE_DEVICES]"\n'
    task, source, printed = printing(tmp_path, cards(), script)
    async with Pipeline([task], Session(), [], log=str(tmp_path / "log.db")) as pipe:
        jobs = ["a", "b", "c", "d"]
        for job in jobs:
            await pipe.put(source, job, 1)
            forced = LaunchJob(id=job, actor="me", task="show", job=job, force=True, over_quota=True)
            assert (await pipe.request(forced)).refusal is None
        assert {part for run in pipe.state.open_runs.values() for part in run.identities["gpu"]} == set(CARDS)
        more = ChangeQuota(id="q", actor="me", quota="box", limits={"gpu": 4 * NANO})
        refusal = (await pipe.request(more)).refusal
        assert refusal is not None
        assert refusal.what == "box has 3 gpu: 0, 1, 2"
        gate.touch()
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert sorted([await read(printed, job) for job in jobs]) == ["[0]", "[1]", "[2]", "[]"]


def test_what_cannot_be_given_out_is_refused() -> None:
    """Each in one line with the remedy."""
    for listed, what in (
        (["0", "0"], "'0' is there twice"),
        (["a b"], "is no identity"),
        ([0], "is no identity"),
        ([], "0 identities"),
        (["a,b"], "is no identity"),
    ):
        with pytest.raises(CallerError, match=what):
            Resources.parse(1, 1, gpu=listed)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="no name of an environment variable"):
        cards(variables={"gpu": "A-B"})
    with pytest.raises(CallerError, match="has no identities"):
        cards(variables={"tpu": "TPU"})
    for request, what in (
        (Resources.parse(1, 1, gpu="500m"), "given out one by one"),
        (Resources.parse(1, 1, gpu=["0"]), "say how many one run takes"),
    ):
        task = InProcessSyncTask(
            "f", LogMetadataRepository("done"), func=held, resource_manager=cards(), resources=request
        )
        task.link("out", documents("out"), is_input=True)
        with pytest.raises(CallerError, match=what):
            Pipeline([task], Session(), []).declare()


def test_outside_of_a_run_there_are_none() -> None:
    with pytest.raises(CallerError, match="no run is under way"):
        identities("gpu")
