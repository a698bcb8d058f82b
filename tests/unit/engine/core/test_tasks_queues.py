"""Ready queues keep priority, then order of becoming ready, and never yield a job twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.tasks import FifoQueue, PriorityQueue, ReadyQueue

steps = st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 3)), max_size=200)


@given(steps)
def test_priority_queue_equals_sorting(changes: list[tuple[bool, int, int]]) -> None:
    """After any pushes and discards the entries are the waiting jobs, sorted."""
    queue, slow = PriorityQueue(), {}
    for position, (push, job, priority) in enumerate(changes):
        if push and job not in slow:
            queue.push(job, float(priority), position)
            slow[job] = (-float(priority), position, job)
        elif not push:
            assert queue.discard(job) is (slow.pop(job, None) is not None)
        assert queue.first() == min(slow.values(), default=None)
        assert list(queue.entries()) == sorted(slow.values())
        assert len(queue) == len(slow)


def test_a_job_pushed_again_as_before_is_yielded_once() -> None:
    """A stale heap entry that equals the new one is not taken for it."""
    queue = PriorityQueue()
    for _ in range(3):
        queue.push(1, 2.0, 10)
        queue.push(2, 1.0, 11)
        queue.discard(1)
    queue.push(1, 2.0, 10)
    assert [job for _, _, job in queue.entries()] == [1, 2]


def test_fifo_keeps_arrival() -> None:
    """Without priorities the first to become ready is the first to go."""
    queue: ReadyQueue = FifoQueue()
    for position, job in enumerate([5, 3, 9]):
        queue.push(job, 7.0, position)
    queue.discard(3)
    queue.push(3, 0.0, 10)
    assert [job for _, _, job in queue.entries()] == [5, 9, 3]
    assert queue.first() == (0.0, 0, 5)
    assert FifoQueue().first() is None
    assert queue.position(3) == 10
    assert queue.priority(3) == 0.0
    assert 4 not in queue


def test_many_discards_do_not_pile_up() -> None:
    """The heap of a queue that only turns over stays within a small multiple of who waits."""
    queue = PriorityQueue()
    for position in range(10_000):
        queue.push(position, float(position % 7), position)
        if position >= 10:
            queue.discard(position - 10)
    assert len(queue._heap) < 200
