#!/bin/sh
# Dask: with all retries off, a function that has returned is called again when its worker dies.
#
# Versions: distributed 2026.8.0, CPython 3.11.
# What one would guess: with `retries=0` and `distributed.scheduler.allowed-failures: 0` a call is made once, and a future that is
# `finished` stays so.
# What happens: allowed-failures is about calls that were going on when their worker died. A result is kept by the worker that made
# it, and by no other; when that worker dies, the scheduler calls the function again on another one, for as long as somebody wants
# the key (a client, or a published dataset): with side effects done twice, and with no sign of it in the future but `pending`.
# What datatask does: a run takes a lock of its own at the scheduler before its function is called, and keeps it until its end is
# durable; the second call finds it taken and calls nothing. tests/integration/test_dask.py holds that.
# Output seen:
#   distributed 2026.8.0: finished; called 1 times; after its worker was killed: finished; called 2 times
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0
cat >"$folder/again.py" <<'PYTHON'
import logging
import os
import signal
import sys
import time

import dask
import distributed
from distributed import Client, LocalCluster, wait

assert distributed.__version__ == "2026.8.0", distributed.__version__


def work(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")


def calls(path):
    return open(path).read().split()


def main(path):
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL) as cluster:
        with Client(cluster) as client:
            future = client.submit(work, path, key="once", retries=0)
            wait(future, timeout=60)
            before = f"{future.status}; called {len(calls(path))} times"
            os.kill(int(calls(path)[0]), signal.SIGKILL)
            until = time.monotonic() + 60
            while len(calls(path)) < 2 and time.monotonic() < until:
                time.sleep(0.1)
            wait(future, timeout=60)
            after = f"{future.status}; called {len(calls(path))} times"
    print(f"distributed {distributed.__version__}: {before}; after its worker was killed: {after}")
    assert (before, after) == ("finished; called 1 times", "finished; called 2 times")


if __name__ == "__main__":
    main(sys.argv[1])
PYTHON
"$folder/venv/bin/python" "$folder/again.py" "$folder/called" 2>"$folder/errors" || { cat "$folder/errors"; exit 1; }
