"""An engine whose files a function closed ends at once, also where others were given their numbers meanwhile."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os
from datatask.engine.runtime import closing as intact

async def main():
    loop = asyncio.get_running_loop()
    intact.guard(loop)
    for number in {closed}:
        os.close(number)
        {then}
    intact.returned(os.getpid(), "somebody")
    print("goes on", flush=True)
    os._exit(0)

asyncio.run(main())
"""
ALL = "[getattr(loop, name).fileno() for name in ('_selector', '_ssock', '_csock')]"


@pytest.mark.parametrize(
    ("closed", "then", "code"),
    [
        ("[]", "pass", 0),
        (ALL, "pass", 70),
        (ALL, "assert os.open('/dev/null', os.O_RDONLY) == number", 70),
        (ALL, "assert os.pipe()[0] == number", 70),
        ("[loop._csock.fileno()]", "assert os.open('/dev/null', os.O_RDONLY) == number", 70),
    ],
)
def test_closed_files_are_noticed_whoever_has_their_numbers(closed: str, then: str, code: int) -> None:
    program = PROGRAM.format(closed=closed, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("probably somebody: the engine cannot go on" in done.stderr) is (code == 70)
