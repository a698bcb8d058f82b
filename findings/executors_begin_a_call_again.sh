#!/bin/sh
# Executors: a call whose worker process died is made again in another worker, without a word to the caller.
#
# Versions: executorlib 1.11.0 (SingleNodeExecutor with block_allocation=True), distributed 2026.8.0 (Client.get_executor).
# What one would guess: as with concurrent.futures, the future fails when the worker process dies; no retries were asked for.
# What happens: the call is begun again elsewhere. The future of a call that dies once gives its result as if nothing had been;
# one that was killed because its time was up runs again in the next worker. distributed does so up to three times.
# What datatask does: a call asks the engine before its function is called, and may begin once; a second beginning makes the
# run `lost`, and the task's policy decides. tests/contract/test_executors.py holds that for each executor.
# Output seen:
#   executorlib: the future gave 'done'; the function was begun 2 times
#   distributed: the future gave 'done'; the function was begun 2 times
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check executorlib==1.11.0 distributed==2026.8.0
cat >"$folder/again.py" <<'PYTHON'
import os
import signal
import sys
from importlib.metadata import version

from distributed import Client, LocalCluster
from executorlib import SingleNodeExecutor


def dies_once(path):
    with open(path, "a") as begun:
        begun.write("x")
    if os.path.getsize(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def tried(name, executor):
    path = os.path.join(sys.argv[1], name)
    seen = executor.submit(dies_once, path).result(120), os.path.getsize(path)
    print(f"{name}: the future gave {seen[0]!r}; the function was begun {seen[1]} times", flush=True)
    assert seen == ("done", 2), seen


if __name__ == "__main__":
    assert version("executorlib") == "1.11.0", version("executorlib")
    assert version("distributed") == "2026.8.0", version("distributed")
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as executor:
        tried("executorlib", executor)
    with LocalCluster(n_workers=2, dashboard_address=None, silence_logs=50) as cluster, Client(cluster) as client:
        tried("distributed", client.get_executor())
PYTHON
"$folder/venv/bin/python" "$folder/again.py" "$folder"
