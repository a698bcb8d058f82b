"""Pods through the API server for tests: starts a second, memory a live pod, and how soon an end is in the log.

    python -m benchmarks.kube [--pods 5000]

A whole pipeline, logged with full durability, against `tests/kube/api` with its null kubelet in a process of its own: all pods
are created and run, and then end, 200 a second. A start is over when `RunStarted` is in the state. `ending_ms` is the time from
the moment at which the server stores a pod's end to that at which `RunEnded` is durable; `server_ms` the part of it until a
third process, which only reads a watch, has the event; `engine_ms` the rest. `memory_kb` is what this process grows by for
each live pod, its run and its place in the log included; `server_cpu_ms` what the server itself spends on a start, and
`quiet_requests` what it is asked in five seconds in which nothing happens to all these pods.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PODS = 5000
ENDS_A_SECOND = 200
QUIET_SECONDS = 5
TEMPLATE = """
apiVersion: v1
kind: Pod
metadata: {labels: {team: bench}}
spec:
  containers:
    - name: main
      image: busybox
      command: [sh, -c, "echo {{ job }}"]
      resources: {requests: {cpu: 100m, memory: 64Mi}}
"""


def memory_kb() -> int:
    """Return this process's resident memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


class Other:
    """A process beside this one that is told words, and answers each with a line of JSON."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "benchmarks.kube", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self.answer()

    def say(self, word: str) -> None:
        """Say a word."""
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for the next answer."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    async def ask(self, word: str) -> Any:
        """Say a word, and return the answer."""
        self.say(word)
        return await asyncio.to_thread(self.answer)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


async def serve() -> None:
    """Serve; `spent` is answered with CPU seconds and requests so far, `end` with when each job's pod has ended."""
    from tests.kube.api.null_kubelet import running_null
    from tests.kube.api.server import serve as serving

    async with serving() as server, running_null(server, run_seconds=None) as kubelet:
        server.namespace("space")
        print(json.dumps(server.config()), flush=True)
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            answer: Any = {
                "seconds": time.process_time(),
                "requests": len(server.asked),
                "version": server.storage.version,
            }
            if word == "end":
                jobs = {pod["metadata"]["uid"]: _job(json.dumps(pod).encode()) for pod in server.pods()}
                count = kubelet.end(1 / ENDS_A_SECOND)
                while len(kubelet.ends) < count:
                    await asyncio.sleep(0.1)
                answer = {jobs[uid]: at for uid, at in kubelet.ends.items()}
            print(json.dumps(answer), flush=True)


def _job(data: bytes) -> str:
    found = re.search(rb'"datatask.io/job": ?"([^"]*)"', data)
    return found[1].decode() if found else ""


def probe(url: str, version: int, pods: int) -> None:
    """Read a watch from a version on, and say when the end of each job's pod came."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 80)) as connection:
        path = f"/api/v1/namespaces/space/pods?watch=true&resourceVersion={version}"
        connection.sendall(f"GET {path} HTTP/1.0\r\nAuthorization: Bearer admin\r\n\r\n".encode())
        print(json.dumps("reads"), flush=True)
        seen: list[tuple[float, bytes]] = []
        with connection.makefile("rb") as stream:
            while len(seen) < pods and (line := stream.readline()):
                if line.startswith(b'{"type":"MODIFIED"') and b'"phase":"Succeeded"' in line:
                    if b'"deletionTimestamp"' not in line:
                        seen.append((time.time(), line))  # noqa: TID251 - compared with another process's
    ends: dict[str, float] = {}
    for at, line in seen:
        ends.setdefault(_job(line), at)
    print(json.dumps(ends), flush=True)


async def measure(server: Other, folder: Path, pods: int) -> dict[str, Any]:
    """Run the pipeline and return the figures."""
    from datatask import (
        KubeTask,
        LogMetadataRepository,
        Pipeline,
        PodManager,
        ResourceManager,
        Resources,
        Session,
    )
    from datatask.schema.events import RunEnded, RunStarted

    config = server.first
    manager = PodManager("bench", "space", config)
    quota = ResourceManager(Resources.parse(100_000, "100Ti"))
    given, done = LogMetadataRepository("given"), LogMetadataRepository("done")
    task = KubeTask("t", manager, quota, TEMPLATE, None, done)
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), log=folder / "log.db") as pipeline:
        await asyncio.gather(*(given.dump(f"j{number}", {}) for number in range(pods)))
        ends: dict[str, float] = {}
        started, all_started = 0, asyncio.Event()

        def see(batch: Any) -> None:
            nonlocal started
            for event in batch.events:
                if isinstance(event, RunEnded):
                    ends[str(event.job)] = time.time()  # noqa: TID251 - beside the server's
                elif isinstance(event, RunStarted):
                    started += 1
            if started >= pods:
                all_started.set()

        pipeline.subscribe(see)
        served = await server.ask("spent")
        before, began, cpu = memory_kb(), time.perf_counter(), time.process_time()
        running = asyncio.create_task(pipeline.run())
        await all_started.wait()
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
        now = await server.ask("spent")
        await asyncio.sleep(QUIET_SECONDS)
        grown = memory_kb() - before
        quiet = await server.ask("spent")
        url = config["clusters"][0]["cluster"]["server"]
        reader = await asyncio.to_thread(Other, "--probe", url, str(now["version"]), "--pods", str(pods))
        try:
            stored = await server.ask("end")
            seen = await asyncio.to_thread(reader.answer)
        finally:
            reader.close()
        await running
    whole, servers, ours = (
        sorted((late[job] - early[job]) * 1000 for job in stored)
        for late, early in ((ends, stored), (seen, stored), (ends, seen))
    )
    return {
        "starts_per_second": round(pods / seconds),
        "start_cpu_ms": round(spent / pods * 1000, 2),
        "server_cpu_ms": round((now["seconds"] - served["seconds"]) / pods * 1000, 2),
        "quiet_requests": quiet["requests"] - now["requests"],
        "memory_kb_per_pod": round(grown / pods, 1),
        **_percentiles("ending_ms", whole),
        **_percentiles("server_ms", servers),
        **_percentiles("engine_ms", ours),
    }


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}_p{part}": round(values[len(values) * part // 100], 1) for part in (50, 95)}


def main() -> None:
    """Measure and print; without kubernetes_asyncio there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pods", type=int, default=PODS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=2, metavar=("URL", "VERSION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    if options.probe:
        probe(options.probe[0], int(options.probe[1]), options.pods)
        return
    try:
        import kubernetes_asyncio  # noqa: F401
    except ImportError:
        print(json.dumps({"not_installed": "kubernetes_asyncio"}))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        server = Other("--serve")
        try:
            print(json.dumps(asyncio.run(measure(server, Path(name), options.pods))))
        finally:
            server.close()


if __name__ == "__main__":
    main()
