"""Whole pipelines of pods, from the engine to processes: on the API server for tests, or on a real cluster.

DATATASK_TEST_KUBECONFIG names a real one: then in a namespace that is made and removed, with the image that
DATATASK_TEST_KUBE_IMAGE names (a shell is enough). What breaks a server on purpose is for the fake one only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    KubeTask,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.execute.kube import runs, starts
from tests.kube.api.deleting import PODS
from tests.kube.api.faults import Fault, broken, too_many
from tests.kube.api.storage import Change
from tests.kube.runner_kit import log_of
from tests.kube.toy import REAL, Target, cluster

TEMPLATE = """
apiVersion: v1
kind: Pod
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {{ image }}
      command: [sh, -c, {{ script | yaml }}, sh, "{{ job }}"]
      resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 256Mi}}
"""
fake_only = pytest.mark.skipif(
    REAL is not None, reason="breaks the server, or needs files that pods share with us"
)


def task_of(there: Target, name: str, script: str, inp: Any, **more: Any) -> KubeTask:
    """Return a task whose pods run a script for each job."""
    logs, done = LogBlobRepository(f"{name}_logs"), LogMetadataRepository(f"{name}_done")
    quota = more.pop("quota", ResourceManager(Resources.parse(1, "1Gi")))
    env = {"script": script, "image": there.image}
    task = KubeTask(name, there.manager("e2e"), quota, TEMPLATE, logs, done, env=env, **more)
    task.link("inp", inp, is_input=True)
    return task


async def test_two_tasks_of_pods_after_each_other(tmp_path: Path) -> None:
    """What ends well goes on; what fails is told with its code; logs are kept, pods are not."""
    async with cluster() as (there, _):
        inp = LogMetadataRepository("inp")
        script = "echo first $1; echo err >&2; case $1 in j3) exit 3;; j4) exit 137;; esac"
        first = task_of(there, "first", script, inp)
        second = task_of(there, "second", "echo second $1", first.links["done"].repo)
        async with Pipeline([first, second], Session(), log=tmp_path / "log.db") as pipeline:
            for at in range(8):
                await inp.dump(f"j{at}", {})
            outcome = await pipeline.run(timeout=120)
            done = {name: task.links["done"].repo for name, task in (("1", first), ("2", second))}
            ends = {f"j{at}": await done["1"].info(f"j{at}") for at in range(8)}
            assert {job for job, end in ends.items() if not end["success"]} == {"j3", "j4"}
            assert outcome.failed >= 2
            assert sorted((await log_of(first.links["logs"].repo, "j3")).split("\n")) == [
                "",
                "err",
                "first j3",
            ]
            assert await log_of(second.links["logs"].repo, "j7") == "second j7\n"
            assert (await done["2"].info("j7"))["success"]
        listed = await there.ask("GET", f"/api/v1/namespaces/{there.namespace}/pods")
        assert [
            one["metadata"]["name"] for one in listed["items"] if not one["metadata"].get("deletionTimestamp")
        ] == []


async def test_a_resource_quota_holds_pods_back_and_loses_none(tmp_path: Path) -> None:
    """Two at a time by the server's quota, which the engine does not know."""
    async with cluster() as (there, api):
        quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
        await there.ask("POST", f"/api/v1/namespaces/{there.namespace}/resourcequotas", quota)
        inp = LogMetadataRepository("inp")
        task = task_of(there, "t", "sleep .1; echo $1", inp)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            for at in range(6):
                await inp.dump(f"j{at}", {})
            outcome = await pipeline.run(timeout=120)
            assert outcome.failed == 0
            for at in range(6):
                assert await log_of(task.links["logs"].repo, f"j{at}") == f"j{at}\n"
        if api is not None:
            assert api.most_at_once() <= 2


@fake_only
async def test_a_pod_whose_creation_was_never_answered_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs, ends and is removed while its start still waits to ask anew: the job is done, once."""
    monkeypatch.setattr(starts, "PAUSE_SECONDS", (0.6, 0.6))
    monkeypatch.setattr(runs, "DELAYED_SECONDS", 4.0)
    async with cluster() as (there, api):
        assert api is not None
        api.faults.append(Fault("create", cut="after"))
        inp = LogMetadataRepository("inp")
        task = task_of(there, "t", f"echo run >> {tmp_path}/runs", inp)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await inp.dump("a", {})
            assert (await pipeline.run(timeout=100)).failed == 0
            await asyncio.sleep(1.0)
            assert len(api.pods) == 1, "its name is taken for as long as a create could still come"
            async with asyncio.timeout(100):
                while api.pods:
                    await asyncio.sleep(0.05)
        assert api.counts["create pods"] == 1
        assert (tmp_path / "runs").read_text() == "run\n"


@fake_only
@pytest.mark.parametrize("seed", range(3))
async def test_a_server_that_is_ill_costs_time_and_no_job(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals, lost answers, cut and torn watches, forgotten history: each job is run to its end by one pod."""
    monkeypatch.setattr(runs, "DELAYED_SECONDS", 0.0)  # this server delays nothing
    chance = random.Random(seed)
    async with cluster() as (there, api):
        assert api is not None
        made: list[str] = []

        def see(change: Change) -> None:
            if change.type == "ADDED":
                made.append(change.found["metadata"]["annotations"]["datatask.io/job"])

        api.storage.table(PODS).listeners.append(see)

        async def disturb() -> None:
            faults = (
                lambda: too_many(2, retry_after=0),
                lambda: broken(1, "create"),
                lambda: broken(1, "list"),
                lambda: Fault("create", cut="before"),
                lambda: Fault("create", cut="after"),
                lambda: Fault("delete", cut="after"),
                lambda: Fault("patch", code=500, message="etcdserver: leader changed"),
                lambda: Fault("watch", events=chance.randint(0, 5), torn=chance.random() < 0.5),
                lambda: Fault("get", "pods/log", cut="before"),
            )
            for _ in range(10):
                api.faults.append(chance.choice(faults)())
                if chance.random() < 0.2:
                    api.forget_history()
                await asyncio.sleep(0.05)

        inp = LogMetadataRepository("inp")
        task = task_of(there, "t", "echo one $1; echo two", inp)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            for at in range(12):
                await inp.dump(f"j{at}", {})
            disturbing = asyncio.create_task(disturb())
            outcome = await pipeline.run(timeout=60)
            await disturbing
            assert outcome.failed == 0
            for at in range(12):
                assert await log_of(task.links["logs"].repo, f"j{at}") == f"one j{at}\ntwo\n"
            async with asyncio.timeout(
                30
            ):  # they are removed beside all else, and again where that was refused
                while api.pods:
                    await asyncio.sleep(0.05)
        assert len(made) == len(set(made)) == 12


FUNCTION = '''
import json, pathlib
from datatask import *

podman = PodManager("e2e", "space", json.loads(pathlib.Path({config!r}).read_text()))
inp, out = LogMetadataRepository("inp"), InProcessMetadataRepository(name="out")
kube_done, func_done, logs = LogMetadataRepository("kd"), LogMetadataRepository("fd"), LogBlobRepository("logs")

@KubeFunctionTask("double", podman, None, """
kind: Pod
spec:
  containers:
    - name: leader
      image: any
      workingDir: {folder}
      command: [{python}, "{{{{argv0}}}}", launch, "{{{{task}}}}", "{{{{job}}}}", --force, --sync]
""", logs, kube_done, func_done)
async def double(job, inp, out):
    print("working on", job)
    await out.dump(job, {{"twice": (await inp.info(job))["n"] * 2}})

double.link("inp", inp, is_input=True)
double.link("out", out, is_output=True)
pipeline = Pipeline([double], Session(), log={log!r})
if __name__ == "__main__":
    main(pipeline)
'''


def function_script(folder: Path, config: object) -> Path:
    """Write the script of a task whose function runs in pods."""
    (folder / "config.json").write_text(json.dumps(config))
    names = {"config": str(folder / "config.json"), "log": str(folder / "log.db")}
    python, place = json.dumps(sys.executable), json.dumps(str(folder))
    (folder / "main.py").write_text(FUNCTION.format(**names, python=python, folder=place))
    return folder / "main.py"


@fake_only
async def test_a_function_runs_in_a_pod_by_the_same_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its argument travels there, its result comes back, its output is the log."""
    async with cluster(env={"PYTHONPATH": os.getcwd()}) as (_, api):
        assert api is not None
        script = function_script(tmp_path, api.config())
        monkeypatch.setattr(sys, "argv", [str(script)])
        has = runpy.run_path(str(script))
        async with has["pipeline"] as pipeline:
            await has["inp"].dump("a", {"n": 21})
            await pipeline.run(timeout=60)
            assert await has["out"].info("a") == {"twice": 42}
            assert (await has["func_done"].info("a"))["result"] == "success"
            assert (await has["kube_done"].info("a"))["node"] == "node1"
            assert await log_of(has["logs"], "a") == "working on a\n"


@fake_only
@pytest.mark.parametrize("named", ["main.py", pytest.param("main", marks=pytest.mark.slow)])
async def test_a_function_runs_in_a_pod_of_the_command_lines_engine(tmp_path: Path, named: str) -> None:
    """By `datatask -p FILE run`, where `argv0` is the file, not the program; and by a module's name."""
    async with cluster(env={"PYTHONPATH": os.getcwd()}) as (_, api):
        assert api is not None
        script = str(function_script(tmp_path, api.config()))
        has = runpy.run_path(script)
        async with has["pipeline"]:
            await has["inp"].dump("a", {"n": 21})
        command = [sys.executable, "-m", "datatask", "-p", named, "run", "--timeout", "100"]
        env = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=env)
        assert await process.wait() == 0
        has = runpy.run_path(script)
        async with has["pipeline"]:
            assert (await has["func_done"].info("a"))["result"] == "success"
            assert await log_of(has["logs"], "a") == "working on a\n"
