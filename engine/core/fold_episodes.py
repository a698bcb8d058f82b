"""Events into state: how the episodes of jobs go on, from a launch to the end of a run, a retry or a cancellation.

In come the events of runs, and what people ask for jobs; out go open runs, claims, quotas in use, and the views of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datatask.engine.core.cells import get_at, put_at
from datatask.engine.core.state import State
from datatask.engine.core.tasks import CONTENDING, Episode, OpenRun, TaskState
from datatask.schema import events as e

Handler = Callable[[State, int, Any], None]


def _launch_decided(state: State, position: int, event: e.LaunchDecided) -> None:
    task = state.tasks[event.task]
    job = state.intern(event.job)
    state.set_claim(task, job, True)  # first: what the launch itself changes is no new occasion
    episode = task.episodes.get(job)
    opens = episode is None
    if episode is None:
        if job in task.queue:
            episode = Episode(task.queue.position(job), task.queue.priority(job))
        else:
            episode = Episode(position, event.priority)
            if job not in task.awaiting:
                put_at(task.episode_count, job, get_at(task.episode_count, job) + 1)
        state.dequeue(task, job)
        task.episodes[job] = episode
    episode.run, episode.attempt, episode.not_before = position, event.attempt, None
    if episode.conflicts >= CONTENDING:
        task.contending += 1
    if opens:
        state.clear_outcomes(task, job, position)
    put_at(task.last_run, job, position)
    task.open_runs += 1
    quota = task.definition.quota
    state.open_runs[position] = OpenRun(
        position,
        event.task,
        job,
        event.episode,
        event.attempt,
        event.at,
        event.origin,
        event.resources,
        quota,
        event.inputs,
        event.meta,
        state.engine.epoch if state.engine is not None else 0,
        event.identities,
    )
    if quota is not None:
        state.quotas[quota].take(event.resources, event.at)
        if event.identities:
            state.quotas[quota].hold(event.identities)
    state.flip(task.live, job, True, position)


def _run_started(state: State, position: int, event: e.RunStarted) -> None:
    run = state.open_runs[event.run]
    run.handle, run.where = event.handle, event.where
    run.started_at = event.at  # engine time: what other clocks tell decides nothing
    run.unreachable = False


def _run_adopted(state: State, position: int, event: e.RunAdopted) -> None:
    run = state.open_runs[event.run]
    run.handle, run.where = event.handle or run.handle, event.where or run.where
    run.started_at = run.started_at or event.at
    run.adopted = state.engine.epoch if state.engine is not None else 0
    run.unreachable = False


def _run_unreachable(state: State, position: int, event: e.RunUnreachable) -> None:
    state.open_runs[event.run].unreachable = True


def _run_reachable(state: State, position: int, event: e.RunReachable) -> None:
    state.open_runs[event.run].unreachable = False


def _run_resized(state: State, position: int, event: e.RunResized) -> None:
    run = state.open_runs[event.run]
    if run.quota is not None:
        state.quotas[run.quota].free(run.resources)
        state.quotas[run.quota].use(event.resources)
    run.resources = event.resources


def _stop_decided(state: State, position: int, event: e.StopDecided) -> None:
    run = state.open_runs[event.run]
    if run.settling is None:  # the fact that ended the process wins over a stop that raced it
        run.stopping = run.stopping or event.reason


def _run_ended(state: State, position: int, event: e.RunEnded) -> None:
    run = state.open_runs.pop(event.run)
    for key, intent in run.intents.items():
        if state.intents.get(key) is intent:
            del state.intents[key]
    task, job = state.tasks[run.task], run.job
    task.open_runs -= 1
    if run.quota is not None:
        state.quotas[run.quota].free(run.resources)
        if run.identities:
            state.quotas[run.quota].release(run.identities)
    episode = task.episodes[job]
    episode.run = 0
    if episode.conflicts >= CONTENDING:
        task.contending -= 1
    state.flip(task.live, job, False, position)
    if not event.final:
        return
    anew = event.outcome == "cancelled" and run.stopping in ("deleted", "shutdown")
    repeat = task.definition.repeat and event.outcome != "cancelled"
    _end_episode(state, task, job, position, anew or repeat)
    view = _VIEW_OF.get(event.outcome)
    if view is not None:
        state.flip(getattr(task, view), job, True, position)


_VIEW_OF = {
    "succeeded": "succeeded",
    "failed": "failed",
    "timed_out": "failed",
    "lost": "failed",
    "refused": "failed",
    "conflicted": "failed",
}


def _end_episode(state: State, task: TaskState, job: int, position: int, anew: bool) -> None:
    task.episodes.pop(job, None)
    holds = task.condition.test(state.masks[job])
    if not holds or anew:
        state.set_claim(task, job, False)
    if holds and anew:
        state.open_episode(task, job, position)


def _retry_scheduled(state: State, position: int, event: e.RetryScheduled) -> None:
    task = state.tasks[event.task]
    job = state.intern(event.job)
    episode = task.episodes.get(job)
    if episode is None:
        return
    episode.not_before = event.not_before
    if event.budget == "infrastructure":
        episode.infrastructure += 1
        if event.spent:
            episode.forgiven = episode.infrastructure - event.spent
    elif event.budget == "machine":
        episode.infrastructure += 1
        episode.forgiven = episode.infrastructure - event.spent
    elif event.budget == "conflict":
        episode.conflicts += 1
    task.schedule(job, episode)
    if not task.condition.test(state.masks[job]):
        state.release(task, job)


def _cancel_requested(state: State, position: int, event: e.CancelRequested) -> None:
    task = state.tasks[event.task]
    job = state.intern(event.job)
    episode = task.episodes.get(job)
    if episode is not None:
        if not episode.run:
            del task.episodes[job]
            if not task.condition.test(state.masks[job]):
                state.set_claim(task, job, False)
    elif job in task.queue or job in task.awaiting:
        state.dequeue(task, job)
        state.set_claim(task, job, True)


def _retry_requested(state: State, position: int, event: e.RetryRequested) -> None:
    task = state.tasks[event.task]
    job = state.intern(event.job)
    episode = task.episodes.get(job)
    if (episode is not None and episode.run) or job in task.queue or job in task.awaiting:
        return
    task.episodes.pop(job, None)
    state.set_claim(task, job, False)
    if task.condition.test(state.masks[job]):
        state.open_episode(task, job, position)


EPISODES: dict[type[e.Event], Handler] = {
    e.LaunchDecided: _launch_decided,
    e.RunStarted: _run_started,
    e.RunAdopted: _run_adopted,
    e.RunUnreachable: _run_unreachable,
    e.RunReachable: _run_reachable,
    e.RunResized: _run_resized,
    e.StopDecided: _stop_decided,
    e.RunEnded: _run_ended,
    e.RetryScheduled: _retry_scheduled,
    e.CancelRequested: _cancel_requested,
    e.RetryRequested: _retry_requested,
}
