"""Replications in other processes: `python -m datatask.adapters.sim.spreading` is one of them.

In: what they have in common and their numbers, pickled, on stdin. Out: their summaries, pickled, on stdout. Such a process
imports nothing of the caller's program, so scripts need no guard around what they do, and no code of theirs is run
again. What a process does not manage, for whatever reason, is done here, where errors are told.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from datatask.adapters.sim.replicating import Given, simulated
from datatask.adapters.sim.summary import Summary


def spread(given: Given, replications: Sequence[int], workers: int) -> list[Summary]:
    """Return the summaries of these replications, in order, made by so many processes."""
    shares = [replications[worker::workers] for worker in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(lambda share: _asked(given, share), shares))
    found: dict[int, Summary] = {}
    for share, answer in zip(shares, answers, strict=True):
        summaries = answer or [simulated(given, replication).summary for replication in share]
        found.update(zip(share, summaries, strict=True))
    return [found[replication] for replication in replications]


def _asked(given: Given, share: Sequence[int]) -> list[Summary] | None:
    """Return what a process says to a share, None where it fails."""
    try:
        asked = pickle.dumps((given, list(share)))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None  # a distribution of the caller's own, say
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    if done.returncode:
        return None
    summaries: list[Summary] = pickle.loads(done.stdout)
    return summaries


def main() -> None:
    """Do a share that is told on stdin."""
    given, share = pickle.load(sys.stdin.buffer)
    summaries = [simulated(given, replication).summary for replication in share]
    sys.stdout.buffer.write(pickle.dumps(summaries))


if __name__ == "__main__":
    main()
