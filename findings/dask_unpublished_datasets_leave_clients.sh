#!/bin/sh
# Dask: each dataset that was published leaves a client at the scheduler, also after `unpublish_dataset`.
#
# Versions: distributed 2026.8.0, CPython 3.11.
# What one would guess: `unpublish_dataset` undoes `publish_dataset`; a scheduler can take a name a run for months.
# What happens: the scheduler holds a dataset's keys in the name of a client `published-NAME` that it makes up. Unpublishing lets the
# keys go and keeps the client, for ever, one for each name: `list_datasets` is empty and `Scheduler.clients` grows. The pause
# between the heartbeats of real clients grows with their number, too.
# Also: a client that submits and publishes sends two messages, and when it is killed between them the task is dropped while its
# function runs; the same key then runs again.
# What datatask does: one such client for each log, told in the same message as the tasks which keys it wants, and later which it
# wants no more (docs/decisions/0026); tests/integration/test_dask.py holds that nothing is left.
# Output seen:
#   distributed 2026.8.0: after 100 datasets were published and unpublished: 0 datasets, 0 tasks, 100 clients named published-*
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0
cat >"$folder/left.py" <<'PYTHON'
import time

import distributed
from distributed import Client, LocalCluster

assert distributed.__version__ == "2026.8.0", distributed.__version__


def left(dask_scheduler):
    made_up = [name for name in dask_scheduler.clients if name.startswith("published-")]
    return len(dask_scheduler.tasks), len(made_up)


def main():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            for number in range(100):
                future = client.submit(int, number, key=f"run-{number}")
                client.publish_dataset(future, name=f"run-{number}")
                future.result(timeout=60)
                client.unpublish_dataset(f"run-{number}")
                del future
            until = time.monotonic() + 30
            while client.run_on_scheduler(left)[0] and time.monotonic() < until:
                time.sleep(0.1)
            tasks, clients = client.run_on_scheduler(left)
            datasets = len(client.list_datasets())
    print(
        f"distributed {distributed.__version__}: after 100 datasets were published and unpublished: "
        f"{datasets} datasets, {tasks} tasks, {clients} clients named published-*"
    )
    assert (datasets, tasks, clients) == (0, 0, 100), (datasets, tasks, clients)


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/left.py" 2>"$folder/errors" || { cat "$folder/errors"; exit 1; }
