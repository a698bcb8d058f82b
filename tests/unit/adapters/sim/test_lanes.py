"""The quick simulator's queue does what a list would."""

from __future__ import annotations

from random import Random

import pytest

from datatask.adapters.sim.lanes import Line


@pytest.mark.parametrize("seed", range(4))
def test_a_line_is_a_list_from_which_jobs_are_taken(seed: int) -> None:
    chance, line, plain = Random(seed), Line(), list[tuple[int, int, int]]()
    waiting: set[int] = set()
    for position in range(1, 12_000):
        job = chance.randrange(6_000)
        if job not in waiting:
            line.push(job, position, position * 10)
            plain.append((job, position, position * 10))
            waiting.add(job)
        if plain and chance.random() < 0.9:
            turn = chance.random()
            if turn < 0.05 and seed:  # out of turn, by name
                gone = chance.choice(plain)
                line.discard(gone[0])
            elif turn < 0.1:  # the second, by its index
                index = line.after(line.head + 1)
                gone = plain[min(1, len(plain) - 1)]
                line.take(index if index >= 0 else line.head)
            else:
                gone = plain[0]
                index = line.after(line.head)
                assert (line.jobs[index], line.positions[index], line.times[index]) == gone
                line.take(index)
            plain.remove(gone)
            waiting.discard(gone[0])
        if line.head > 4096:
            line.tidy()
        assert len(line) == len(plain)
        assert (line.head < line.size) is bool(plain)
    assert list(line.entries()) == plain


def test_nobody_waits_in_an_empty_line() -> None:
    line = Line()
    assert (len(line), line.after(0), list(line.entries())) == (0, -1, [])
