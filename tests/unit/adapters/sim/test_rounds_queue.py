"""The queue in columns of simulations does what a list would."""

from __future__ import annotations

from random import Random

import pytest

from datatask.adapters.sim.rounds import ColumnQueue
from datatask.engine.core.tasks import ReadyQueue


@pytest.mark.parametrize("seed", range(4))
def test_a_queue_is_a_list_from_which_jobs_are_taken(seed: int) -> None:
    chance, queue, plain = Random(seed), ColumnQueue(), list[tuple[int, int]]()
    waiting: dict[int, int] = {}
    for position in range(1, 12_000):
        job = chance.randrange(6_000)
        if job not in waiting:
            queue.push(job, 0.0, position, position * 10)
            plain.append((position, job))
            waiting[job] = position
        if plain and chance.random() < 0.9:
            turn = chance.random()
            if turn < 0.05 and seed:  # out of turn, by name
                gone = chance.choice(plain)
                assert queue.discard(gone[1])
                assert not queue.discard(gone[1])
            else:  # the first, or the second
                gone = plain[min(1, len(plain) - 1) if turn < 0.1 else 0]
                assert queue.take(gone[0]) == gone[0] * 10
            plain.remove(gone)
            del waiting[gone[1]]
        if queue.head > queue.tidy_at:
            queue.tidy()
        assert len(queue) == len(plain)
        assert queue.first() == ((0.0, *plain[0]) if plain else None)
    assert list(queue.entries()) == [(0.0, *entry) for entry in plain]
    assert len(queue.jobs) < 2 * len(plain) + 10_000
    kept: ReadyQueue = queue
    for position, job in plain[:9]:
        assert job in kept
        assert (kept.position(job), kept.priority(job)) == (position, 0.0)
    assert 6_000 not in kept


def test_many_come_at_once() -> None:
    queue = ColumnQueue()
    queue.push_all(range(3), range(10, 16, 2), 7)
    assert list(queue.entries()) == [(0.0, 10, 0), (0.0, 12, 1), (0.0, 14, 2)]
    assert 1 in queue
    queue.push_all(range(3, 5), range(16, 20, 2), 8)
    assert queue.take(18) == 8
    assert [job for _, _, job in queue.entries()] == [0, 1, 2, 3]


def test_no_job_waits_in_an_empty_queue() -> None:
    queue = ColumnQueue()
    assert (len(queue), queue.first(), queue.after(0), list(queue.entries())) == (0, None, -1, [])
