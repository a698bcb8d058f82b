"""The API server in a process of its own: prints the path of a kubeconfig, and serves until TERM.

    python -m tests.kube.api [--port 0] [--kubelet toy|null|none] [--namespace NAME ...] [--run-seconds 1]

The kubeconfig has a context for each user: admin, limited (no rights), throttled (429 beyond one request at a time).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import tempfile
from pathlib import Path

from tests.kube.api.kubelet import running
from tests.kube.api.null_kubelet import running_null
from tests.kube.api.server import serve


async def main(options: argparse.Namespace) -> None:
    """Serve until TERM."""
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kubeconfig-"))
        server = await stack.enter_async_context(serve(options.port))
        for name in options.namespace:
            server.namespace(name)
        if options.kubelet == "toy":
            await stack.enter_async_context(running(server, pace=options.pace))
        elif options.kubelet == "null":
            await stack.enter_async_context(running_null(server, run_seconds=options.run_seconds))
        path = Path(folder) / "kubeconfig"
        path.write_text(json.dumps(server.config()))
        print(path, flush=True)
        await over.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--kubelet", choices=("toy", "null", "none"), default="toy")
    parser.add_argument("--namespace", action="append", default=[])
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between a real node's steps")
    parser.add_argument("--run-seconds", type=float, default=None, help="null kubelet: how long pods run")
    asyncio.run(main(parser.parse_args()))
