"""Pods through an API server on loopback: starts a second, memory a live pod, and how soon an end is in the log.

    python -m benchmarks.kube [--pods 5000]

A whole pipeline, logged with full durability, against a server in a process of its own: all pods are created, run, and
end. `ending_ms` is the time from the moment at which the server tells a pod's end to that at which `RunEnded` is durable;
`memory_kb` what this process grows by for each live pod, its run and its place in the log included.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PODS = 5000
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


async def measure(url: str, folder: Path, pods: int) -> dict[str, Any]:
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
    from datatask.schema.events import RunEnded

    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
    }
    manager = PodManager("bench", "space", config)
    quota = ResourceManager(Resources.parse(100_000, "100Ti"))
    given, done = LogMetadataRepository("given"), LogMetadataRepository("done")
    task = KubeTask("t", manager, quota, TEMPLATE, None, done)
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), log=folder / "log.db") as pipeline:
        await asyncio.gather(*(given.dump(f"j{number}", {}) for number in range(pods)))
        ends: dict[str, float] = {}
        pipeline.subscribe(
            lambda batch: ends.update(
                (str(event.job), time.time())  # noqa: TID251 - beside the server's
                for event in batch.events
                if isinstance(event, RunEnded)
            )
        )
        ask = manager.shared.cluster.ask
        before, began, cpu = memory_kb(), time.perf_counter(), time.process_time()
        running = asyncio.create_task(pipeline.run())
        watch = manager.shared.watch
        while len(watch.known) < pods:
            await asyncio.sleep(0.01)
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
        await ask("POST", "/bench/run")
        while sum(run.started_at is not None for run in pipeline.state.open_runs.values()) < pods:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        grown = memory_kb() - before
        ended = json.loads(await ask("POST", "/bench/end", seconds=600))
        await running
        lates = sorted((ends[job] - at) * 1000 for job, at in ended.items())
    return {
        "starts_per_second": round(pods / seconds),
        "start_cpu_ms": round(spent / pods * 1000, 2),
        "memory_kb_per_pod": round(grown / pods, 1),
        "ending_ms_p50": round(lates[len(lates) // 2], 1),
        "ending_ms_p95": round(lates[len(lates) * 95 // 100], 1),
    }


def main() -> None:
    """Measure and print; without kubernetes_asyncio there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pods", type=int, default=PODS)
    options = parser.parse_args()
    try:
        import kubernetes_asyncio  # noqa: F401
    except ImportError:
        print(json.dumps({"not_installed": "kubernetes_asyncio"}))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.kube.fast"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            print(json.dumps(asyncio.run(measure(url, Path(name), options.pods))))
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
