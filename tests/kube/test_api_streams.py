"""The API server for tests streams as a real one: logs that are followed, commands in containers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubernetes_asyncio import client, watch
from kubernetes_asyncio.stream import WsApiClient

from tests.kube.api.kubelet import running
from tests.kube.api_kit import NS, configuration, connected, refused


async def test_logs_are_followed_to_their_end() -> None:
    """And read again in parts: the last lines, with times, from a time on, up to so many bytes."""
    async with connected() as to, running(to.server, pace=0.01):
        await refused(to.v1.read_namespaced_pod_log("nobody", NS), 404)
        script = "for i in 1 2 3; do echo line $i; sleep .1; done; printf end"
        await to.make("a", command=["sh", "-c", script])
        async with asyncio.timeout(100):
            while (await to.v1.read_namespaced_pod("a", NS)).status.phase == "Pending":
                await asyncio.sleep(0.01)
            async with watch.Watch() as watching:
                lines = [
                    line
                    async for line in watching.stream(to.v1.read_namespaced_pod_log, "a", NS, follow=True)
                ]
        assert [line.rstrip("\n") for line in lines] == ["line 1", "line 2", "line 3", "end"]

        async def read(**query: Any) -> str:
            return str(await to.v1.read_namespaced_pod_log("a", NS, **query))

        assert await read(tail_lines=2) == "line 3\nend"
        assert await read(limit_bytes=9) == "line 1\nli"
        stamped = [line.partition(" ") for line in (await read(timestamps=True)).splitlines()]
        assert [text for _, _, text in stamped] == ["line 1", "line 2", "line 3", "end"]
        url = f"{to.server.url}/api/v1/namespaces/{NS}/pods/a/log"
        query = {"sinceTime": stamped[1][0]}
        async with to.api.rest_client.pool_manager.get(
            url, params=query, headers={"Authorization": "Bearer admin"}
        ) as response:
            assert (await response.text()).endswith("line 2\nline 3\nend")  # by whole seconds
        await refused(to.v1.read_namespaced_pod_log("a", NS, previous=True), 400)
        await refused(to.v1.read_namespaced_pod_log("a", NS, container="zz"), 400)


async def test_commands_in_a_container() -> None:
    """Their output, input and exit code; none in a pod that is over or not there."""
    async with connected() as to, running(to.server, pace=0.01):
        await to.make("a", command=["sleep", "60"])
        await to.make("over", command=["true"])
        async with asyncio.timeout(100):
            while [pod["status"]["phase"] for pod in to.server.pods(NS)] != ["Running", "Succeeded"]:
                await asyncio.sleep(0.01)
        how = {"stderr": True, "stdout": True, "stdin": False, "tty": False}
        async with WsApiClient(configuration(to.server)) as sockets:
            v1: Any = client.CoreV1Api(sockets)
            said = await v1.connect_get_namespaced_pod_exec(
                "a", NS, command=["sh", "-c", "echo hi; echo err >&2"], **how
            )
            assert sorted(said.split()) == ["err", "hi"]
            asking = v1.connect_get_namespaced_pod_exec(
                "a",
                NS,
                command=["sh", "-c", "read x; exit $x"],
                **{**how, "stdin": True},
                _preload_content=False,
            )
            code = None
            async with asking if not asyncio.iscoroutine(asking) else await asking as socket:
                await socket.send_bytes(b"\x007\n")
                async for message in socket:
                    if message.data and message.data[0] == 3:
                        code = sockets.parse_error_data(message.data[1:])
            assert code == 7
            for name in ("over", "nobody"):
                with pytest.raises(Exception, match=r"Invalid response status|500|404"):
                    await v1.connect_get_namespaced_pod_exec(name, NS, command=["true"], **how)
