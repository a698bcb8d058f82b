"""Replications in other processes: `python -m datatask.adapters.sim.worker` is one of them.

In: their setup and numbers, pickled, on stdin. Out: their summaries, pickled, on stdout. Such a process imports nothing
of the caller's program, so scripts need no guard around their code, and none of it runs again. Replications that a
process does not finish, for whatever reason, run in the caller, which reports errors.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from datatask.adapters.clock import SpentError, effort
from datatask.adapters.sim.replication import Setup, replicate
from datatask.adapters.sim.result import Summary


def replicate_in_processes(setup: Setup, replications: Sequence[int], workers: int) -> list[Summary]:
    """Return the summaries of these replications, in order, made by this number of processes; when the time is over, of those
    that are done.
    """
    shares = [replications[worker::workers] for worker in range(workers)]
    found: dict[int, Summary] = {}
    processes: list[subprocess.Popen[bytes]] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(lambda share: _ask(setup, share, processes, found), shares))
            for replication in replications:
                if replication not in found:
                    found[replication] = replicate(setup, replication).summary
        except SpentError:
            pass
        finally:
            for process in processes:
                process.kill()
    return [found[replication] for replication in replications if replication in found]


def _ask(
    setup: Setup, share: Sequence[int], processes: list[subprocess.Popen[bytes]], found: dict[int, Summary]
) -> None:
    """Let a process simulate a share, and note each summary as it arrives."""
    try:
        asked = pickle.dumps((setup, list(share)))
    except (pickle.PicklingError, AttributeError, TypeError):
        return  # a distribution of the caller's own, say
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    processes.append(process)
    with process, contextlib.suppress(BrokenPipeError, EOFError, pickle.UnpicklingError):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(asked)
        process.stdin.close()
        for replication in share:
            found[replication] = pickle.load(process.stdout)
            effort.at(effort.stage, len(found) + 1, effort.total)


def main() -> None:
    """Simulate the share given on stdin."""
    setup, share = pickle.load(sys.stdin.buffer)
    for replication in share:
        sys.stdout.buffer.write(pickle.dumps(replicate(setup, replication).summary))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
