"""The kubelets of the API server for tests: pods' lives as they were recorded, processes that do not outlive them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kube import recorded
from tests.kube.api import Server, serve
from tests.kube.api.deleting import PODS
from tests.kube.api.kubelet import Kubelet, running
from tests.kube.api.null_kubelet import running_null
from tests.kube.api.player import lives
from tests.kube.api.storage import Change

NS = "space"


class Node:
    """A server with a kubelet, and all that was told of its pods."""

    def __init__(self, server: Server, kubelet: Kubelet, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.kubelet = kubelet
        self.session = session
        self.told: list[Change] = []
        server.storage.table(PODS).listeners.append(self.told.append)

    async def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Return the answer's JSON."""
        headers = {"Authorization": "Bearer admin", "Content-Type": kind}
        url = f"{self.server.url}/api/v1/namespaces/{NS}/{path}"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            assert response.status < 300, await response.text()
            return (
                await response.json()
                if response.content_type == "application/json"
                else await response.text()
            )

    async def make(
        self, name: str, script: str = "true", *, main: dict[str, Any] | None = None, **spec: Any
    ) -> None:
        """Make a pod that runs a script."""
        container = {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **(main or {})}
        spec = {"restartPolicy": "Never", "containers": [container], **spec}
        await self.ask("POST", "pods", {"metadata": {"name": name}, "spec": spec})

    async def until(self, name: str, what: Any) -> dict[str, Any]:
        """Wait until something is so of a pod's status (or it is gone, for None); return the pod as it was told last."""
        async with asyncio.timeout(100):
            while True:
                told = [change for change in self.told if change.found["metadata"]["name"] == name]
                if told and (told[-1].type == "DELETED" if what is None else what(told[-1].found["status"])):
                    return told[-1].found
                await asyncio.sleep(0.005)

    async def end(self, name: str) -> dict[str, Any]:
        """Wait for a pod's end; return its status."""
        return dict((await self.until(name, lambda told: told["phase"] in ("Succeeded", "Failed")))["status"])

    def course(self, name: str) -> list[tuple[str, ...]]:
        """Return the steps of a pod's life, those that say nothing new left out."""
        changes = [change for change in self.told if change.found["metadata"]["name"] == name]
        return course([(change.type, change.found) for change in changes])

    async def events(self) -> list[str]:
        """Return the reasons of events."""
        return [one["reason"] for one in (await self.ask("GET", "events"))["items"]]


def course(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Return what a client sees of a life: phase, reason, the main container's state, whether it shall go."""
    steps: list[tuple[str, ...]] = []
    for kind, pod in events:
        status = pod["status"]
        (state,) = [one["state"] for one in status.get("containerStatuses") or ()][:1] or [{}]
        what = next(iter(state), "")
        going = "going" if pod["metadata"].get("deletionTimestamp") else ""
        phase = (
            "Running" if what == "running" else status["phase"]
        )  # the recording has one that was told in between
        step = (kind, phase, status.get("reason", ""), what, going)
        if not steps or steps[-1] != step:
            steps.append(step)
    return steps


@contextlib.asynccontextmanager
async def node(**how: Any) -> AsyncIterator[Node]:
    """Serve with a quick kubelet."""
    how = {"pace": 0.005, "backoff": 0.05, **how}
    async with serve() as server, aiohttp.ClientSession() as session, running(server, **how) as kubelet:
        server.namespace(NS)
        yield Node(server, kubelet, session)


def state(status: dict[str, Any], at: int = 0) -> dict[str, Any]:
    """Return how a container ended."""
    return dict(status["containerStatuses"][at]["state"]["terminated"])


BAD = {"command": ["/no/such"]}
ABSENT = {"image": "localhost/absent:1"}
CONFIG = {"envFrom": [{"configMapRef": {"name": "absent"}}]}


@pytest.mark.parametrize(
    ("recorded_as", "script", "main", "spec"),
    [
        ("a", "echo hello", {}, {}),
        ("exit3", "exit 3", {}, {}),
        ("badcommand", "", BAD, {}),
        ("deadline", "sleep 60", {}, {"activeDeadlineSeconds": 1}),
    ],
)
async def test_lives_take_the_recorded_steps(
    recorded_as: str, script: str, main: dict[str, Any], spec: dict[str, Any]
) -> None:
    """From ADDED to the end, in the same order."""
    events = [(event["type"], event["object"]) for event in lives(recorded.events())[recorded_as]]
    wanted = [step for step in course(events) if step[4] == "" and step[0] != "DELETED"]
    async with node() as there:
        await there.make("x", script, main=main, **spec)
        status = await there.end("x")
        assert there.course("x") == wanted
        last = next(pod["status"] for _, pod in events if pod["status"]["phase"] in ("Succeeded", "Failed"))
        same = ("exitCode", "reason")
        assert [state(status)[key] for key in same] == [state(last)[key] for key in same]
        assert status.get("message") == last.get("message")
        assert [one["type"] for one in status["conditions"]] == [one["type"] for one in last["conditions"]]
        for kind in ("Ready", "Initialized", "PodReadyToStartContainers"):
            mine, real = (
                next(one for one in told["conditions"] if one["type"] == kind) for told in (status, last)
            )
            assert (mine["status"], mine.get("reason")) == (real["status"], real.get("reason"))


@pytest.mark.parametrize(
    ("main", "spec", "reasons", "event"),
    [
        (ABSENT, {}, ["ErrImagePull", "ImagePullBackOff"], "BackOff"),
        (CONFIG, {}, ["CreateContainerConfigError"], "Failed"),
        ({}, {"nodeSelector": {"nobody": "has"}}, ["Unschedulable"], "FailedScheduling"),
        ({"resources": {"requests": {"cpu": "1000"}}}, {}, ["Unschedulable"], "FailedScheduling"),
        ({}, {"schedulingGates": [{"name": "example.org/wait"}]}, ["SchedulingGated"], ""),
    ],
)
async def test_pods_that_do_not_start(
    main: dict[str, Any], spec: dict[str, Any], reasons: list[str], event: str
) -> None:
    """They stay Pending and say why; deleted, they are gone."""

    def why(status: dict[str, Any]) -> str:
        told = [
            one["state"].get("waiting", {}).get("reason") for one in status.get("containerStatuses") or ()
        ]
        told += [one.get("reason") for one in status.get("conditions") or ()]
        return next((one for one in told if one in reasons), "")

    async with node() as there:
        await there.make("x", main=main, **spec)
        for reason in reasons:
            pod = await there.until("x", lambda status, reason=reason: why(status) == reason)
            assert pod["status"]["phase"] == "Pending"
        assert not event or event in await there.events()
        await there.ask("DELETE", "pods/x")
        await there.until("x", None)


async def test_a_pod_waits_for_room() -> None:
    """And starts when another is over."""
    async with node(cpu="1") as there:
        request = {"resources": {"requests": {"cpu": "600m"}}}
        await there.make("first", "sleep .2", main=request)
        await there.make("second", main=request)
        told = await there.until("second", lambda status: status.get("conditions"))
        assert "1 Insufficient cpu" in told["status"]["conditions"][0]["message"]
        assert (await there.end("second"))["phase"] == "Succeeded"


async def test_memory_and_disk_have_limits() -> None:
    """OOMKilled; a child that is killed while the first process succeeds; Evicted."""
    eat = f"exec {sys.executable} -c 'x = bytearray(300_000_000); import time; time.sleep(30)'"
    memory = {"resources": {"limits": {"memory": "100Mi"}}}
    async with node() as there:
        await there.make("oom", eat, main=memory)
        await there.make("child", f"({eat}); true", main=memory)
        await there.make(
            "disk",
            "head -c 2000000 /dev/zero > big; sleep 30",
            main={"resources": {"limits": {"ephemeral-storage": "1Mi"}}},
        )
        oom, child, disk = [await there.end(name) for name in ("oom", "child", "disk")]
    assert (oom["phase"], state(oom)["exitCode"], state(oom)["reason"]) == ("Failed", 137, "OOMKilled")
    assert (child["phase"], state(child)["exitCode"], state(child)["reason"]) == ("Succeeded", 0, "OOMKilled")
    assert (disk["phase"], disk["reason"]) == ("Failed", "Evicted")
    assert "exceeds the total limit of containers 1Mi" in disk["message"]


async def test_deletion_gives_time_and_then_kills() -> None:
    """TERM handled: Succeeded, then gone; ignored: 137, then gone; by force: gone, still Running."""
    async with node() as there:
        for name, script in (
            ("handles", "trap 'exit 0' TERM; while :; do sleep .02; done"),
            ("ignores", "trap '' TERM; while :; do sleep .02; done"),
            ("forced", "sleep 60"),
        ):
            await there.make(name, script, terminationGracePeriodSeconds=1)
            await there.until(name, lambda status: status["phase"] == "Running")
        await asyncio.sleep(0.1)
        for name in ("handles", "ignores"):
            await there.ask("DELETE", f"pods/{name}")
        await there.ask("DELETE", "pods/forced?gracePeriodSeconds=0")
        ends = {name: (await there.until(name, None))["status"] for name in ("handles", "ignores", "forced")}
    assert {name: told["phase"] for name, told in ends.items()} == {
        "handles": "Succeeded",
        "ignores": "Failed",
        "forced": "Running",
    }
    assert state(ends["ignores"])["exitCode"] == 137
    assert there.course("handles")[-3:] == [
        ("MODIFIED", "Running", "", "running", "going"),
        ("MODIFIED", "Succeeded", "", "terminated", "going"),
        ("DELETED", "Succeeded", "", "terminated", "going"),
    ]


async def test_containers_of_one_pod() -> None:
    """Init containers come first, one after the other; the others together; each has its log, environment and last words."""
    async with node() as there:
        await there.ask("POST", "configmaps", {"metadata": {"name": "c"}, "data": {"word": "from the map"}})
        env = [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)2"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "word"}}},
        ]
        image = {"image": "busybox"}
        inits = [
            {"name": name, "command": ["sh", "-c", f"echo {name}; sleep .05"], **image}
            for name in ("i1", "i2")
        ]
        last = {
            "name": "side",
            "command": ["sh", "-c", "printf 'last words' > /dev/termination-log; exit 4"],
            **image,
        }
        loud = {"name": "loud", "command": ["sh", "-c", "echo help; exit 1"], **image}
        loud["terminationMessagePolicy"] = "FallbackToLogsOnError"
        main = {"name": "main", "command": ["sh", "-c", "echo $A $B $NAME $WORD"], "env": env, **image}
        await there.make("x", initContainers=inits, containers=[main, last, loud])
        status = await there.end("x")
        assert [state(status, at).get("message") for at in (0, 1, 2)] == [None, "last words", "help\n"]
        assert [state(status, at)["exitCode"] for at in (0, 1, 2)] == [0, 4, 1]
        ended = [one["state"]["terminated"]["exitCode"] for one in status["initContainerStatuses"]]
        assert (status["phase"], ended) == ("Failed", [0, 0])
        assert await there.ask("GET", "pods/x/log?container=main") == "1 12 x from the map\n"
        assert await there.ask("GET", "pods/x/log?container=i2") == "i2\n"


async def test_init_containers_come_one_after_the_other_and_one_that_fails_ends_the_pod(
    tmp_path: Path,
) -> None:
    """What comes after it is never begun; without `Never` it is tried again."""
    order = tmp_path / "order"

    def one(name: str, then: str = "true") -> dict[str, Any]:
        script = f"echo {name} begins >> {order}; sleep .05; echo {name} ends >> {order}; {then}"
        return {"name": name, "image": "busybox", "command": ["sh", "-c", script]}

    async with node() as there:
        await there.make("good", initContainers=[one("i1"), one("i2")], containers=[one("main")])
        assert (await there.end("good"))["phase"] == "Succeeded"
        steps = [f"{name} {what}" for name in ("i1", "i2", "main") for what in ("begins", "ends")]
        assert order.read_text().splitlines() == steps
        order.unlink()
        await there.make("bad", initContainers=[one("i1", "exit 7"), one("i2")], containers=[one("main")])
        status = await there.end("bad")
        assert (status["phase"], order.read_text().split()[::2]) == ("Failed", ["i1", "i1"])
        assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
        assert status["initContainerStatuses"][1]["state"].keys() == {"waiting"}
        assert status["containerStatuses"][0]["state"].keys() == {"waiting"}
        again = one("i1", f"test $(grep -c ends {order}) -ge 3")
        await there.make("again", initContainers=[again], containers=[one("main")], restartPolicy="OnFailure")
        assert (await there.end("again"))["phase"] == "Succeeded"


async def test_crashing_containers_are_started_again() -> None:
    """At once first, later after a while; the log before is kept."""
    async with node() as there:
        await there.make("x", "echo once; exit 1", restartPolicy="Always")
        pod = await there.until(
            "x",
            lambda told: (
                "CrashLoopBackOff" in str(told["containerStatuses"]) if "containerStatuses" in told else False
            ),
        )
        assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
        assert await there.ask("GET", "pods/x/log?previous=true") == "once\n"
        await there.make("y", "test -e done || { touch done; exit 1; }", restartPolicy="OnFailure")
        status = await there.end("y")
        assert (status["phase"], status["containerStatuses"][0]["restartCount"]) == ("Succeeded", 1)


@pytest.mark.parametrize(
    ("own", "codes", "wanted"),
    [
        ({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}, (42, 0), "Succeeded"),
        ({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [3]}}]}, (42, 3), "Failed"),
        ({"restartPolicy": "OnFailure"}, (1, 0), "Succeeded"),
    ],
)  # fmt: skip
async def test_a_containers_own_policy_and_rules_start_it_again(
    own: dict[str, Any], codes: tuple[int, int], wanted: str
) -> None:
    """In a pod that never does; the attempt before can be read while the last one runs, and not after."""
    script = "test -e again || { touch again; echo one; exit %d; }; echo two; while ! test -e end; do sleep 0.02; done; exit %d"
    async with node() as there:
        await there.make("x", script % codes, main={"restartPolicy": "Never", **own})

        def runs_again(told: dict[str, Any]) -> bool:
            (main,) = told.get("containerStatuses") or [{"restartCount": 0, "state": {}}]
            return bool(main["restartCount"]) and "running" in main["state"]

        pod = await there.until("x", runs_again)
        assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == codes[0]
        assert await there.ask("GET", "pods/x/log?previous=true") == "one\n"
        (life,) = there.kubelet.lives.values()
        (there.kubelet.folder / life.uid / "main" / "end").touch()
        status = await there.end("x")
        assert (status["phase"], state(status)["exitCode"]) == (wanted, codes[1])
        assert await there.ask("GET", "pods/x/log") == "two\n"
        gone = "unable to retrieve container logs for "
        assert (await there.ask("GET", "pods/x/log?previous=true&timestamps=true")).startswith(gone)
        there.kubelet.lose_log("x")
        assert (await there.ask("GET", "pods/x/log?timestamps=true")).startswith(gone)


async def test_a_node_is_lost() -> None:
    """Its pods are marked and stay, until somebody collects them; evicted ones say so."""
    async with node() as there:
        for name in ("evicted", "lost"):
            await there.make(name, "sleep 60")
            await there.until(name, lambda status: status["phase"] == "Running")
        there.kubelet.evict("evicted")
        assert (await there.end("evicted"))["reason"] == "Evicted"
        await there.kubelet.lose()
        pod = await there.until("lost", lambda status: status.get("reason") == "NodeLost")
        assert "DeletionByTaintManager" in [one.get("reason") for one in pod["status"]["conditions"]]
        there.kubelet.collect()
        assert (await there.until("lost", None))["status"]["phase"] == "Failed"


async def test_no_process_outlives_its_pod_or_the_kubelet(tmp_path: Path) -> None:
    """Children and grandchildren are killed, files are removed."""
    async with node() as there:
        for name in ("one", "two"):
            script = f"echo $$$$ > {tmp_path}/{name}; (sleep 60 & echo $! > {tmp_path}/{name}-child; wait)"
            await there.make(name, script)
        async with asyncio.timeout(100):
            while not all(
                (tmp_path / name).exists() and (tmp_path / name).read_text()
                for name in ("one-child", "two-child")
            ):
                await asyncio.sleep(0.01)
        await there.ask("DELETE", "pods/one?gracePeriodSeconds=0")
        folder = there.kubelet.folder
        assert folder.exists()
    assert not folder.exists()
    for path in tmp_path.iterdir():
        with contextlib.suppress(FileNotFoundError):
            assert Path(f"/proc/{int(path.read_text())}/stat").read_text().split()[2] == "Z"


async def test_the_null_kubelet_runs_many_pods_cheaply() -> None:
    """Each runs and ends as told, is removed when deleted; CPU for a whole life stays small."""
    count = 200
    async with (
        serve() as server,
        aiohttp.ClientSession() as session,
        running_null(server, run_seconds=None) as kubelet,
    ):
        server.namespace(NS)
        headers = {"Authorization": "Bearer admin"}
        url = f"{server.url}/api/v1/namespaces/{NS}/pods"
        spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}]}
        began = time.process_time()
        for at in range(count):
            async with session.post(
                url, json={"metadata": {"name": f"p{at}"}, "spec": spec}, headers=headers
            ) as made:
                assert made.status == 201
        async with asyncio.timeout(100):
            while {pod["status"]["phase"] for pod in server.pods()} != {"Running"}:
                await asyncio.sleep(0.01)
            assert kubelet.end() == count
            while len(kubelet.ends) < count:
                await asyncio.sleep(0.01)
        spent = time.process_time() - began
        assert spent / count < 0.02  # beside the client's share; some 2 ms on a quiet machine
        async with session.get(f"{url}/p0/log", headers=headers) as response:
            assert (response.status, await response.read()) == (200, b"")
        async with session.delete(f"{url}/p0", headers=headers) as response:
            assert response.status == 200
        assert len(server.pods()) == count - 1


async def test_the_server_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """It prints where its kubeconfig is, and ends by TERM."""
    command = [sys.executable, "-m", "tests.kube.api", "--kubelet", "null", "--namespace", NS]
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=root, stdout=asyncio.subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    path = Path((await process.stdout.readline()).decode().strip())
    assert '"current-context": "admin"' in path.read_text()
    process.terminate()
    assert await process.wait() == 0
    assert not path.exists()
