"""Whole pipelines on a cluster: pods that really run, functions in pods, the command line inside and outside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    CallerError,
    History,
    KubeTask,
    LiveKubeRepository,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    PodManager,
    ResourceManager,
    Resources,
    Retry,
    Session,
    why,
)
from datatask.adapters.execute.kube import pods
from datatask.schema.units import NANO
from tests.kube.api.faults import Fault
from tests.kube.runner_kit import log_of
from tests.kube.scripted import Hand, scripted
from tests.kube.toy import toy_cluster

TEMPLATE = """
apiVersion: v1
kind: Pod
spec:
  containers:
    - name: main
      image: busybox
      command: [sh, -c, {{ script | yaml }}, sh, "{{ job }}", {{ inp.word | yaml }}]
      resources: {requests: {cpu: 100m, memory: 64Mi}}
"""


def kube_task(api: Hand, script: str, **more: Any) -> tuple[KubeTask, dict[str, Any]]:
    """Return a task whose pods run a script with job and word, and its repositories."""
    repositories: dict[str, Any] = {
        "inp": LogMetadataRepository("inp"),
        "logs": LogBlobRepository("logs"),
        "done": LogMetadataRepository("done"),
    }
    quota = more.pop("quota", ResourceManager(Resources.parse(1, "1Gi")))
    manager = PodManager("App.1", "space", api.config())
    env = {"script": script, **more.pop("env", {})}
    task = KubeTask(
        "Say_it", manager, quota, TEMPLATE, repositories["logs"], repositories["done"], env=env, **more
    )
    task.link("inp", repositories["inp"], is_input=True)
    return task, repositories


async def test_a_pipeline_of_pods_runs_to_its_end_within_its_quota(tmp_path: Path) -> None:
    """Ten at a time by the manifest's requests; logs and `done` are there, pods are gone."""
    async with toy_cluster() as api:
        task, has = kube_task(api, "echo $1 says $2; case $1 in J.3) exit 3;; esac")
        assert isinstance(task.live, LiveKubeRepository)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            for index in range(25):
                await has["inp"].dump(f"J.{index}", {"word": f"it's {index}"})
            outcome = await pipeline.run(timeout=60)
            assert outcome.failed == 1
            assert await log_of(has["logs"], "J.7") == "J.7 says it's 7\n"
            good, bad = await has["done"].info("J.7"), await has["done"].info("J.3")
            assert (good["reason"], good["success"], good["image"], good["node"]) == (
                "Succeeded",
                True,
                "busybox",
                "node1",
            )
            assert (bad["reason"], bad["success"]) == ("Failed", False)
        assert api.pods == {}
    assert 2 <= api.most_at_once() <= 10


async def test_a_timeout_a_cancel_and_a_retry(tmp_path: Path) -> None:
    """Each ends its pod; the log of what was stopped is kept."""
    async with toy_cluster() as api:
        script = "echo begun; test $1 = quick || exec sleep 60"
        task, has = kube_task(
            api, script, timeout=1.0, grace=1.0, retry=Retry(2, backoff=0.0, on=("timed_out",))
        )
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            for job in ("quick", "slow"):
                await has["inp"].dump(job, {"word": "x"})
            await pipeline.run(timeout=60)
            done = await has["done"].info("slow")
            assert (done["reason"], done["timeout"]) == ("Timeout", True)
            assert (await has["done"].info("quick"))["success"]
            assert await log_of(has["logs"], "slow") == "begun\n"
        assert api.counts["create pods"] == 3


async def test_deleting_from_live_deletes_the_pod_and_the_job_runs_anew(tmp_path: Path) -> None:
    """As pydatatask's `rm task.live`; also by the pod itself."""
    async with toy_cluster() as api:
        task, has = kube_task(api, f"test -e {tmp_path}/go || exec sleep 60; echo second")
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await has["inp"].dump("a", {"word": "x"})
            running = asyncio.create_task(pipeline.run(timeout=60))
            pod = await api.pod("a")
            while (
                pod["metadata"]["name"] in api.pods
                and api.pods[pod["metadata"]["name"]]["status"]["phase"] != "Running"
            ):
                await asyncio.sleep(0.01)
            live: Any = task.live
            (listed,) = await live.pods()
            (tmp_path / "go").touch()
            await task.delete(listed)
            await running
            assert await log_of(has["logs"], "a") == "second\n"


async def test_requests_that_are_missing_are_told_when_the_pipeline_opens(tmp_path: Path) -> None:
    """By task, container and resource; without a quota nobody asks."""
    async with toy_cluster() as api:
        for quota, fails in ((ResourceManager(Resources.parse(1, "1Gi")), True), (None, False)):
            task, _ = kube_task(api, "true", quota=quota)
            bare = TEMPLATE.replace("resources: {requests: {cpu: 100m, memory: 64Mi}}", "")
            task._template.source = bare
            pipeline = Pipeline([task], Session(), log=tmp_path / f"{fails}.db")
            if fails:
                with pytest.raises(
                    CallerError, match=r"Say_it: container main has no resources\.requests\.cpu"
                ):
                    await pipeline.open()
            else:
                async with pipeline:
                    assert task.job_resources is None


async def test_why_tells_what_the_server_says(tmp_path: Path) -> None:
    """Of a run that was decided and has no pod yet."""
    words = "pods is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
    async with toy_cluster() as api:
        api.faults.append(Fault("create", times=None, code=403, message=words))
        task, has = kube_task(api, "true")
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await has["inp"].dump("a", {"word": "x"})
            running = asyncio.create_task(pipeline.run(timeout=60))
            while api.counts["create pods"] < 2:
                await asyncio.sleep(0.01)
            await pipeline.runtime.flushed()
            (live,) = [
                hold for hold in why(tmp_path / "log.db", "Say_it", "a").held_by if hold.what == "live"
            ]
            assert re.search(
                f"is decided, not yet started; QuotaExceeded: pod [a-z0-9-]+: {words}", live.explain
            )
            api.faults.clear()
            await running


DOCTOR = """
import json, pathlib
from datatask import *
podman = PodManager("app", "space", json.loads(pathlib.Path("config.json").read_text()))
inp, done = LogMetadataRepository("inp"), LogMetadataRepository("done")
task = KubeTask("t", podman, None, "kind: Pod\\nspec: {containers: [{name: main, image: x}]}", None, done)
task.link("inp", inp, is_input=True)
pipeline = Pipeline([task], Session(), log="log.db")
"""


async def doctor(folder: Path, *more: str) -> list[dict[str, str]]:
    """Return what `doctor` says of the cluster."""
    command = [sys.executable, "-m", "datatask", "-p", "pipeline.py", "doctor", "--json", *more]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    return [row for row in json.loads(printed) if row["check"] == "cluster"]


async def test_doctor_looks_at_the_cluster_and_removes_what_nobody_owns(tmp_path: Path) -> None:
    """Versions, rights, pods of this log's runs that are over; those of other logs are left alone."""
    async with scripted() as api:
        (tmp_path / "config.json").write_text(json.dumps(api.config()))
        (tmp_path / "pipeline.py").write_text(DOCTOR)
        rows = await doctor(tmp_path)
        assert [row["ok"] for row in rows] == ["yes"] * 4
        assert "Kubernetes v1.36.2, kubernetes_asyncio" in rows[0]["what"]
        assert "may create, watch, patch and delete pods in space" in rows[1]["what"]
        async with Pipeline([], Session(), log=tmp_path / "log.db") as pipeline:
            log = pipeline.log.uuid if pipeline.log else ""
        for number, whose in enumerate((log, "f" * 32)):
            identity = f"{whose}.1.7"
            meta = {
                "name": f"left-{number}",
                "labels": pods.labels("app", "t", "j", identity),
                "annotations": pods.told("app", "t", "j", identity),
                "finalizers": [pods.FINALIZER],
            }
            api.make(phase="Failed", metadata=meta)
        assert any(
            "pod left-0 (Failed), which no open run owns" in row["what"] for row in await doctor(tmp_path)
        )
        rows = await doctor(tmp_path, "--clean")
        assert any(row["what"].endswith("; removed") for row in rows)
        assert any("1 pods are of another log, " in row["what"] for row in rows)
        assert list(api.pods) == ["left-1"]
        api.server.users["admin"].denied = {"patch pods", "list events", "create pods/exec"}
        rows = await doctor(tmp_path)
        assert [(row["ok"], row["what"]) for row in rows[1:4]] == [
            ("note", "may not list events in space"),
            ("note", "may not create pods/exec in space"),
            ("no", "may not patch pods in space"),
        ]
    (row,) = await doctor(tmp_path)  # nobody answers any more
    assert row["ok"] == "no"
    assert "kubectl cluster-info" in row["remedy"]


async def test_a_pod_that_asks_for_more_than_the_task_says_is_refused(tmp_path: Path) -> None:
    """No decision exceeds the quota."""
    async with toy_cluster() as api:
        task, has = kube_task(api, "true", job_resources=Resources.parse("50m", "64Mi"))
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await has["inp"].dump("a", {"word": "x"})
            assert (await pipeline.run(timeout=100)).failed == 1
            done = await has["done"].info("a")
            assert "its pod asks for 0.100 cpu, the task's job_resources are 0.050" in done["error"]
        assert api.counts["create pods"] == 0


SCRIPT = '''
import json, pathlib
import datatask as pydatatask
from datatask import *

podman = PodManager("app", "space", json.loads(pathlib.Path({config!r}).read_text()))
inp, blob = LogMetadataRepository("inp"), LogBlobRepository("blob")
out, big, files = InProcessMetadataRepository(name="out"), LogBlobRepository("big"), FileRepository({folder!r} + "/files", ".txt")
kube_done, func_done, logs = LogMetadataRepository("kd"), LogMetadataRepository("fd"), LogBlobRepository("logs")

@KubeFunctionTask("double", podman, None, """
kind: Pod
spec:
  containers:
    - name: leader
      image: any
      command: [{python}, {script}, launch, "{{{{task}}}}", "{{{{job}}}}", --force, --sync]
""", logs, kube_done, func_done)
async def double(job, inp, blob, out, big, files):
    print("working on", job)
    if job == "bad":
        await out.dump(job, 1)
        raise ValueError("as told")
    async with blob.open(job, "rb") as stream:
        data = await stream.read()
    await out.dump(job, {{"twice": (await inp.info(job))["n"] * 2, "bytes": len(data)}})
    async with big.open(job, "wb") as stream:
        await stream.write(data * 10)
    async with files.open(job, "w") as stream:
        await stream.write("by itself")
    if job == "huge":
        async with big.open(job, "wb") as stream:
            import os
            await stream.write(os.urandom(2_000_000))

double.link("inp", inp, is_input=True)
double.link("blob", blob, is_input=True)
double.link("out", out, is_output=True)
double.link("big", big, is_output=True)
double.link("files", files, is_output=True)
pipeline = Pipeline([double], Session(), log={folder!r} + "/log.db")
if __name__ == "__main__":
    main(pipeline)
'''


async def test_a_function_runs_in_its_pod_and_its_results_reach_the_log(tmp_path: Path) -> None:
    """By the same script: values of the engine travel there, what was written comes back, the trailer is not in the log."""
    import runpy

    async with toy_cluster({"PYTHONPATH": os.getcwd()}) as api:
        (tmp_path / "config.json").write_text(json.dumps(api.config()))
        script = tmp_path / "main.py"
        pods = {
            "config": str(tmp_path / "config.json"),
            "folder": str(tmp_path),
            "python": json.dumps(sys.executable),
        }
        script.write_text(SCRIPT.format(**pods, script=json.dumps(str(script))))
        has = runpy.run_path(str(script))
        async with has["pipeline"] as pipeline:
            for job, count in (("a", 21), ("bad", 0), ("huge", 1)):
                await has["inp"].dump(job, {"n": count})
                await pipeline.put("blob", job, b"xyz\n" * 100)
            await pipeline.run(timeout=100)
            assert await has["out"].info("a") == {"twice": 42, "bytes": 400}
            async with has["big"].open("a", "rb") as stream:
                assert await stream.read() == b"xyz\n" * 1000
            assert (tmp_path / "files" / "a.txt").read_text() == "by itself"
            assert await log_of(has["logs"], "a") == "working on a\n"
            assert (await has["func_done"].info("a"))["result"] == "success"
            assert (await has["kube_done"].info("a"))["node"] == "node1"
            bad = await has["func_done"].info("bad")
            assert (bad["result"], bad["exception"]) == ("exception", "ValueError('as told')")
            assert "ValueError: as told" in await log_of(has["logs"], "bad")
            assert "#datatask-result" not in await log_of(has["logs"], "bad")
            huge = await has["func_done"].info("huge")
            assert (
                "write large results to a store that the engine and the pod both reach" in huge["exception"]
            )


WITH_PARAMETERS = '''
import json, os, pathlib
from datatask import *

podman = PodManager("app", "space", json.loads(pathlib.Path({config!r}).read_text()))
factor, label = Parameter("factor", 2), Parameter("label", "plain")
inp, out = LogMetadataRepository("inp"), LogMetadataRepository("out")
logs, printed = LogBlobRepository("logs"), LogBlobRepository("printed")

@KubeFunctionTask("scale", podman, None, """
kind: Pod
spec:
  containers:
    - name: leader
      image: any
      env: [{{name: FROM_TEMPLATE, value: "{{{{ factor }}}}"}}]
      command: [{python}, {script}, launch, "{{{{task}}}}", "{{{{job}}}}", --force, --sync]
""", logs, LogMetadataRepository("kd"), LogMetadataRepository("fd"))
async def scale(job, inp, out, factor):
    await out.dump(job, {{"n": factor * await inp.info(job), "template": os.environ["FROM_TEMPLATE"], "label": label.value}})

scale.link("inp", inp, is_input=True)
scale.link("out", out, is_output=True)

say = KubeTask("say", podman, None, """
kind: Pod
spec:
  containers: [{{name: main, image: any, command: [sh, -c, 'echo "$1 $2"', sh, "{{{{ factor }}}}", {{{{ label | yaml }}}}]}}]
""", printed, LogMetadataRepository("said"))
say.link("inp", inp, is_input=True)
pipeline = Pipeline([scale, say], Session(), log={folder!r} + "/log.db", parameters=[factor, label])
if __name__ == "__main__":
    main(pipeline)
'''


async def test_parameters_reach_templates_and_functions_of_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have what the engine was given; in the pod the same file is loaded, with the same values."""
    import runpy

    async with toy_cluster({"PYTHONPATH": os.getcwd()}) as api:
        (tmp_path / "config.json").write_text(json.dumps(api.config()))
        script = tmp_path / "main.py"
        names = {
            "config": str(tmp_path / "config.json"),
            "folder": str(tmp_path),
            "python": json.dumps(sys.executable),
        }
        script.write_text(WITH_PARAMETERS.format(**names, script=json.dumps(str(script))))
        monkeypatch.setenv("DATATASK_SET_FACTOR", "7")
        monkeypatch.setenv("DATATASK_SET_LABEL", "it's: two")
        has = runpy.run_path(str(script))
        monkeypatch.delenv("DATATASK_SET_FACTOR")
        monkeypatch.delenv("DATATASK_SET_LABEL")  # pods know them from their manifests only
        async with has["pipeline"] as pipeline:
            await has["inp"].dump("a", 6)
            outcome = await pipeline.run(timeout=100)
            assert outcome.exit_code == 0, await log_of(has["logs"], "a")
            assert await has["out"].info("a") == {"n": 42, "template": "7", "label": "it's: two"}
            assert await log_of(has["printed"], "a") == "7 it's: two\n"


async def test_the_pod_of_a_second_attempt_takes_more(tmp_path: Path) -> None:
    """By `request` in its template; the quota counts what each attempt takes, and a pod that asks for more is refused."""
    template = """
kind: Pod
spec:
  containers:
    - name: main
      image: any
      command: [sh, -c, 'echo {{ request.mem }}; test {{ request.mem }} -gt 70000000']
      resources: {requests: {cpu: "{{ request.cpu }}", memory: "{{ request.mem }}"}}
"""
    async with toy_cluster() as api:
        quota = ResourceManager(Resources.parse(1, "1Gi"))
        manager = PodManager("app", "space", api.config())
        inp, logs, done = (
            LogMetadataRepository("inp"),
            LogBlobRepository("logs"),
            LogMetadataRepository("done"),
        )
        task = KubeTask(
            "grow",
            manager,
            quota,
            template,
            logs,
            done,
            job_resources=[Resources.parse("100m", "64Mi"), Resources.parse("200m", "128Mi")],
            retry=Retry(3, backoff=0.01),
        )
        task.link("inp", inp, is_input=True)
        async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipeline:
            await inp.dump("a", 1)
            assert (await pipeline.run(timeout=60)).exit_code == 0
            assert await log_of(logs, "a") == f"{128 << 20}\n"
        with History(tmp_path / "log.db") as history:
            asked = [event.resources for _, event in history.events(kind="LaunchDecided")]  # type: ignore[attr-defined]
            assert not list(history.events(kind="RunResized"))
    assert [one["mem"] // NANO for one in asked] == [64 << 20, 128 << 20]
    assert [one["cpu"] for one in asked] == [NANO // 10, NANO // 5]
