"""Which jobs a round launches: `engine.core.decide`, line by line, on the queues of a quick simulation.

In: lanes and the time. Out: the decisions in order, what holds each task back, and when to look again. Amounts and
slots are taken at once; what a launch does to a job is for the caller, when the round is over. Where all tasks ask
one quota for the same and for nothing else, there is less to look at (`_choose_alike`). A property test holds both to the
decider itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from datatask.adapters.sim.lanes import Head, Lane, both
from datatask.adapters.sim.model import NEVER
from datatask.engine.core.decide import BOUND
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.replay.batches import Place

Chosen = tuple[list[tuple[Lane, Head]], dict[str, str], int]
"""The decisions, the constraints by task, and when to look again."""


class Choosing:
    """Chooses among the waiting jobs of these lanes; `places` tell what each job is in.

    Where all tasks are `alike`, the open runs are counted in `running`, from which the caller takes those that end, and
    the quota's amounts are left as they are; elsewhere the caller gives them back.
    """

    def __init__(self, lanes: list[Lane], state: State, places: list[Place]) -> None:
        self._lanes, self._state, self._places = lanes, state, places
        self._shared = self._one_quota()
        self.alike = self._shared is not None
        self.running = 0
        self._helds: dict[int, dict[str, str]] = {0: {}}
        self._capacity, self._short = self._most()
        self.choose = self._choose_alike if self.alike else self._choose

    def _one_quota(self) -> tuple[QuotaState, tuple[tuple[str, int], ...]] | None:
        """Return the quota and the amounts that are all that every task is held by, or None."""
        if not self._lanes or self._lanes[0].quota is None:
            return None
        quota, amounts = self._lanes[0].quota, self._lanes[0].amounts
        for lane in self._lanes:
            same = lane.quota is quota and lane.amounts == amounts
            if not same or lane.closed or lane.concurrency is not None or lane.infeasible or lane.seen:
                return None
        return None if quota.launches is not None else (quota, amounts)

    def _most(self) -> tuple[int, str]:
        """Return how many runs the quota that all share has room for, and of what there is too little for one more."""
        most, short = NEVER, ""
        quota, amounts = self._shared or (None, ())
        for name, amount in amounts:
            if quota is not None and amount and quota.limits.get(name, 0) // amount < most:
                most, short = quota.limits.get(name, 0) // amount, name
        return most, short

    def _choose(self, now: int) -> Chosen:
        chosen: list[tuple[Lane, Head]] = []
        constraints: dict[str, str] = {}
        wake = NEVER
        heads: list[Head] = []
        retrying: dict[int, Iterator[Head]] = {}
        for lane in self._lanes:
            line = lane.line
            if lane.retries:
                retry_at = lane.next_retry()
                if retry_at is not None:
                    if retry_at <= now and not lane.closed:
                        retrying[lane.index] = line_up = both(lane, lane.due(now))
                        heads.append(next(line_up))
                        continue
                    if retry_at > now and retry_at < wake:
                        wake = retry_at
                    elif lane.closed and retry_at <= now:
                        constraints[lane.name] = lane.closed
                        continue
            head = line.head
            if head < line.size:
                if lane.closed:
                    constraints[lane.name] = lane.closed
                else:
                    heads.append((line.positions[head], line.jobs[head], lane.index, head))
        if not heads:
            return chosen, constraints, wake
        if len(heads) > 1:
            heads.sort()
        masks: dict[int, int] = {}
        reserved: dict[str, dict[str, int]] = {}
        lanes = self._lanes
        while heads:
            head_of = heads[0]
            lane = lanes[head_of[2]]
            if len(chosen) >= BOUND:
                for each in heads:
                    constraints[lanes[each[2]].name] = "bound"
                break
            job = head_of[1]
            if masks and job in masks and not lane.task.condition.test(masks[job]):
                self._follow(heads, lane, retrying)
                continue
            constraint, again_at = self._refused(lane, now, reserved)
            if constraint:
                if again_at < wake:
                    wake = again_at
                constraints[lane.name] = constraint
                if lane.reserves and len(heads) > 1:
                    self._reserve(lane, head_of[0], constraint, now, reserved)
                heapq.heappop(heads)
                continue
            lane.open_runs += 1
            quota = lane.quota
            if quota is not None:
                used = quota.used
                for name, amount in lane.amounts:
                    if amount:
                        used[name] = used.get(name, 0) + amount
                if quota.launches is not None:
                    quota.take({}, now)
            chosen.append((lane, head_of))
            if lane.seen:
                self._see(lane, head_of, masks)
            self._follow(heads, lane, retrying)
        return chosen, constraints, wake

    def _choose_alike(self, now: int) -> Chosen:
        """Choose where all tasks ask one quota for the same, and for nothing else: `_choose`, with less to look at."""
        chosen: list[tuple[Lane, Head]] = []
        wake, waiting, oldest = NEVER, 0, NEVER
        for lane in self._lanes:
            if lane.retries:
                retry_at = lane.next_retry()
                if retry_at is not None:
                    if retry_at <= now:
                        return self._choose_retries(now)
                    wake = min(wake, retry_at)
            line = lane.line
            head = line.head
            if head < line.size:
                waiting |= lane.bit
                position = line.positions[head]
                if position < oldest:
                    oldest, first = position, lane
        room = self._capacity - self.running
        if waiting and room > 0:
            if room == 1:
                line = first.line
                head = line.head
                first.open_runs += 1
                chosen.append((first, (oldest, line.jobs[head], first.index, head)))
                more = head + 1 < line.size if line.usual else line.after(head + 1) >= 0
                if not more:
                    waiting ^= first.bit
                self.running += 1
            else:
                waiting = self._oldest(min(room, BOUND), chosen)
                self.running += len(chosen)
                if len(chosen) == BOUND and waiting:
                    return chosen, {lane.name: "bound" for lane in self._lanes if waiting & lane.bit}, wake
        held = self._helds.get(waiting)
        return chosen, self._held(waiting) if held is None else held, wake

    def settle(self) -> None:
        """Bring the amounts of the quota that all share up to date."""
        quota, amounts = self._shared or (None, ())
        if quota is not None:
            quota.used.clear()
            quota.used.update(
                (name, amount * self.running) for name, amount in amounts if amount * self.running
            )

    def _choose_retries(self, now: int) -> Chosen:
        """Choose as everywhere, which reads the quota itself."""
        self.settle()
        found = self._choose(now)
        self.running += len(found[0])
        return found

    def _held(self, waiting: int) -> dict[str, str]:
        """Return what holds the tasks in a set of bits, where all lack the same."""
        lanes = [lane for lane in self._lanes if waiting & lane.bit]
        found = self._helds[waiting] = {lane.name: lane.texts[self._short] for lane in lanes}
        return found

    def _oldest(self, count: int, chosen: list[tuple[Lane, Head]]) -> int:
        """Choose the oldest so many jobs over all queues; return the bits of the tasks that have more."""
        heads: list[Head] = []
        for lane in self._lanes:
            line = lane.line
            if line.head < line.size:
                heads.append((line.positions[line.head], line.jobs[line.head], lane.index, line.head))
        heapq.heapify(heads)
        while heads and len(chosen) < count:
            first = heads[0]
            lane = self._lanes[first[2]]
            lane.open_runs += 1
            chosen.append((lane, first))
            line = lane.line
            index = line.after(first[3] + 1)
            if index >= 0:
                heapq.heapreplace(heads, (line.positions[index], line.jobs[index], lane.index, index))
            else:
                heapq.heappop(heads)
        return sum(self._lanes[head[2]].bit for head in heads)

    def _refused(self, lane: Lane, now: int, reserved: dict[str, dict[str, int]]) -> tuple[str, int]:
        """Return the constraint that keeps a job of this task from starting, and when that is over by itself."""
        if lane.concurrency is not None and lane.open_runs >= lane.concurrency:
            return "concurrency", NEVER
        quota = lane.quota
        if quota is None:
            return "", NEVER
        if lane.infeasible:
            return lane.infeasible, NEVER
        launches = quota.launches
        if launches is not None and len(quota.recent) >= launches:
            at = quota.recent[-launches] + quota.definition.window
            if at > now:
                return f"rate: {lane.quota_name}", at
        used, limits = quota.used, quota.limits
        if reserved:
            kept = reserved.get(lane.quota_name, {})
            for name, amount in lane.amounts:
                if amount and used.get(name, 0) + kept.get(name, 0) + amount > limits.get(name, 0):
                    return lane.texts[name], NEVER
        else:
            for name, amount in lane.amounts:
                if amount and used.get(name, 0) + amount > limits.get(name, 0):
                    return lane.texts[name], NEVER
        return "", NEVER

    def _reserve(
        self, lane: Lane, ready: int, constraint: str, now: int, reserved: dict[str, dict[str, int]]
    ) -> None:
        """Keep for a job that has waited for long what it lacks."""
        quota, name = lane.quota, lane.quota_name
        if quota is None or name in reserved or not constraint.startswith("quota: "):
            return
        if now - self._state.time_of(ready) >= quota.definition.starvation_after:
            reserved[name] = {
                part: amount
                for part, amount in lane.amounts
                if quota.used.get(part, 0) + amount > quota.limits.get(part, 0)
            }

    def _see(self, lane: Lane, head: Head, masks: dict[int, int]) -> None:
        """The launch changes what other tasks see of this job."""
        job, task = head[1], lane.task
        mask = masks.get(job, self._places[job].mask) | task.live.bit
        masks[job] = mask if head[3] < 0 else mask & ~task.outcomes

    def _follow(self, heads: list[Head], lane: Lane, retrying: dict[int, Iterator[Head]]) -> None:
        """Let the next job of the first head's task take its place among the heads."""
        if retrying and lane.index in retrying:
            head = next(retrying[lane.index], None)
            if head is not None:
                heapq.heapreplace(heads, head)
                return
        else:
            line = lane.line
            index = line.after(heads[0][3] + 1)
            if index >= 0:
                heapq.heapreplace(heads, (line.positions[index], line.jobs[index], lane.index, index))
                return
        heapq.heappop(heads)
