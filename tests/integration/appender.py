"""Appends to a log until it is killed, and says what is durable: `python appender.py LOG ACKNOWLEDGED [--fork]`.

Sixteen callers append batches of three; each acknowledged last position is written to the file at once.
With `--fork` a child is left behind that outlives this process, and its pid is printed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.events import ValuePut

CALLERS = 16


async def main(place: str, acknowledged: str, fork: bool) -> None:
    log = await SqliteLog.open(
        place, pipeline="p", clock_now=time.time_ns(), version="0", host="appender-host", pid=os.getpid()
    )
    if fork and (child := os.fork()) == 0:
        os.close(1)
        time.sleep(60)  # noqa: ASYNC251 - this child has no loop
        os._exit(0)
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print(child if fork else 0, flush=True)

    async def caller(number: int) -> None:
        while True:
            start = log.next
            jobs = (f"job-{start + offset}" for offset in range(3))
            span = await log.append([ValuePut(at=time.time_ns(), repository="r", job=job) for job in jobs])
            os.write(told, b"%d\n" % (span.stop - 1))

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], "--fork" in sys.argv))
