"""Worlds with limited machines: pools that come up, fail, are repaired, and are taken away.

In: runs that the engine launched. A run asks its pool for a place after the scheduler's latency and waits until one
machine has enough for it; then it begins, and ends after its duration by that machine's speed, or sooner: with its
machine, or preempted. A machine's ups and downs come from its own random stream, drawn only up to the present, so
that idle machines do not keep a simulation going.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from datatask.adapters.sim.distributions import Exponential, Sampler, as_distribution, stream
from datatask.adapters.sim.model import (
    CALLED,
    ENDED,
    FAILED,
    LOST,
    NEVER,
    Plain,
    Profile,
    SimRun,
    Simulator,
    World,
    draw,
    draw_rest,
    latency_left,
)
from datatask.adapters.sim.modelling import amounts
from datatask.adapters.sim.scenario import Machines, Scenario
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import UnknownNameError, one_of

Request = dict[str, int]

UNTOLD = ("cpu", "mem")
"""Of these a machine has enough where its pool does not tell how much; of anything else it then has none."""


class Machine:
    """One machine: up from `up_at` until it fails at `fails_at`."""

    def __init__(self, pool: Machines, index: int, seed: int, replication: int) -> None:
        owner = f"{pool.name}/{index}"
        self.name = f"{pool.name}-{index}"
        self.speed = pool.speeds()[index]
        self.free: Request = amounts(pool.has(index), f"machines {pool.name}")
        self.whole = dict(self.free)
        self.running: dict[int, tuple[SimRun, Request]] = {}
        self.single = not self.free
        self.up_at, self.fails_at, self.reported_at = 0, NEVER, 0
        self._start = as_distribution(pool.start).sampler(stream(seed, replication, owner, "start"))
        self._repair = as_distribution(pool.repair).sampler(stream(seed, replication, owner, "repair"))
        self._lives: Sampler = lambda: NEVER
        if pool.mtbf is not None:
            self._lives = Exponential(pool.mtbf).sampler(stream(seed, replication, owner, "failure"))

    def open(self, now: int) -> None:
        """Come up for the first time."""
        self.up_at = now + self._start()
        self.fails_at = self.up_at + self._lives()

    def is_up(self, now: int) -> bool:
        """Whether it is up; its life is drawn up to now."""
        while self.fails_at <= now:
            self.up_at = self.fails_at + self._repair() + self._start()
            self.fails_at = self.up_at + self._lives()
        return self.up_at <= now

    def fits(self, request: Request) -> bool:
        """Whether one more run fits."""
        if self.single:
            return not self.running
        free = self.free
        return all(
            free.get(name, 0) >= amount
            for name, amount in request.items()
            if amount and (name in free or name not in UNTOLD)
        )

    def share(self, request: Request) -> float:
        """Return how much of it a run takes."""
        if self.single:
            return 1.0
        return max(
            (request.get(name, 0) / amount for name, amount in self.whole.items() if amount), default=0.0
        )

    def take(self, run: SimRun, request: Request, sign: int) -> None:
        """Give what a run takes, or (-1) take it back."""
        if sign > 0:
            self.running[run.run] = run, request
        else:
            del self.running[run.run]
        if not self.single:
            for name, amount in request.items():
                if name in self.free:
                    self.free[name] -= sign * amount


class Pool:
    """Equal machines, and the runs that wait for one, by task."""

    def __init__(self, declared: Machines, seed: int, replication: int) -> None:
        self.declared = declared
        made = [Machine(declared, index, seed, replication) for index in range(declared.count)]
        self.machines = sorted(made, key=lambda machine: -machine.speed)
        self.waiting: dict[int, deque[tuple[int, SimRun]]] = {}
        self.busy = 0.0
        self.called_at = 0
        self.loss = LOST if declared.loss == "lost" else FAILED
        self.latency = as_distribution(declared.latency).sampler(
            stream(seed, replication, declared.name, "scheduling")
        )
        self.lives: Sampler | None = None
        if declared.preempted is not None:
            self.lives = Exponential(declared.preempted).sampler(
                stream(seed, replication, declared.name, "preemption")
            )


class Pools:
    """A world of pools; a task's runs go into the one that its scenario names, or the first."""

    def __init__(self, definition: PipelineDef, scenario: Scenario, replication: int) -> None:
        seed = scenario.seed
        pools = {declared.name: Pool(declared, seed, replication) for declared in scenario.machines}
        self._all = list(pools.values())
        self._of: list[Pool] = []
        self._tasks = definition.tasks
        self._names = [task.name for task in definition.tasks]
        for task in definition.tasks:
            name = scenario.of(task.name).machines
            if name is not None and name not in pools:
                raise UnknownNameError(
                    f"{task.name} is to run on {name}, and there are no such machines",
                    where=f"scenario {scenario.name}",
                    remedy=one_of(pools, name),
                )
            self._of.append(self._all[0] if name is None else pools[name])
        self._where: dict[int, tuple[Machine, int]] = {}
        self._count = 0

    def open(self, simulator: Simulator, profiles: tuple[Profile, ...]) -> None:
        self._simulator, self._profiles, self._begin = simulator, profiles, simulator.now
        for pool in self._all:
            for machine in pool.machines:
                machine.open(simulator.now)

    def _request(self, run: SimRun) -> dict[str, int]:
        """Return what a run takes of its machine."""
        return self._tasks[run.task].request(run.attempt - 1 - run.lost)

    def start(self, run: SimRun) -> None:
        draw(self._profiles[run.task], run, self._simulator)
        pool = self._of[run.task]
        own = self._profiles[run.task].latency
        both = pool.latency if own is None else lambda: pool.latency() + own()
        latency = latency_left(both, run, self._simulator)
        if latency:
            self._simulator.push(self._simulator.now + latency, CALLED, lambda: self._ask(pool, run))
        else:
            self._ask(pool, run)

    def resume(self, run: SimRun) -> None:
        draw_rest(self._profiles[run.task], run, self._simulator)
        self._ask(self._of[run.task], run)

    def _ask(self, pool: Pool, run: SimRun) -> None:
        """A run is in line for a place from now on."""
        self._count += 1
        pool.waiting.setdefault(run.task, deque()).append((self._count, run))
        self._place(pool)

    def _place(self, pool: Pool) -> None:
        """Place waiting runs, first come, first served; one that fits nowhere lets others pass."""
        now, tried = self._simulator.now, set[int]()
        while True:
            heads = []
            for task, line in pool.waiting.items():
                while line and (line[0][1].over or line[0][1].stopping):
                    line.popleft()
                if line and task not in tried:
                    heads.append((line[0][0], task))
            if not heads:
                break
            _, task = min(heads)
            request = self._request(pool.waiting[task][0][1])
            machine = next((each for each in pool.machines if each.is_up(now) and each.fits(request)), None)
            if machine is None:
                tried.add(task)
            else:
                self._begin_on(pool, machine, pool.waiting[task].popleft()[1])
        if any(pool.waiting.values()):
            self._await_machines(pool, now)

    def _await_machines(self, pool: Pool, now: int) -> None:
        """Look again when the next machine that is down is up."""
        comes = [machine.up_at for machine in pool.machines if not machine.is_up(now)]
        if comes and (pool.called_at <= now or min(comes) < pool.called_at):
            pool.called_at = min(comes)
            self._simulator.push(pool.called_at, CALLED, lambda: self._place(pool))

    def _begin_on(self, pool: Pool, machine: Machine, run: SimRun) -> None:
        simulator = self._simulator
        now = simulator.now
        machine.take(run, self._request(run), 1)
        self._where[run.run] = machine, now
        run.where = machine.name
        run.duration = int(run.duration / machine.speed)
        if pool.lives is not None:
            lives = pool.lives()
            if lives < run.duration:
                run.duration, run.fate = lives, pool.loss
        simulator.begin(run)
        simulator.push(now + run.duration, ENDED, run)
        if machine.fails_at < now + run.duration and machine.reported_at != machine.fails_at:
            machine.reported_at = machine.fails_at
            simulator.push(machine.fails_at, CALLED, self._failing(pool, machine))

    def _failing(self, pool: Pool, machine: Machine) -> Callable[[], None]:
        def fail() -> None:
            for run, _ in machine.running.values():
                run.fate = pool.loss
                self._simulator.push(self._simulator.now, ENDED, run)

        return fail

    def stop(self, run: SimRun, fate: int) -> None:
        run.fate = fate
        self._simulator.push(self._simulator.now, ENDED, run)

    def ended(self, run: SimRun) -> None:
        found = self._where.pop(run.run, None)
        pool = self._of[run.task]
        if found is not None:
            machine, since = found
            request = self._request(run)
            machine.take(run, request, -1)
            pool.busy += (self._simulator.now - since) * machine.share(request)
        self._place(pool)

    def busy(self, now: int) -> dict[str, tuple[float, float]]:
        span = now - self._begin
        return {pool.declared.name: (pool.busy, float(span * len(pool.machines))) for pool in self._all}

    def stuck(self) -> tuple[str, ...]:
        lines = []
        for pool in self._all:
            for task, line in pool.waiting.items():
                runs = [run for _, run in line if not run.over]
                if runs:
                    sample = ", ".join(self._simulator.name(run.job) for run in runs[:3])
                    lines.append(
                        f"{self._names[task]}: {len(runs)} runs ({sample}{', …' if len(runs) > 3 else ''}) wait for a "
                        f"machine of {pool.declared.name}, none of which has what one asks for"
                    )
        return tuple(lines)


def world_of(definition: PipelineDef, scenario: Scenario, replication: int) -> World:
    """Return the world of one replication."""
    for task in definition.tasks:
        if scenario.of(task.name).machines is not None and not scenario.machines:
            raise UnknownNameError(
                f"{task.name} is to run on {scenario.of(task.name).machines}, and there are no machines",
                where=f"scenario {scenario.name}",
                remedy="declare them in `machines`",
            )
    return Pools(definition, scenario, replication) if scenario.machines else Plain()
