"""Which cluster, as whom; several of them; engines that are killed; managers by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from datatask import (
    CallerError,
    KubeTask,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    PodManager,
    Session,
    TemporaryError,
)
from datatask.adapters.execute.kube import connection
from datatask.adapters.execute.kube.connection import Cluster, Location, RefusedError
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from tests.kube.api.kubelet import Kubelet
from tests.kube.api.requests import User
from tests.kube.scripted import Hand, scripted
from tests.kube.toy import target, toy_cluster


def kubeconfig(folder: Path, user: dict[str, Any], *apis: Hand) -> Path:
    """Write a kubeconfig with a context c0, c1… for each server; return its path."""
    told = {
        "current-context": "c0",
        "clusters": [{"name": f"c{at}", "cluster": {"server": api.url}} for at, api in enumerate(apis)],
        "contexts": [
            {"name": f"c{at}", "context": {"cluster": f"c{at}", "user": "u"}} for at in range(len(apis))
        ],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(told))
    return path


def only(api: Hand, token: str) -> None:
    """Let nobody in without this token."""
    api.server.users = {token: User(token)}


async def test_two_clusters_in_one_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By context, from the file that KUBECONFIG names."""
    async with toy_cluster() as one, toy_cluster() as other:
        monkeypatch.setenv(
            "KUBECONFIG", f"{tmp_path}/absent:{kubeconfig(tmp_path, {'token': 't'}, one, other)}"
        )
        only(one, "t")
        only(other, "t")
        template = "kind: Pod\nspec: {containers: [{name: main, image: x, command: [echo, '{{ job }}']}]}"
        inp, tasks = LogMetadataRepository("inp"), []
        for name, context in (("first", None), ("second", "c1")):
            manager = PodManager("app", "space", context=context)
            logs, done = LogBlobRepository(f"{name}_logs"), LogMetadataRepository(f"{name}_done")
            task = KubeTask(name, manager, None, template, logs, done)
            task.link("inp", inp, is_input=True)
            tasks.append(task)
        async with Pipeline(tasks, Session(), log=tmp_path / "log.db") as pipeline:
            await inp.dump("a", {})
            outcome = await pipeline.run(timeout=100)
        assert outcome.exit_code == 0
        assert (one.counts["create pods"], other.counts["create pods"]) == (1, 1)


async def test_a_token_that_is_no_longer_taken_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its file, when the server turns us away."""
    monkeypatch.setattr(connection, "RELOAD_SECONDS", 0.0)
    async with scripted() as api:
        token = tmp_path / "token"
        token.write_text("old")
        reached = Cluster(Location(kubeconfig=str(kubeconfig(tmp_path, {"tokenFile": str(token)}, api))))
        await reached.attach()
        try:
            only(api, "old")
            await reached.ask("GET", "/version")
            only(api, "new")
            token.write_text("new")
            with pytest.raises(RefusedError):
                await reached.ask("GET", "/version")
            for _ in range(4):
                await reached.ask("GET", "/version")
        finally:
            await reached.detach()


async def test_a_plugin_gives_the_token_and_is_asked_again_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl's credential plugins."""
    plugin = tmp_path / "plugin"
    plugin.write_text(
        f"#!/bin/sh\necho x >>{tmp_path}/asked\nn=$(wc -l <{tmp_path}/asked)\n"
        'echo \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        '"status":{"token":"t\'$n\'","expirationTimestamp":"2020-01-01T00:00:00Z"}}\'\n'
    )
    plugin.chmod(0o755)
    monkeypatch.setattr(connection, "REFRESH_SECONDS", 0.0)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    async with scripted() as api:
        seen: list[str] = []
        api.rules.append(lambda request, _: seen.append(request.headers["Authorization"]))
        api.server.users = {token: User(token) for token in ("t2", "t3")}
        reached = Cluster(Location(kubeconfig=str(kubeconfig(tmp_path, user, api))))
        await reached.attach()
        await reached.ask("GET", "/version")
        await reached.ask("GET", "/version")
        await reached.detach()
    assert seen == ["Bearer t2", "Bearer t3"]


async def test_a_configuration_that_is_not_there_or_not_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where it was looked for."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CallerError, match=r"there is no configuration of a cluster in .*none"):
        await Cluster(Location()).attach()
    (tmp_path / "odd").write_text("clusters: []\n")
    with pytest.raises(CallerError, match="it cannot be used"):
        await Cluster(Location(kubeconfig=str(tmp_path / "odd"))).attach()
    async with scripted() as api:
        path = kubeconfig(tmp_path, {"token": "t"}, api)
        with pytest.raises(CallerError, match=r"it cannot be used \(context nowhere\)"):
            await Cluster(Location(kubeconfig=str(path), context="nowhere")).attach()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(CallerError, match="Service host/port is not set"):
        await Cluster(Location()).attach()


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever() -> None:
    """The library has no limits of its own."""
    async with scripted() as api:

        async def silent(request: web.Request, what: str) -> None:
            await asyncio.sleep(2)

        api.rules.append(silent)
        reached = Cluster(Location(config=api.config()))
        await reached.attach()
        with pytest.raises(RefusedError, match=r"no answer within 0\.1 s"):
            await reached.ask("GET", "/version", seconds=0.1)
        with pytest.raises(RefusedError, match="no answer within"):
            async with reached.stream("/x", {}, silent_seconds=0.1):
                pass
        await reached.detach()


async def test_pods_by_hand() -> None:
    """As pydatatask's PodManager has it: launch, query, logs (never the kubelet's own words), delete."""
    async with toy_cluster() as api:
        kubelet = api.server.node
        assert isinstance(kubelet, Kubelet)
        manager = PodManager("app", "space", api.config())
        with pytest.raises(CallerError, match="the cluster is not open"):
            _ = manager.v1
        manifest = {
            "kind": "Pod",
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "main", "image": "x", "command": ["echo", "hello"]}],
            },
        }
        await manager.launch("Job.1", "t", manifest)
        (pod,) = await manager.query(job="Job.1", task="t")
        assert await manager.query(job="other") == []
        async with asyncio.timeout(100):
            while (await manager.query())[0].status.phase != "Succeeded":
                await asyncio.sleep(0.02)
        assert await manager.logs(pod) == b"hello\n"
        kubelet.lose_log(pod.metadata.name)
        with pytest.raises(TemporaryError, match="is not there: unable to retrieve container logs"):
            await manager.logs(pod)
        await manager.delete(pod)
        await manager.delete(pod)
        assert await manager.query() == []
        await manager.close()


@pytest.mark.parametrize("namespace", ["", "Upper", "a/b"])
def test_a_namespace_that_is_none_is_refused(namespace: str) -> None:
    """Before anything is asked."""
    with pytest.raises(CallerError, match="is no namespace"):
        PodManager("app", namespace)


LOOKING = """
import json
from datatask import *
podman = PodManager({app!r}, "space", json.loads({config!r}))
inp, logs = LogMetadataRepository("inp"), LogBlobRepository("logs")
script = "echo begun; while ! test -e {folder}/go; do sleep 0.05; done; echo over"
task = KubeTask("t", podman, None, '''
kind: Pod
spec: {{containers: [{{name: main, image: x, command: [sh, -c, "{{{{ script }}}}"]}}]}}
''', logs, None, env={{"script": script}})
task.link("inp", inp, is_input=True)
pipeline = Pipeline([task], Session(), log="log.db")
"""


async def test_a_pods_log_is_printed_while_it_runs_and_kubectl_opens_the_shell(tmp_path: Path) -> None:
    """`cat TASK.logs JOB` follows; `enter` tells kubectl where."""
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    kubectl.chmod(0o755)
    async with toy_cluster() as api:
        script = LOOKING.format(app="app", config=json.dumps(api.config()), folder=tmp_path)
        (tmp_path / "pipeline.py").write_text(script)
        environment = {**os.environ, "PATH": f"{kubectl.parent}:{os.environ['PATH']}"}

        async def begin(*words: str) -> asyncio.subprocess.Process:
            command = [sys.executable, "-m", "datatask", "-p", "pipeline.py", *words]
            pipe = asyncio.subprocess.PIPE
            return await asyncio.create_subprocess_exec(
                *command, cwd=tmp_path, env=environment, stdout=pipe, stdin=pipe
            )

        await (await begin("inject", "t.inp", "a")).communicate(b"{}")
        engine = await begin("run", "--timeout", "60")
        name = (await api.pod("a"))["metadata"]["name"]
        while not _has_started(tmp_path / "log.db"):
            await asyncio.sleep(0.05)
        following = await begin("cat", "t.logs", "a")
        assert following.stdout is not None
        assert await following.stdout.readline() == b"begun\n"
        shell = await begin("enter", "t", "a")
        assert (await shell.communicate())[0].decode() == f"exec -i -n space {name} -c main -- sh\n"
        assert shell.returncode == 7
        (tmp_path / "go").touch()
        assert (await following.communicate())[0] == b"over\n"
        await engine.communicate()
        assert engine.returncode == 0


def _has_started(log: Path) -> bool:
    with LogReader(log) as reader:
        return any(True for _ in reader.read(filters=Filters(kinds=("RunStarted",))))


CRASHING = """
import json
from datatask import *
podman = PodManager({app!r}, {namespace!r}, json.loads({config!r}), kubeconfig={kubeconfig!r})
inp, done, logs = LogMetadataRepository("inp"), LogMetadataRepository("done"), LogBlobRepository("logs")
task = KubeTask("t", podman, None, '''
kind: Pod
spec: {{containers: [{{name: main, image: x, command: [sh, -c, "echo {{{{ job }}}} >>{folder}/starts; sleep 0.6; echo said {{{{ job }}}}"]}}]}}
''', logs, done, concurrency=6)
task.link("inp", inp, is_input=True)
pipeline = Pipeline([task], Session(), log="log.db")
"""
JOBS = 18


async def test_engines_that_are_killed_start_nothing_twice_and_lose_nothing(tmp_path: Path) -> None:
    """Each at another moment; the last one finds everything done."""
    app = f"crash{os.getpid()}"
    there = target()
    if there.is_real:
        pytest.skip("counts starts in a folder of this machine")
    script = CRASHING.format(
        app=app, config=json.dumps(there.config), namespace=there.namespace, kubeconfig=None, folder=tmp_path
    )
    (tmp_path / "pipeline.py").write_text(script)
    datatask = [sys.executable, "-m", "datatask", "-p", "pipeline.py"]

    starts = tmp_path / "starts"
    starts.touch()

    async def call(*words: str, kill_at: int | None = None) -> int:
        process = await asyncio.create_subprocess_exec(
            *datatask, *words, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        if kill_at is not None:
            while len(starts.read_text().split()) < kill_at:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        return process.returncode or 0

    jobs = "".join(json.dumps({"job": f"J.{number}", "n": number}) + "\n" for number in range(JOBS))
    (tmp_path / "jobs.jsonl").write_text(jobs)
    assert await call("inject", "t.inp", "--from", "jobs.jsonl") == 0
    for number in (3, 8, 15):
        assert await call("run", kill_at=number) == -signal.SIGKILL
    assert await call("run", "--timeout", "60") == 0
    started = starts.read_text().split()
    assert sorted(started) == sorted(f"J.{number}" for number in range(JOBS))
