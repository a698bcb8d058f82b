"""huey on SQLite, each commit synced to disk (its default): three tasks in a row a job, four worker threads."""

from __future__ import annotations

import logging
import threading
import time

from clock import FOLDER, JOBS, STAGES, report
from huey import SqliteHuey  # type: ignore[import-not-found]

logging.disable(logging.CRITICAL)
queue = SqliteHuey("bench", filename=f"{FOLDER}/huey.db", results=True)
over = threading.Semaphore(0)


@queue.task()  # type: ignore[untyped-decorator]
def stage(number: int, job: int) -> tuple[int, int]:
    """Do nothing; hand on to the next stage."""
    over.release()
    return number + 1, job


def main() -> None:
    """Submit, wait, report."""
    consumer = queue.create_consumer(
        workers=4, worker_type="thread", initial_delay=0.01, max_delay=0.05, periodic=False
    )
    consumer.start()
    began = time.perf_counter()
    for job in range(JOBS):
        queue.enqueue(stage.s(0, job).then(stage).then(stage))
    for _ in range(STAGES * JOBS):
        over.acquire()
    report(began, STAGES * JOBS)


if __name__ == "__main__":
    main()
