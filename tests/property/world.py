"""A small world around a reactor: it stores, runs, crashes and forgets, as the drawn actions say.

In: a pipeline and actions, tuples of a verb and small integers that are taken modulo what there is. Out: the log,
of which only a prefix is durable; effects happen when their batch is. `crash` throws everything away but the
durable prefix and what runs and lies in the world, and opens a new engine on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any as Anything

import msgspec

from datatask.engine.core.effects import Effect, Evaluation, LogStep, StartRun, StopRun, WriteStore
from datatask.engine.core.fold import apply, apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import (
    All,
    Any,
    AnyExpr,
    In,
    Not,
    PipelineDef,
    Selection,
    job_leaf,
    view_id,
)
from datatask.schema.errors import CallerError
from datatask.schema.messages import (
    Adopted,
    Ended,
    Noticed,
    Reachable,
    Resized,
    RunSpec,
    Started,
    Unreachable,
    Write,
)
from datatask.schema.units import SECOND
from tests.property.pipelines import JOBS, QUOTAS, STORED, TASKS

Action = tuple[str, int, int, int]
OUTCOMES: tuple[e.Outcome, ...] = (
    "succeeded",
    "failed",
    "lost",
    "timed_out",
    "refused",
    "succeeded",
    "cancelled",
    "handed_over",
)
VALUE = msgspec.Raw(b'{"n":1}')


class World:
    """One log and what is around it; `batches` are all steps so far that are still believed."""

    def __init__(self, pipeline: PipelineDef, variants: list[PipelineDef]) -> None:
        self.definitions = [pipeline, *variants]
        self.pipeline = pipeline
        self.now = 10 * SECOND
        self.random = Random(7)
        self.batches: list[tuple[e.Event, ...]] = [(e.LogCreated(at=1, log="u", pipeline="p"),)]
        self.undurable: deque[LogStep] = deque()
        self.stores: dict[str, dict[str, str]] = {
            r.id: {} for r in pipeline.repositories if r.medium in ("foreign", "mirror")
        }
        self.running: dict[int, RunSpec] = {}
        self.gone: list[int] = []
        self.writing: list[WriteStore] = []
        self.listings: list[tuple[str, list[Write], int]] = []
        self.evaluating: list[Evaluation] = []
        self.epoch = 0
        self.on_batch: Callable[[State, tuple[e.Event, ...]], None] = lambda state, batch: None
        self.on_open: Callable[[], None] = lambda: None
        self.open()

    # --- the log ----------------------------------------------------------------------------------

    def events(self) -> list[e.Event]:
        """Return all events so far, durable or not."""
        return [event for batch in self.batches for event in batch]

    def open(self) -> None:
        """Fold what is durable and let a new engine take over."""
        self.state = State()
        apply_all(self.state, 1, self.events())
        self.on_open()
        self.reactor = Reactor(self.state, self.random.random)
        self.selection: Selection | None = None
        self.epoch += 1
        self.reactor.open(
            e.EngineOpened(at=self.now, version="1", host="h", pid=1, boot="b", epoch=self.epoch),
            self.pipeline,
        )
        found = [spec for specs in self.reactor.runs.recoverable().values() for spec in specs]
        self.reactor.redo(self.now)
        for spec in found:
            alive = spec.run in self.running
            silent = self.random.random() < 0.2
            lost = self._ending("lost")
            fact = (
                Unreachable(spec.run) if silent else Adopted(spec.run, {}) if alive else Ended(spec.run, lost)
            )
            self.reactor.runs.fact(fact, self.now)
            self.running[spec.run] = spec
        self.collect()

    def collect(self) -> None:
        """Take the reactor's steps."""
        for step in self.reactor.take():
            if step.events:
                self.batches.append(step.events)
                self.on_batch(self.state, step.events)
            self.undurable.append(step)

    def flush(self, steps: int) -> None:
        """Let the first steps become durable and perform their effects."""
        for _ in range(min(steps, len(self.undurable))):
            for effect in self.undurable.popleft().effects:
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case StartRun(spec=spec):
                self.running[spec.run] = spec
            case StopRun(run=run):
                if run in self.running and self.random.random() < 0.7:
                    self._end(run, "cancelled")
            case WriteStore(write=write):
                if write.op == "delete":
                    self.stores[write.repository].pop(write.job, None)
                else:
                    self.stores[write.repository][write.job] = f"v{self.random.random()}"
                self.writing.append(effect)

    # --- actions ----------------------------------------------------------------------------------

    def act(self, action: Action) -> None:
        """Do one thing; the numbers choose among what there is."""
        verb, a, b, c = action
        getattr(self, f"do_{verb}")(a, b, c)
        self.collect()

    def do_put(self, a: int, b: int, c: int) -> None:
        self.reactor.tickets.change([self._write(a, b)], self.now)

    def do_put_many(self, a: int, b: int, c: int) -> None:
        self.reactor.tickets.change(
            [self._write(a, job) for job in range(len(JOBS))], self.now, request=f"r{b}"
        )

    def do_delete(self, a: int, b: int, c: int) -> None:
        leaves = list(self.state.definition.repositories)
        leaf = leaves[a % len(leaves)]
        if leaf.derived is None:
            self.reactor.tickets.change(
                [Write(repository=leaf.id, job=JOBS[b % len(JOBS)], op="delete")], self.now
            )

    def _write(self, leaf: int, job: int) -> Write:
        return Write(repository=STORED[leaf % len(STORED)], job=JOBS[job % len(JOBS)], value=VALUE)

    def _foreign(self, a: int) -> str | None:
        names = sorted(self.stores)
        return names[a % len(names)] if names else None

    def do_observe(self, a: int, b: int, c: int) -> None:
        leaf, job = self._foreign(a), JOBS[b % len(JOBS)]
        if leaf is None:
            return
        if c % 3 == 0:
            self.stores[leaf].pop(job, None)
            self.reactor.stores.observed(leaf, job, None, self.now)
        else:
            version = self.stores[leaf][job] = f"o{c % 4}"
            self.reactor.stores.observed(
                leaf, job, Write(repository=leaf, job=job, version=version), self.now
            )

    def do_appear(self, a: int, b: int, c: int) -> None:
        """Something changes in a store and nobody tells."""
        leaf, job = self._foreign(a), JOBS[b % len(JOBS)]
        if leaf is not None and c % 3 == 0:
            self.stores[leaf].pop(job, None)
        elif leaf is not None:
            self.stores[leaf][job] = f"s{c % 4}"

    def do_list(self, a: int, b: int, c: int) -> None:
        self.do_begin_list(a, b, c)
        self.do_end_list(len(self.listings) - 1, b, c)

    def do_begin_list(self, a: int, b: int, c: int) -> None:
        leaf = self._foreign(a)
        if leaf is not None:
            listing = [Write(repository=leaf, job=job, version=v) for job, v in self.stores[leaf].items()]
            self.listings.append((leaf, listing, self.state.position))

    def do_end_list(self, a: int, b: int, c: int) -> None:
        if self.listings:
            leaf, listing, began = self.listings.pop(a % len(self.listings))
            self.reactor.stores.listed(leaf, listing, self.now, began, self.now)

    def do_sync_all(self, a: int, b: int, c: int) -> None:
        for index in range(len(self.stores)):
            self.do_list(index, 0, 0)

    def do_written(self, a: int, b: int, c: int) -> None:
        if not self.writing:
            return
        effect = self.writing.pop(a % len(self.writing))
        write, fails = effect.write, c % 5 == 0
        version = None if fails else self.stores[write.repository].get(write.job, "v")
        self.reactor.written(
            write, effect.run, effect.ticket, self.now, version=version, error="full" if fails else ""
        )

    def do_decide(self, a: int, b: int, c: int) -> None:
        self.now += (c % 3) * SECOND
        self.reactor.unavailable = {"t0"} if a % 10 == 0 else set()
        launched, _ = self.reactor.decide(self.now, "run", bound=1 + b, selection=self.selection)
        self.selection = None if self.selection is None else self.selection.after(launched)

    def do_choose(self, a: int, b: int, c: int) -> None:
        """A run begins that is asked for part of the pipeline, or for all of it again."""
        leaf, task = In(leaf=STORED[a % len(STORED)]), TASKS[b % len(TASKS)]
        named = In(leaf=job_leaf((*JOBS, "*", "?")[a % (len(JOBS) + 2)]))
        jobs: list[AnyExpr | None] = [
            None,
            leaf,
            named,
            Not(of=named),
            Any(of=(named, All(of=(leaf, Not(of=named))))),
        ]
        live = In(leaf=view_id(task, "failed"))
        self.selection = (
            Selection(
                tasks=(task,) if b % 3 else (),
                jobs=[*jobs, live][c % 6],
                left=None if a % 2 else c,
            )
            if b % 4
            else None
        )

    def do_evaluate(self, a: int, b: int, c: int) -> None:
        found = self.reactor.evaluations.due(self.now, 8)
        self._answer(found, a, b)

    def do_evaluate_later(self, a: int, b: int, c: int) -> None:
        self.evaluating += self.reactor.evaluations.due(self.now, 1 + a % 8)

    def do_evaluated(self, a: int, b: int, c: int) -> None:
        found, self.evaluating = self.evaluating, []
        self._answer(found, a, b)

    def _answer(self, found: list[Evaluation], a: int, b: int) -> None:
        values = {
            "filter": a % 3 != 0,
            "priority": float(a % 3),
            "translation": JOBS[b % len(JOBS)] if b % 4 else None,
        }
        error = "boom" if a % 7 == 6 else None
        self.reactor.evaluations.evaluated([(one, values[one.key.what], error) for one in found], self.now)

    def do_start(self, a: int, b: int, c: int) -> None:
        if self.running:
            run = sorted(self.running)[a % len(self.running)]
            self.reactor.runs.fact(Started(run, {"pid": 7} if b % 2 else {}, "here", 1), self.now)

    def do_end(self, a: int, b: int, c: int) -> None:
        if self.running:
            run = sorted(self.running)[a % len(self.running)]
            self._end(run, OUTCOMES[b % len(OUTCOMES)], outputs=c)

    def _end(self, run: int, outcome: e.Outcome, outputs: int = 0) -> None:
        spec = self.running.pop(run)
        self.gone.append(run)
        writes: list[Write] = []
        task = next((t for t in self.pipeline.tasks if t.name == spec.task), None)
        links = task.links if task else ()
        output = next(
            (link.expr.leaf for link in links if link.is_output and isinstance(link.expr, In)), None
        )
        if outputs % 4 and output is not None:
            value: dict[str, Anything] = {"data": b"x"} if outputs % 4 == 2 else {"value": VALUE}
            writes.append(Write(repository=output, job=spec.job, **value))
        self.reactor.runs.fact(Ended(run, self._ending(outcome), tuple(writes)), self.now)

    def _ending(self, outcome: e.Outcome) -> e.Ending:
        """Return an end; half of those that are lost are the machine's doing."""
        by_machine = outcome == "lost" and self.random.random() < 0.5
        return e.Ending(outcome=outcome, detail={e.MACHINE: "stopped"} if by_machine else None)

    def do_late(self, a: int, b: int, c: int) -> None:
        if self.gone:
            run = self.gone[a % len(self.gone)]
            facts = (
                Started(run, {}),
                Ended(run, e.Ending(outcome="failed")),
                Noticed(run, "x"),
                Resized(run, {"cpu": 1}),
                Adopted(run, {}),
            )
            self.reactor.runs.fact(facts[b % len(facts)], self.now)

    def do_silence(self, a: int, b: int, c: int) -> None:
        if self.running:
            run = sorted(self.running)[a % len(self.running)]
            self.reactor.runs.fact(Unreachable(run) if b % 2 else Reachable(run), self.now)

    def do_resize(self, a: int, b: int, c: int) -> None:
        if self.running:
            run = sorted(self.running)[a % len(self.running)]
            self.reactor.runs.fact(Resized(run, {"cpu": b % 3 + 1} if b % 4 else {}), self.now)

    def do_cancel(self, a: int, b: int, c: int) -> None:
        self._ask_to_stop(a, b, "cancelled")

    def do_delete_live(self, a: int, b: int, c: int) -> None:
        self._ask_to_stop(a, b, "deleted")

    def _ask_to_stop(self, a: int, b: int, reason: e.StopReason) -> None:
        name, job = self._task_name(a), JOBS[b % len(JOBS)]
        if name is None:
            return
        index = self.state.job_index.get(job)
        episode = None if index is None else self.state.tasks[name].episodes.get(index)
        events: list[e.Event] = []
        effects: list[Effect] = []
        if reason == "cancelled":
            events.append(e.CancelRequested(at=self.now, task=name, job=job))
        if episode is not None and episode.run:
            event, effect = self.reactor.runs.stop(self.state.open_runs[episode.run], reason, self.now)
            events, effects = [*events, event], [effect]
        self.reactor.tickets.ask(events, effects)

    def _task_name(self, a: int) -> str | None:
        names = list(self.state.tasks)
        return names[a % len(names)] if names else None

    def do_retry(self, a: int, b: int, c: int) -> None:
        name = self._task_name(a)
        if name is not None:
            self.reactor.tickets.ask(
                [e.RetryRequested(at=self.now, task=name, job=JOBS[b % len(JOBS)], request=f"r{c}")]
            )

    def do_force(self, a: int, b: int, c: int) -> None:
        name = self._task_name(a)
        if name is None or name not in {task.name for task in self.state.definition.tasks}:
            return
        decided = e.LaunchDecided(
            at=self.now,
            task=name,
            job=JOBS[b % len(JOBS)],
            episode=0,
            attempt=0,
            origin="forced",
            over_quota=True,
        )
        try:
            self.reactor.launch(decided)
        except CallerError:
            pass

    def do_pause(self, a: int, b: int, c: int) -> None:
        name = self._task_name(a)
        if name is not None:
            self.reactor.tickets.ask([(e.TaskResumed if b % 3 else e.TaskPaused)(at=self.now, task=name)])

    def do_quota(self, a: int, b: int, c: int) -> None:
        limits, launches = {"cpu": b % 8, "gpu": c % 8}, (None, 1, 2, 4)[c % 4]
        self.reactor.tickets.ask(
            [e.QuotaChanged(at=self.now, quota=QUOTAS[a % 2], limits=limits, launches=launches)]
        )

    def do_wait(self, a: int, b: int, c: int) -> None:
        self.now += (1 + a) * SECOND
        self.reactor.runs.stop_overdue(self.now)

    def do_flush(self, a: int, b: int, c: int) -> None:
        self.flush(1 + a)

    def do_crash(self, a: int, b: int, c: int) -> None:
        """Some of what waits becomes durable, without its effects; the rest was never written."""
        lost = list(self.undurable)[a % (len(self.undurable) + 1) :]
        written = sum(1 for step in lost if step.events)
        if written:
            del self.batches[-written:]
        self.undurable.clear()
        self.writing, self.listings, self.evaluating = [], [], []
        if c % 3 == 0:
            self.pipeline = self.definitions[b % len(self.definitions)]
        self.open()

    def do_work(self, a: int, b: int, c: int) -> None:
        """A while of ordinary life: everything that is due is done."""
        for _ in range(3):
            self.do_evaluate(1 + a % 5, b, c)
            self.collect()
            self.do_decide(1, 10, c)
            self.collect()
            self.flush(1000)
            while self.writing:
                self.do_written(0, 0, 1)
                self.collect()
            for _ in range(min(len(self.running), 4)):
                self.do_start(a, b, c)
                self.do_end(a, b, c)
                self.collect()


ACTIONS = tuple(sorted(name[3:] for name in vars(World) if name.startswith("do_")))


def refold(batches: list[tuple[e.Event, ...]]) -> State:
    """Return the state that the events alone give."""
    state, position = State(), 0
    for batch in batches:
        for event in batch:
            position += 1
            apply(state, position, event)
    return state
