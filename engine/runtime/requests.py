"""Requests of people turned into events: `answer(runtime, request) -> Reply`.

The same for a request that came through the inbox and for one made in this process. A request that was
answered before (its id is in the log) is not carried out again. What cannot be done is refused with the reason
and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from datatask.engine.core.decide import constraint_on, own_entries
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.redaction import removed
from datatask.engine.core.tasks import TaskState
from datatask.engine.runtime.loop import Runtime
from datatask.schema import errors
from datatask.schema import events as e
from datatask.schema import messages as r
from datatask.schema.definition import ViewDef
from datatask.schema.errors import DatataskError, InternalError, NotPossibleError, unknown
from datatask.schema.messages import Write
from datatask.schema.troubles import trouble
from datatask.schema.units import NANO
from datatask.schema.values import check_job

logger = logging.getLogger("datatask.engine")


async def answer(runtime: Runtime, request: r.AnyRequest) -> r.Reply:
    """Carry out a request; the reply names the last position that it led to, or why it was refused."""
    state = runtime.state
    if isinstance(request, r.Ping):
        return r.Reply(id=request.id, position=runtime.log.head, services=runtime.services.health())
    if request.id in state.requests:
        await runtime.flushed()
        return r.Reply(id=request.id, position=state.requests[request.id])
    try:
        if isinstance(request, r.Redact):
            ticket = await _redact(runtime, request)
        else:
            ticket = _carried_out(runtime, request)
        runtime.pump()
        position, count = await runtime.finished(ticket)
        if isinstance(request, r.Redact):
            runtime.contents.at_hand.forget(request.positions)
    except DatataskError as error:
        refusal = r.Refusal(
            code=error.code,
            what=error.what,
            where=error.where,
            remedy=error.remedy,
            exit_code=error.exit_code,
        )
        return r.Reply(id=request.id, refusal=refusal)
    return r.Reply(id=request.id, position=position or None, count=count)


def _carried_out(runtime: Runtime, request: r.AnyRequest) -> int:
    """Turn a request into events; one that trips over our own code, or the machine, is refused, if nothing has come of it yet."""
    before = runtime.state.position
    try:
        return _TURN_INTO[type(request)](runtime, request)
    except DatataskError:
        raise
    except Exception as error:
        logger.exception("the request %s cannot be carried out", request.id)
        broken = trouble(error, f"request {request.id}") or InternalError(
            f"the request {request.id} cannot be carried out: {type(error).__name__}: {error}"
        )
        if runtime.state.position != before:
            runtime.fail(broken)  # half of it is in the state, and will not be in the log
        raise broken from error


def _put(runtime: Runtime, request: r.PutValues) -> int:
    _known_leaf(runtime, request.repository)
    for item in request.items:
        if item.digest is not None:
            runtime.log.blobs.path(
                item.digest
            )  # one that is not there would be found out when a job reads it
    writes = [
        Write(
            repository=request.repository,
            job=check_job(item.job),
            value=item.value,
            digest=item.digest,
            size=item.size,
        )
        for item in request.items
    ]
    return _change(runtime, request, writes)


def _delete(runtime: Runtime, request: r.DeleteValues) -> int:
    leaf = _known_leaf(runtime, request.repository)
    rule = leaf.definition.derived
    jobs = [check_job(job) for job in request.jobs]
    if isinstance(rule, ViewDef):
        if rule.view != "live":
            raise NotPossibleError(f"{leaf.id} is a view", remedy="use `retry` to open the job anew")
        return _stop(runtime, request, runtime.state.tasks[rule.task], jobs, "deleted")
    return _change(runtime, request, [Write(repository=leaf.id, job=job, op="delete") for job in jobs])


def _change(runtime: Runtime, request: r.Request, writes: list[Write]) -> int:
    return runtime.reactor.tickets.change(
        writes,
        runtime.now(),
        origin="injected",
        actor=request.actor,
        reason=request.reason,
        request=request.id,
    )


def _launch(runtime: Runtime, request: r.LaunchJob) -> int:
    task = _known_task(runtime, request.task)
    state, job = runtime.state, check_job(request.job)
    index = state.job_index.get(job)
    if not request.force and (index is None or index not in task.queue):
        raise NotPossibleError(
            "Task is not ready to launch - use -f to force",
            where=f"{request.task} {job}",
            remedy=f"see `datatask why {request.task} {job}`",
        )
    if not request.over_quota:
        _check_quota(runtime, task, index)
    if task.name in runtime.reactor.unavailable:
        raise NotPossibleError(
            "its runner has not finished recovery", where=task.name, remedy="try again in a moment"
        )
    decided = e.LaunchDecided(
        at=runtime.now(),
        actor=request.actor,
        task=task.name,
        job=job,
        episode=0,
        attempt=0,
        origin="forced" if request.force else "direct",
        meta=request.meta,
        over_quota=request.over_quota,
        reason=request.reason,
        request=request.id,
    )
    return runtime.reactor.launch(decided)


def _check_quota(runtime: Runtime, task: TaskState, job: int | None) -> None:
    constraint = constraint_on(runtime.state, task, runtime.now(), job)
    if constraint:
        raise NotPossibleError(
            f"one more launch does not fit ({constraint.text})",
            where=task.name,
            remedy="wait, raise the limit, or launch with --over-quota",
        )


def _cancel(runtime: Runtime, request: r.CancelJobs) -> int:
    task = _known_task(runtime, request.task)
    return _stop(runtime, request, task, [check_job(job) for job in request.jobs], "cancelled")


def _stop(
    runtime: Runtime, request: r.Request, task: TaskState, jobs: Iterable[str], reason: e.StopReason
) -> int:
    state, now = runtime.state, runtime.now()
    events: list[e.Event] = []
    effects = []
    for job in jobs:
        index = state.job_index.get(job)
        if index is None:
            continue
        episode = task.episodes.get(index)
        waiting = index in task.queue or index in task.awaiting or (episode is not None and not episode.run)
        cause = None
        if reason == "cancelled" and (waiting or episode is not None):
            cause = state.position + 1 + len(events)
            events.append(
                e.CancelRequested(
                    at=now,
                    actor=request.actor,
                    task=task.name,
                    job=job,
                    reason=request.reason,
                    request=request.id,
                )
            )
        if episode is not None and episode.run:
            who: dict[str, object] = {"actor": request.actor, "why": request.reason, "request": request.id}
            if cause is not None:
                who["cause"] = cause
            event, effect = runtime.reactor.runs.stop(state.open_runs[episode.run], reason, now, **who)
            events.append(event)
            effects.append(effect)
    return runtime.reactor.tickets.ask(events, effects)


def _retry(runtime: Runtime, request: r.RetryJobs) -> int:
    task = _known_task(runtime, request.task)
    reactor, now = runtime.reactor, runtime.now()
    writes: list[Write] = []
    events: list[e.Event] = []
    for job in request.jobs:
        index = runtime.state.job_index.get(check_job(job))
        episode = None if index is None else task.episodes.get(index)
        if index is None or (episode is not None and episode.run):
            raise NotPossibleError(
                f"{job} has no ended run of {task.name} to retry" if index is None else f"{job} is running",
                where=f"{task.name} {job}",
                remedy=f"see `datatask why {task.name} {job}`",
            )
        writes += [
            Write(repository=leaf, job=job, op="delete") for leaf in own_entries(runtime.state, task, job)
        ]
        events.append(
            e.RetryRequested(
                at=now,
                actor=request.actor,
                task=task.name,
                job=job,
                reason=request.reason,
                request=request.id,
            )
        )
    return reactor.tickets.change(
        writes,
        now,
        origin="injected",
        actor=request.actor,
        reason=request.reason,
        request=request.id,
        asked=events,
        causes={event.job or "": index for index, event in enumerate(events)},
    )


def _accept(runtime: Runtime, request: r.AcceptResults) -> int:
    task, state = _known_task(runtime, request.task), runtime.state
    events: list[e.Event] = []
    for job in request.jobs:
        index = state.job_index.get(check_job(job))
        if index is None or not state.masks[index] & task.succeeded.bit:
            raise NotPossibleError(
                f"{job} has no result of {task.name}",
                remedy=f"`datatask ls '{task.name}.succeeded'` lists them",
            )
        events.append(
            e.ResultAccepted(
                at=runtime.now(),
                actor=request.actor,
                task=task.name,
                job=job,
                seen=min(request.seen, state.position),
                withdrawn=request.withdrawn,
                reason=request.reason,
                request=request.id,
            )
        )
    return runtime.reactor.tickets.ask(events)


def _pause(runtime: Runtime, request: r.PauseTask) -> int:
    return _mark_task(runtime, request, e.TaskPaused)


def _resume(runtime: Runtime, request: r.ResumeTask) -> int:
    return _mark_task(runtime, request, e.TaskResumed)


def _mark_task(
    runtime: Runtime, request: r.PauseTask | r.ResumeTask, kind: type[e.TaskPaused] | type[e.TaskResumed]
) -> int:
    task = _known_task(runtime, request.task)
    if bool(task.paused) is (kind is e.TaskPaused):
        return runtime.reactor.tickets.ask([])
    event = kind(
        at=runtime.now(), actor=request.actor, task=task.name, reason=request.reason, request=request.id
    )
    return runtime.reactor.tickets.ask([event])


def _quota(runtime: Runtime, request: r.ChangeQuota) -> int:
    quota = runtime.state.quotas.get(request.quota)
    if quota is None:
        raise unknown("quota", request.quota, runtime.state.quotas)
    for name, known in quota.definition.identities.items():
        if request.limits.get(name, 0) > len(known) * NANO:
            raise NotPossibleError(
                f"{request.quota} has {len(known)} {name}: {', '.join(known[:10])}",
                remedy="list more of them in the pipeline's quota",
            )
    event = e.QuotaChanged(
        at=runtime.now(),
        actor=request.actor,
        quota=request.quota,
        limits=request.limits,
        launches=request.launches,
        reason=request.reason,
        request=request.id,
    )
    return runtime.reactor.tickets.ask([event])


def _accept_loss(runtime: Runtime, request: r.AcceptLoss) -> int:
    leaf = _known_leaf(runtime, request.repository)
    if not leaf.held:
        raise NotPossibleError(
            f"{leaf.id} is not held", remedy="`datatask status` lists the held repositories"
        )
    runtime.accepted[leaf.id] = r.Who(request.actor, request.reason, request.id)
    runtime.relist(leaf.id)
    return runtime.reactor.tickets.ask([])


async def _redact(runtime: Runtime, request: r.Redact) -> int:
    """The log takes the payloads out in the same transaction; what this engine keeps in memory of them goes too."""
    await runtime.flushed()
    positions = list(dict.fromkeys(request.positions))
    found = await runtime.log.fetch(positions)
    events = removed(
        runtime.state,
        list(zip(positions, found, strict=True)),
        r.Who(request.actor, request.reason, request.id),
        runtime.now(),
    )
    return runtime.reactor.tickets.ask(events)


def _known_task(runtime: Runtime, name: str) -> TaskState:
    task = runtime.state.tasks.get(name)
    if task is None:
        raise unknown("task", name, runtime.state.tasks)
    return task


def _known_leaf(runtime: Runtime, name: str) -> LeafState:
    leaf = runtime.state.leaves.get(name)
    if leaf is None:
        raise unknown("repository", name, runtime.state.leaves)
    return leaf


_TURN_INTO: dict[type[r.Request], Callable[..., int]] = {
    r.PutValues: _put,
    r.DeleteValues: _delete,
    r.LaunchJob: _launch,
    r.CancelJobs: _cancel,
    r.RetryJobs: _retry,
    r.AcceptResults: _accept,
    r.PauseTask: _pause,
    r.ResumeTask: _resume,
    r.ChangeQuota: _quota,
    r.AcceptLoss: _accept_loss,
}


def error_of(refusal: r.Refusal) -> Exception:
    """Return the error that a refusal tells of."""
    kind = errors.error_with(refusal.code)
    return kind(refusal.what, where=refusal.where, remedy=refusal.remedy)
