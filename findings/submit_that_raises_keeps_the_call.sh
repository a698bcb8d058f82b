#!/bin/sh
# Executors: a `submit` that raises has accepted the call all the same, and runs it later.
#
# Versions: CPython 3.11 (concurrent.futures) and distributed 2026.8.0 (its ThreadPoolExecutor, which Dask's workers use).
# What one would guess: `submit` raises, so the call was not taken; it may be submitted again.
# What happens: the call is queued before a thread is started for it. Where the machine has no room for a thread at that
# moment, `submit` raises "can't start new thread" and returns no future, and the call runs as soon as a thread is there:
# a second `submit` of it runs it twice. distributed's pool also counts the thread that never started as its own, and its
# `shutdown` then raises.
# What datatask does: the call that was kept is called off before it is submitted again, so it does nothing when its turn
# comes; a process pool that got no process is made anew. tests/integration/test_back_pressure.py holds that each runs once.
# Output seen:
#   concurrent.futures: submit: RuntimeError: can't start new thread; ran: ['refused', 'retried']; shutdown: ended
#   distributed: submit: RuntimeError: can't start new thread; ran: ['refused', 'retried']; shutdown: RuntimeError: cannot join thread before it is started
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0
"$folder/venv/bin/python" - <<'PYTHON'
import concurrent.futures
import resource
import threading

import distributed
from distributed.threadpoolexecutor import ThreadPoolExecutor


def told(work, *arguments):
    try:
        work(*arguments)
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "ended"


def submitted_twice(pool):
    """Submit while no thread can be started, then again; return what was said and what ran."""
    ran = []
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = threading.stack_size(256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, hard))
    try:
        first = told(pool.submit, ran.append, "refused")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        threading.stack_size(size)
    pool.submit(ran.append, "retried").result(10)
    return first, ran, told(pool.shutdown)


assert distributed.__version__ == "2026.8.0", distributed.__version__
no_room, twice = "RuntimeError: can't start new thread", ["refused", "retried"]
for name, make, shutdown in (
    ("concurrent.futures", concurrent.futures.ThreadPoolExecutor, "ended"),
    ("distributed", ThreadPoolExecutor, "RuntimeError: cannot join thread before it is started"),
):
    seen = submitted_twice(make(2))
    print(f"{name}: submit: {seen[0]}; ran: {seen[1]}; shutdown: {seen[2]}")
    assert seen == (no_room, twice, shutdown), seen
PYTHON
