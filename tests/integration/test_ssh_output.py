"""Output over SSH that is large or fast: whole here, in a memory that does not grow with it; and a kill that nobody ordered."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from datatask.schema.messages import Ended, Started
from tests.run_kit import contents, opened, spec
from tests.ssh_runs import ended, make, message, on_server

pytestmark = pytest.mark.server("sshd")
MIB = 1 << 20


def memory(name: str) -> int:
    """Return bytes of this process: VmRSS now, VmHWM at most since the mark was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize(
    "mebibytes",
    [64, pytest.param(1024, marks=pytest.mark.soak), pytest.param(10 * 1024, marks=pytest.mark.soak)],
)
async def test_large_output_comes_whole_in_constant_memory(tmp_path: Path, mebibytes: int) -> None:
    runner = make(on_server(tmp_path), f"head -c {mebibytes}M /dev/zero\n").runner
    async with opened(runner) as facts:
        runner.start(spec(0, "warm"))
        await facts.first(0, Started)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        runner.start(spec(1))
        while not (found := [fact for fact in facts.of(1) if isinstance(fact, Ended)]):
            await asyncio.sleep(0.05)
        end = found[0]
        grown = memory("VmHWM") - before
        assert end.ending.outcome == "succeeded"
        kept = end.writes[0].source
        assert kept is not None
        assert kept.stat().st_size == mebibytes * MIB
        runner.forget(1)
    assert grown < 40 * MIB


async def test_lines_by_the_hundred_thousand_a_second_arrive_all_and_in_order(tmp_path: Path) -> None:
    """On both streams at once; some of the bytes are no UTF-8."""
    script = "seq -f \"$(printf 'caf\\351 %%.0f')\" 400000 | tee /dev/stderr\n"
    runner = make(on_server(tmp_path), script).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        end = await facts.end_of(1)
        expected = b"".join(b"caf\xe9 %d\n" % number for number in range(1, 400_001))
        assert [contents(write) == expected for write in end.writes] == [True, True]
    assert end.ending.outcome == "succeeded"
    assert end.ending.started_at is not None
    assert end.ending.ended_at is not None
    assert 400_000 / (end.ending.ended_at - end.ending.started_at) * 1e9 > 100_000


async def test_a_kill_that_nobody_here_ordered_is_told_as_what_it_is(tmp_path: Path) -> None:
    """As the kernel does when memory runs out: the run has failed by that signal, it was not stopped and is not lost."""
    end = await ended(on_server(tmp_path), "kill -KILL $$\n")
    assert (end.ending.outcome, end.ending.exit_code) == ("failed", 137)
    assert message(end).startswith("killed by SIGKILL")
