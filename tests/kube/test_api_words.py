"""The API server for tests says what a real one said: recorded requests are sent to it, its answers compared word for word."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest

from tests.kube.api import Fault, Server, serve
from tests.kube.api.deleting import PODS, mark
from tests.kube.api.faults import too_many
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.requests import User
from tests.kube.recorded import RECORDINGS, exchange

SPEC = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox", "resources": {}}]}
NAMESPACES = BY_PATH["", "v1", "namespaces"]


class Cluster:
    """A server and a client's words to it."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def ask(
        self, method: str, path: str, body: Any = None, token: str = "admin", **headers: str
    ) -> tuple[int, Any, Any]:
        """Return status, body (JSON where it is) and headers of an answer."""
        data = None if body is None else json.dumps(body)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
        async with self.session.request(
            method, self.server.url + path, data=data, headers=headers
        ) as response:
            text = await response.text()
            is_json = response.content_type == "application/json" and "\n{" not in text
            return response.status, json.loads(text) if is_json and text else text, response.headers

    async def make(self, kind: str, name: str, where: str = "rec", **more: Any) -> dict[str, Any]:
        """Make an object in `rec` or another namespace; it must be taken."""
        body = {"metadata": {"name": name}, **more}
        code, told, _ = await self.ask("POST", f"/api/v1/namespaces/{where}/{kind}", body)
        assert code == 201, told
        return dict(told)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Cluster]:
    """Serve, with the namespace `rec` and pod `a` on a node."""
    async with serve() as server, aiohttp.ClientSession() as session:
        server.reader.future_seconds = 0.05
        server.namespace("rec")
        found = Cluster(server, session)
        pod = await found.make("pods", "a", spec=SPEC)
        status = {
            "phase": "Pending",
            "containerStatuses": [{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}],
        }
        server.storage.update(PODS, {**pod, "spec": {**pod["spec"], "nodeName": "n"}, "status": status})
        yield found


LEVEL = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}
SMALL = {"requests": {"cpu": "300m", "memory": "96Mi"}, "limits": {"cpu": "300m", "memory": "96Mi"}}
LEAST = {"limits": [{"type": "Container", "min": {"cpu": "200m", "memory": "64Mi"}}]}


async def arrange_amounts(cluster: Cluster, name: str) -> None:
    """Make the quotas, limit ranges, pods and nodes that a recording had before it."""
    server, room = cluster.server, {"cpu": Decimal(2), "memory": Decimal(1 << 33)}
    if name.startswith("podlevel"):
        hard = {"count/pods": "10", "limits.cpu": "4", "limits.memory": "2Gi"}
        hard |= {"requests.cpu": "2", "requests.memory": "1Gi"}
        await cluster.make("resourcequotas", "q", "rec-pl", spec={"hard": hard})
        await cluster.make("pods", "level", "rec-pl", spec={**SPEC, "resources": LEVEL})
    elif name == "refused-quota-no-limits":
        await cluster.make("resourcequotas", "q", "rec-limits", spec={"hard": {"limits.cpu": "1"}})
    elif name.startswith("refused-count-pods"):
        await cluster.make(
            "resourcequotas", "q", "rec-count", spec={"hard": {"count/pods": "1", "pods": "1"}}
        )
        pod = await cluster.make("pods", "one", "rec-count", spec=SPEC)
        if name.endswith("after-end"):
            server.storage.update(PODS, {**pod, "status": {"phase": "Succeeded"}})
    elif "limitrange-min" in name:
        await cluster.make("limitranges", "l", "rec-min2", spec=LEAST)
    elif name.startswith("resize"):
        server.writer.room = room
        main = {**SPEC["containers"][0], "resources": SMALL}  # type: ignore[dict-item]
        await cluster.make("pods", "resized", spec={**SPEC, "containers": [main]})
    elif name.startswith("name-taken"):
        pod = await cluster.make("pods", "same", "rec-idem", spec=SPEC)
        if name.endswith("terminating"):
            mark(server.storage, PODS, pod, 10)
        elif name.endswith("full"):
            await cluster.make("resourcequotas", "q", "rec-idem", spec={"hard": {"count/pods": "1"}})


async def arrange(cluster: Cluster, name: str) -> None:
    """Make what a recording had before it."""
    server = cluster.server
    where = exchange(name)[0]["path"].partition("/namespaces/")[2].partition("/")[0]
    if where and server.storage.find(NAMESPACES, "", where) is None and where.startswith("rec-"):
        server.namespace(where)
        for mode in ("enforce", "warn") if where in ("rec-restricted", "rec-warn") else ():
            if (mode == "warn") == (where == "rec-warn"):
                found = server.storage.get(NAMESPACES, "", where)
                labels = {**found["metadata"]["labels"], f"pod-security.kubernetes.io/{mode}": "restricted"}
                metadata = {**found["metadata"], "labels": labels}
                server.storage.update(NAMESPACES, {**found, "metadata": metadata})
    await arrange_amounts(cluster, name)
    if name == "quota-exceeded":
        await cluster.make("resourcequotas", "q", spec={"hard": {"requests.memory": "64Mi"}})
        server.storage.remove(PODS, server.pods()[0])
    elif name == "quota-must-specify":
        await cluster.make("resourcequotas", "q", spec={"hard": {"requests.memory": "64Mi"}})
    elif name == "limitrange-exceeded":
        rule = {"type": "Container", "max": {"memory": "64Mi"}, "default": {"memory": "32Mi"}}
        await cluster.make("limitranges", "l", spec={"limits": [rule]})
    elif name == "pod-create-in-terminating-ns":
        mark(server.storage, NAMESPACES, server.storage.get(NAMESPACES, "", "rec"), None)
    elif name == "list-future-rv":
        server.storage.version = 546
    elif name == "pod-apply":
        body = {"metadata": {"labels": {"k": "v"}}}
        how = {"Content-Type": "application/merge-patch+json", "User-Agent": "Python/3"}
        assert (await cluster.ask("PATCH", "/api/v1/namespaces/rec/pods/a", body, **how))[0] == 200
    elif name == "too-many-requests":
        server.faults.append(too_many())
    elif name == "pod-exec-without-upgrade":
        await cluster.make("pods", "p1", spec=SPEC)


REFUSALS = sorted(
    path.stem
    for path in RECORDINGS.glob("*.json")
    if isinstance(told := json.loads(path.read_text()), dict) and told["response"].get("status", 0) >= 400
)


def plain(told: Any) -> Any:
    """Return an answer without what is another one each time: uids, and the parts that are Go's own."""
    if isinstance(told, dict):
        return {key: plain(value) for key, value in told.items()}
    if isinstance(told, list):
        return [plain(one) for one in told]
    if not isinstance(told, str):
        return told
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UID", told)
    return re.sub(r"invalid character '[^']*'", "invalid character", text).partition("\n@@")[0]


@pytest.mark.parametrize("name", REFUSALS)
async def test_refusals_word_for_word(name: str) -> None:
    """Status, body, Retry-After."""
    async with serving() as cluster:
        asked, wanted = exchange(name)
        await arrange(cluster, name)
        token = {
            "unauthorized": "wrong",
            "rbac-forbidden": "limited",
            "rbac-create-forbidden": "limited",
        }.get(name, "admin")
        headers = {key: value for key, value in asked["headers"].items() if key in ("Accept", "Content-Type")}
        code, told, more = await cluster.ask(asked["method"], asked["path"], asked["body"], token, **headers)
        assert code == wanted["status"]
        assert plain(told) == plain(wanted.get("json", wanted.get("text")))
        assert more.get("Retry-After") == wanted["headers"].get("Retry-After")


def shape(found: Any) -> Any:
    """Return an object's keys, all the way down."""
    if isinstance(found, dict):
        return {key: shape(value) for key, value in found.items() if key != "managedFields"}
    return [shape(one) for one in found] if isinstance(found, list) else type(found).__name__


@pytest.mark.parametrize(
    "name", ["pod-create", "pod-create-generatename", "limitrange-defaults", "ns-create"]
)
async def test_what_is_made_has_the_recorded_shape(name: str) -> None:
    """Defaults filled in, value for value where they are no times and ids."""
    async with serving() as cluster:
        asked, wanted = exchange(name)
        cluster.server.storage.remove(PODS, cluster.server.pods()[0])
        if name == "limitrange-defaults":
            rule = {"type": "Container", "max": {"memory": "64Mi"}, "default": {"memory": "32Mi"}}
            await cluster.make("limitranges", "l", spec={"limits": [rule]})
        path = asked["path"]
        if name == "ns-create":
            cluster.server.storage.remove(NAMESPACES, cluster.server.storage.get(NAMESPACES, "", "rec"))
        code, told, _ = await cluster.ask(asked["method"], path, asked["body"])
        assert (code, shape(told)) == (wanted["status"], shape(wanted["json"]))
        assert told.get("spec") == wanted["json"].get("spec")
        assert told["metadata"].get("annotations") == wanted["json"]["metadata"].get("annotations")


async def test_rights_are_asked_for() -> None:
    """A user has what it is given, and the review says so."""
    async with serving() as cluster:
        cluster.server.users["robot"] = User("robot", {"list pods"})
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        for verb, allowed in (("list", True), ("create", False)):
            body = {"spec": {"resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "rec"}}}
            code, told, _ = await cluster.ask("POST", path, body, "robot")
            assert (code, told["status"]["allowed"]) == (201, allowed)
        assert (await cluster.ask("GET", "/api/v1/namespaces/rec/pods", token="robot"))[0] == 200
        code, told, _ = await cluster.ask("DELETE", "/api/v1/namespaces/rec/pods/a", token="robot")
        assert code == 403
        assert 'User "robot" cannot delete resource "pods"' in told["message"]


async def test_a_webhook_denies() -> None:
    """By its own words."""
    async with serving() as cluster:
        cluster.server.admission.webhooks["policy.example.org"] = lambda pod: "no images from there"
        code, told, _ = await cluster.ask(
            "POST", "/api/v1/namespaces/rec/pods", {"metadata": {"name": "b"}, "spec": SPEC}
        )
        assert code == 403
        assert (
            told["message"]
            == 'admission webhook "policy.example.org" denied the request: no images from there'
        )


async def test_faults_come_as_often_as_they_are_told() -> None:
    """A refusal, an answer that is lost after the deed, a request that never arrives, a slow one."""
    async with serving() as cluster:
        path, body = "/api/v1/namespaces/rec/pods", {"metadata": {"name": "b"}, "spec": SPEC}
        cluster.server.faults.append(
            Fault("create", times=2, code=500, message="etcdserver: request timed out")
        )
        for wanted in (500, 500):
            code, told, _ = await cluster.ask("POST", path, body)
            assert (code, told["reason"]) == (wanted, "InternalError")
        cluster.server.faults.append(Fault("create", cut="before"))
        with pytest.raises(aiohttp.ClientError):
            await cluster.ask("POST", path, body)
        assert len(cluster.server.pods()) == 1
        cluster.server.faults.append(Fault("create", cut="after"))
        with pytest.raises(aiohttp.ClientError):
            await cluster.ask("POST", path, body)
        assert len(cluster.server.pods()) == 2
        assert (await cluster.ask("POST", path, body))[1]["reason"] == "AlreadyExists"


async def test_discovery() -> None:
    """Versions and resources, as kubectl asks for them."""
    async with serving() as cluster:
        assert (await cluster.ask("GET", "/version"))[1]["gitVersion"] == "v1.36.2"
        assert (await cluster.ask("GET", "/readyz"))[1] == "ok"
        assert (await cluster.ask("GET", "/api"))[1]["versions"] == ["v1"]
        listed = (await cluster.ask("GET", "/api/v1"))[1]["resources"]
        assert {"pods", "events", "resourcequotas"} <= {one["name"] for one in listed}
        groups = (await cluster.ask("GET", "/apis"))[1]["groups"]
        assert "policy" in [one["name"] for one in groups]
        assert (await cluster.ask("GET", "/apis/authorization.k8s.io/v1"))[1]["resources"][0]["verbs"] == [
            "create"
        ]
        assert (await cluster.ask("GET", "/apis/nobody/v1"))[0] == 404
