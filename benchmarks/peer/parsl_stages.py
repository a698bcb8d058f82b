"""parsl on four threads, remembering every result in a checkpoint as soon as it is there."""

from __future__ import annotations

import time

import parsl  # type: ignore[import-not-found]
from clock import FOLDER, JOBS, STAGES, report
from parsl.config import Config  # type: ignore[import-not-found]
from parsl.dataflow.memoization import BasicMemoizer  # type: ignore[import-not-found]
from parsl.executors import ThreadPoolExecutor  # type: ignore[import-not-found]


@parsl.python_app(cache=True)  # type: ignore[untyped-decorator]
def stage(number: int, before: int) -> int:
    """Do nothing with what came before."""
    return before


def main() -> None:
    """Submit, wait, report."""
    config = Config(
        executors=[ThreadPoolExecutor(max_threads=4)],
        run_dir=f"{FOLDER}/runinfo",
        initialize_logging=False,
        usage_tracking=0,
        strategy="none",
        memoizer=BasicMemoizer(checkpoint_mode="task_exit"),
    )
    parsl.load(config)
    began = time.perf_counter()
    ends = []
    for job in range(JOBS):
        value = job
        for number in range(STAGES):
            value = stage(number, value)
        ends.append(value)
    for end in ends:
        end.result()
    report(began, STAGES * JOBS)


if __name__ == "__main__":
    main()
