"""One life: engines that come and go over one log, until all is quiet; out comes what was wrong, if anything."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import msgspec
import pytest

from datatask.adapters.sim.virtual import BEGINNING
from datatask.adapters.store.inprocess import InProcessMetadataRepository, LogMetadataRepository
from datatask.adapters.wiring import engine_services
from datatask.adapters.wiring.pipeline import Pipeline
from datatask.engine.api.policies import ResourceManager, Retry
from datatask.engine.api.repositories import Repository
from datatask.engine.api.session import Session
from datatask.engine.api.tasks import EngineTask
from datatask.engine.ports import Runner
from datatask.schema import messages as r
from datatask.schema.definition import DoneShape
from datatask.schema.errors import DatataskError
from datatask.schema.resources import Resources
from datatask.schema.units import SECOND
from tests.simulation.loop import Crashed, SimLoop, bury, live
from tests.simulation.oracle import Oracle
from tests.simulation.plans import Action, Plan, Stage, chance
from tests.simulation.stores import Shelf, ShelfRepository, SimLog, SimStore
from tests.simulation.target import SimRunner, Target

QUIET_SECONDS = 4000
NEWS_SECONDS = 4
"""Longer than any store takes to tell of a change."""
STEPS_MAX = 400_000
VALUE = msgspec.Raw(b'{"n":0}')
PERSON = "ada@lab: datatask"


class SimClock:
    """Engine time from the loop's."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        """Return engine time."""
        return BEGINNING + round(self._loop.time() * SECOND)

    def wall_step(self) -> tuple[int, int] | None:
        """Virtual time does not jump."""
        return None

    def call_at(self, at: int, ring: Any) -> Any:
        """Ring at engine time `at`."""
        return self._loop.call_at((at - BEGINNING) / SECOND, ring).cancel


class SimTask(EngineTask):
    """A task of one stage; its runner is the imagined target."""

    done_link = "done"
    done_shape: DoneShape = "function"

    def __init__(self, name: str, runner: SimRunner, stage: Stage, quota: ResourceManager) -> None:
        super().__init__(
            name,
            retry=Retry(stage.attempts, 0.5) if stage.attempts > 1 else None,
            timeout=stage.timeout,
            grace=0.5,
            concurrency=stage.concurrency,
        )
        self._sim_runner = runner
        self.outlives = stage.kind == "process"
        self.resource_manager, self.job_resources = quota, Resources.parse(1, "1Mi")

    def _make_runner(self) -> Runner:
        return self._sim_runner


class Life:
    """The world of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.log = SimLog(plan)
        self.target = Target(plan)
        self.oracle = Oracle()
        self.shelves = {
            f"out{n}": Shelf(f"out{n}") for n, stage in enumerate(plan.stages) if stage.home == "foreign"
        }
        self.mirrors: dict[str, dict[str, Any]] = {}
        self.now = 0.0
        self.actions = sorted(plan.actions, key=lambda action: action.at)
        self.done_actions = 0
        self.given = 0
        self.steps = 0
        self.engine: list[Any] = []

    def run(self) -> list[str]:
        """Live it; return what was wrong."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            crashes = [*self.plan.crashes]
            for _ in range(len(crashes) + 8):
                loop = SimLoop(self.now, max(2, crashes.pop(0)) if crashes else STEPS_MAX)
                over = live(loop, self._engine_life(loop))
                self.now = loop.time()
                self.steps += loop.steps
                for part in self.engine:
                    part.dead = True
                bury(loop)
                self.oracle.look(self.log)
                if over or self.oracle.found or self.target.wrong:
                    break
                if loop.steps >= STEPS_MAX:
                    return [f"not quiet after {STEPS_MAX} steps", *self.oracle.found]
                self.target.engine_died({f"t{n}": stage.kind for n, stage in enumerate(self.plan.stages)})
                self.log = self.log.reborn()
            else:
                return ["the engine failed again and again"]
            stores: dict[str, Any] = {name: shelf.versions for name, shelf in self.shelves.items()}
            return self.oracle.conclude(self.log, self.target, stores | self.mirrors)
        finally:
            if collecting:
                gc.enable()

    async def _engine_life(self, loop: SimLoop) -> None:
        self.log.loop = loop
        self.mirrors = {}
        pipe = self._pipeline(loop)
        try:
            await pipe.open()
            person = asyncio.create_task(self._person(pipe, loop))
            while self.given < self.plan.jobs:
                await pipe.put("input", f"j{self.given}", {"n": self.given})
                self.given += 1
            while not person.done() and pipe.runtime.failure is None:
                await asyncio.wait([person], timeout=0.5)
            await pipe.run(timeout=QUIET_SECONDS)
            while pipe.engine.observer._failing:  # as a person does when a store was away
                await asyncio.sleep(NEWS_SECONDS)
                await pipe.run(timeout=QUIET_SECONDS)
            await pipe.close()
        except DatataskError as error:
            if self.log._failure is None:
                self.oracle.found.append(f"the engine stopped: {error}")
            raise Crashed from error

    def _pipeline(self, loop: SimLoop) -> Pipeline:
        plan = self.plan
        quota = ResourceManager(Resources.parse(plan.cpus, "1Gi", launches=plan.launches), window=1.0)
        repositories: list[Repository] = [LogMetadataRepository("input")]
        tasks: list[SimTask] = []
        self.engine = []

        def durable() -> int:
            return log.head

        log = self.log
        for number, stage in enumerate(plan.stages):
            name = f"out{number}"
            runner = SimRunner(self.target, stage, name, durable, self._write)
            task = SimTask(f"t{number}", runner, stage, quota)
            task.link(
                "done",
                LogMetadataRepository(f"done{number}"),
                is_status=True,
                inhibits_start=True,
                required_for_output=True,
            )
            task.link("inp", repositories[stage.reads], is_input=True)
            if stage.after_success and stage.reads:
                task.link("before", tasks[stage.reads - 1].succeeded, required_for_start=True)
            repository = self._repository(name, stage)
            task.link("out", repository, is_output=True)
            repositories.append(repository)
            tasks.append(task)
            self.engine.append(runner)
        return Pipeline(
            tasks, Session(), [quota], name="life", log=self.log, clock=SimClock(loop), seed=plan.seed
        )

    def _repository(self, name: str, stage: Stage) -> Repository:
        match stage.home:
            case "native":
                return LogMetadataRepository(name)
            case "mirror":
                data = self.mirrors.setdefault(name, {})
                return InProcessMetadataRepository(data, name=name)
            case "foreign":
                store = SimStore(self.shelves[name], self.plan, lambda: self.log.head)
                self.engine.append(store)
                return ShelfRepository(store)

    def _write(self, output: str, job: str) -> str | None:
        """What a run writes into a foreign store by itself; some leave it to the engine."""
        shelf = self.shelves.get(output)
        if shelf is None or chance(self.plan.seed, "writes itself", output, job) < 0.5:
            return None
        return shelf.put(job)

    # --- people and the world -----------------------------------------------------------------------

    async def _person(self, pipe: Pipeline, loop: SimLoop) -> None:
        pipe.runtime.launching = True
        while self.done_actions < len(self.actions):
            action = self.actions[self.done_actions]
            await asyncio.sleep(max(0.0, action.at - loop.time()))
            self.done_actions += 1
            await self._do(pipe, action)
        if self.actions:
            await asyncio.sleep(NEWS_SECONDS)
        for number in range(len(self.plan.stages)):
            await self._ask(pipe, r.ResumeTask, f"end{number}", task=f"t{number}")

    async def _do(self, pipe: Pipeline, action: Action) -> None:
        task, job = f"t{action.stage}", f"j{action.job}"
        id, shelf = f"{self.done_actions}", self.shelves.get(f"out{action.stage}")
        match action.verb:
            case "inject":
                await self._ask(
                    pipe, r.PutValues, id, repository="input", items=(r.Item(job=job, value=VALUE),)
                )
            case "rm":
                await self._ask(pipe, r.DeleteValues, id, repository="input", jobs=(job,))
            case "undone":
                await self._ask(pipe, r.DeleteValues, id, repository=f"done{action.stage}", jobs=(job,))
            case "kill":
                await self._ask(pipe, r.DeleteValues, id, repository=f"live({task})", jobs=(job,))
            case "retry":
                await self._ask(pipe, r.RetryJobs, id, task=task, jobs=(job,))
            case "cancel":
                await self._ask(pipe, r.CancelJobs, id, task=task, jobs=(job,))
            case "launch":
                await self._ask(pipe, r.LaunchJob, id, task=task, job=job, force=True)
            case "pause":
                await self._ask(pipe, r.PauseTask, id, task=task)
            case "resume":
                await self._ask(pipe, r.ResumeTask, id, task=task)
            case "quota":
                (quota,) = pipe.state.quotas.values()
                cpus = {**quota.limits, "cpu": (1 + action.job % 3) * SECOND}
                await self._ask(
                    pipe, r.ChangeQuota, id, quota=quota.definition.name, limits=cpus, launches=quota.launches
                )
            case "drop" if shelf is not None:
                shelf.put(job)
            case "lose" if shelf is not None:
                shelf.delete(job)

    async def _ask(self, pipe: Pipeline, kind: type[r.Request], id: str, **fields: Any) -> None:
        """Ask; a refusal is an answer too."""
        asked = kind(id=f"ask{id}", actor=PERSON, **fields)
        await pipe.request(asked)  # type: ignore[arg-type]


def wrong(plan: Plan) -> list[str]:
    """Live a plan; return what was wrong, or what broke."""
    logging.disable(logging.CRITICAL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_services, "INBOX_SECONDS", NEWS_SECONDS)  # nobody writes into it here
            return Life(plan).run()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    finally:
        logging.disable(logging.NOTSET)
