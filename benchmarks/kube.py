"""Pods through the API server for tests: starts a second, memory a live pod, and how soon an end is in the log.

    python -m benchmarks.kube [--pods 5000]

A whole pipeline, logged with full durability, against `tests/kube/api` with its null kubelet in a process of its own: all pods
are created and run, and then end, 200 a second. A start is over when `RunStarted` is in the state. `ending_ms` is the time from
the moment at which the server stores a pod's end to that at which `RunEnded` is durable; `server_ms` the part of it until a
third process, which only reads a watch, has the event; `engine_ms` the rest. `memory_kb` is what this process grows by for
each live pod, its run and its place in the log included; `server_cpu_ms` what the server itself spends on a start, and
`quiet_requests` what it is asked in five seconds in which nothing happens to all these pods.

`burst_ratio` is for 1,000 pods that end as soon as they run: how many a second the server is asked to create by the engine, first
to last, beside kubernetes_asyncio's client alone with as many requests at a time; in turn, the median of the rounds.
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
from statistics import median
from typing import Any
from urllib.parse import urlsplit

PODS = 5000
ENDS_A_SECOND = 200
QUIET_SECONDS = 5
BURST = 1000
ROUNDS = 3
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


async def serve(run_seconds: float | None) -> None:
    """Serve; `spent` is answered with CPU seconds and requests so far, `end` with when each job's pod has ended.

    `burst` is answered with the seconds between the first and the last pod that was made since it was asked last.
    """
    from tests.kube.api.deleting import PODS as KIND
    from tests.kube.api.null_kubelet import running_null
    from tests.kube.api.server import serve as serving

    made: list[float] = []
    async with serving() as server, running_null(server, run_seconds=run_seconds) as kubelet:
        server.namespace("space")
        listeners = server.storage.table(KIND).listeners
        listeners.append(lambda change: made.append(time.perf_counter()) if change.type == "ADDED" else None)
        print(json.dumps(server.config()), flush=True)
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            answer: Any = {
                "seconds": time.process_time(),
                "requests": len(server.asked),
                "version": server.storage.version,
            }
            if word == "burst":
                answer = {"pods": len(made), "seconds": made[-1] - made[0]}
                made.clear()
            elif word == "end":
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


async def burst(server: Other, folder: Path, count: int) -> float:
    """Return how many pods a second the engine makes, when each ends as soon as it runs."""
    from datatask import KubeTask, LogMetadataRepository, Pipeline, PodManager, Session

    given, done = LogMetadataRepository("given"), LogMetadataRepository("done")
    task = KubeTask("t", PodManager("burst", "space", server.first), None, TEMPLATE, None, done)
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), log=folder / f"{time.monotonic_ns()}.db") as pipeline:
        await asyncio.gather(*(given.dump(f"j{number}", {}) for number in range(count)))
        await pipeline.run()
    return await _made(server, count)


async def bare(server: Other, count: int) -> float:
    """Return how many pods a second the client alone makes, with as many requests at a time, and remove them."""
    from kubernetes_asyncio import client, config

    from datatask.adapters.execute.kube.cluster import IN_FLIGHT

    configuration = client.Configuration()
    await config.load_kube_config_from_dict(server.first, client_configuration=configuration)
    pods = iter(range(count))
    async with client.ApiClient(configuration) as api:
        v1 = client.CoreV1Api(api)

        async def make() -> None:
            for number in pods:
                await v1.create_namespaced_pod("space", _manifest(number))

        await asyncio.gather(*(make() for _ in range(IN_FLIGHT)))
        found = await _made(server, count)
        await v1.delete_collection_namespaced_pod("space", grace_period_seconds=0)
    return found


def _manifest(number: int) -> Any:
    import yaml

    labels = {"team": "bench", "app": "bare", "job": f"j{number}"}
    found = yaml.safe_load(TEMPLATE.replace("{{ job }}", f"j{number}"))
    return {**found, "metadata": {"name": f"bare-{number}", "labels": labels}}


async def _made(server: Other, count: int) -> float:
    told = await server.ask("burst")
    if told["pods"] < count:
        sys.exit(f"{told['pods']} pods were made, not {count}")
    return float(told["pods"] / told["seconds"])


async def bursts(server: Other, folder: Path, count: int) -> dict[str, Any]:
    """Return both, in turn."""
    rates: dict[str, list[float]] = {"bare": [], "engine": []}
    for _ in range(ROUNDS):
        rates["bare"].append(await bare(server, count))
        rates["engine"].append(await burst(server, folder, count))
    ratios = [engine / alone for engine, alone in zip(rates["engine"], rates["bare"], strict=True)]
    return {
        "burst_creates_per_second": round(median(rates["engine"])),
        "burst_creates_per_second_bare": round(median(rates["bare"])),
        "burst_ratio": round(median(ratios), 2),
    }


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}_p{part}": round(values[len(values) * part // 100], 1) for part in (50, 95)}


def main() -> None:
    """Measure and print; without kubernetes_asyncio there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pods", type=int, default=PODS)
    parser.add_argument("--burst", type=int, default=BURST)
    parser.add_argument("--only-burst", action="store_true", help="measure bursts alone")
    parser.add_argument("--serve", choices=["live", "ended"], help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=2, metavar=("URL", "VERSION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(None if options.serve == "live" else 0.0))
        return
    if options.probe:
        probe(options.probe[0], int(options.probe[1]), options.pods)
        return
    try:
        import kubernetes_asyncio  # noqa: F401
    except ImportError:
        print(json.dumps({"not_installed": "kubernetes_asyncio"}))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for mode in ("ended",) if options.only_burst else ("live", "ended"):
            server = Other("--serve", mode)
            try:
                work = (
                    measure(server, Path(name), options.pods)
                    if mode == "live"
                    else bursts(server, Path(name), options.burst)
                )
                figures |= asyncio.run(work)
            finally:
                server.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
