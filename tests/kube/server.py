"""The fake cluster in a process of its own, for measuring: `python -m tests.kube.server --port 0 --kubelet null`.

Out: one line of JSON, `{"url": ..., "token": ...}`, then nothing until TERM. `GET /fake/ends` tells when the null kubelet told
each pod's end (seconds since 1970), `POST /fake/end` lets all that run end, and `GET /fake/counts` what was asked how often.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys

from aiohttp import web

from tests.kube.fake.cluster import FakeCluster
from tests.kube.fake.null import NullKubelet


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.kube.server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kubelet", choices=("toy", "null", "none"), default="null")
    parser.add_argument("--namespace", action="append", default=[])
    parser.add_argument(
        "--run-seconds", type=float, default=0.0, help="of the null kubelet; -1: until /fake/end"
    )
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.02, help="of the toy kubelet: its second, in seconds")
    parser.add_argument("--ends-per-second", type=float, default=200.0, help="of /fake/end")
    return parser.parse_args(arguments)


def with_controls(cluster: FakeCluster, ends_per_second: float) -> None:
    """Let the server answer /fake/... besides."""
    answer = cluster.server.handle

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        kubelet = cluster.kubelet
        match request.path:
            case "/fake/counts":
                return web.json_response(dict(cluster.counts))
            case "/fake/ends" if isinstance(kubelet, NullKubelet):
                return web.json_response(kubelet.ended_at)
            case "/fake/end" if isinstance(kubelet, NullKubelet):
                await end_all(cluster, kubelet, ends_per_second)
                return web.json_response(kubelet.ended_at)
        return await answer(request)

    cluster.server.handle = handle  # type: ignore[method-assign]


async def end_all(cluster: FakeCluster, kubelet: NullKubelet, per_second: float) -> None:
    """End all running pods, evenly over time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    running = [one for one in cluster.store.all("pods") if one["status"]["phase"] == "Running"]
    for count, pod in enumerate(running):
        await asyncio.sleep(max(0.0, began + count / per_second - loop.time()))
        metadata = pod["metadata"]
        if cluster.pod(metadata["name"], metadata["namespace"]) is not None:
            kubelet.end(metadata["name"], kubelet.exit_code, namespace=metadata["namespace"])


async def serve(options: argparse.Namespace) -> None:
    """Serve until cancelled."""
    kubelet = None if options.kubelet == "none" else options.kubelet
    cluster = FakeCluster(kubelet, namespaces=tuple(options.namespace), pace=options.pace)
    if isinstance(cluster.kubelet, NullKubelet):
        cluster.kubelet.run_seconds, cluster.kubelet.exit_code = options.run_seconds, options.exit_code
    with_controls(cluster, options.ends_per_second)
    await cluster.start(options.port)
    print(json.dumps({"url": cluster.url, "token": "admin"}), flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await cluster.stop()


async def main(arguments: list[str]) -> None:
    """Serve until TERM or INT."""
    serving = asyncio.create_task(serve(parse(arguments)))
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
