"""The consequence of a run's end: a retry and its time, or the end of the episode.

Pure. `chance` is a number in [0, 1) drawn outside; the resulting `not_before` is recorded, so replay needs no
chance. Trouble of the infrastructure (`lost`) and conflicts between runs (`conflicted`) have budgets of their own and
do not use up the user's. A lost run that the machine ended (`MACHINE`: a drained node, a stopped service) uses up none.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from datatask.engine.core.tasks import Episode, OpenRun, TaskState
from datatask.schema import events as e
from datatask.schema.definition import OUT_OF_MEMORY, RetryDef
from datatask.schema.events import MACHINE, Budget, Ending, EngineOpened, RunEnded
from datatask.schema.units import MINUTE, SECOND

INFRASTRUCTURE_FIRST = SECOND // 10
INFRASTRUCTURE_LONGEST = 5 * MINUTE
CONFLICT_FIRST = SECOND // 100
CONFLICT_LONGEST = 30 * SECOND
CONFLICTS_MAX = 1000
"""The most conflicts of a job in one episode; beyond it, its runs conflict with each other and the job is given up."""
MACHINE_LONGEST = MINUTE
MACHINES_MAX = 1000
"""The most lost runs of a job in one episode, even where the machine caused them."""
SHELL_SIGNAL = 128
"""Shells report a signal as this plus its number."""
SIGNALS = {number.value: number.name for number in signal.Signals}
KILLED_FOR_MEMORY = ": out of memory: "
"""Part of the error of a process that the kernel killed at its memory limit."""


class NextAttempt(NamedTuple):
    """Try again, not before this engine time, as this attempt, out of this budget, of which `spent` is used up then."""

    not_before: int
    attempt: int
    budget: Budget
    spent: int = 0


class NoRetry(NamedTuple):
    """The episode is over; `exhausted` names the budget that ran out, if one did."""

    exhausted: Budget | Literal[""] = ""
    attempts: int = 0


Verdict = NextAttempt | NoRetry

UNWANTED = ("cancelled", "deleted", "shutdown")
"""A run stopped for one of these reasons is not retried."""


def verdict_of(
    task: TaskState,
    run: OpenRun,
    ending: Ending | RunEnded,
    engine: EngineOpened | None,
    now: int,
    chance: float,
) -> Verdict:
    """Apply the task's retry policy to an open run that ends now."""
    retry = task.definition.retry
    return after_ending(
        retry,
        task.episodes[run.job],
        ending.outcome,
        now,
        chance,
        reasons=reasons_of(ending),
        stopped=run.stopping in UNWANTED,
        progress=ending.outcome == "lost" and made_progress(retry, run, engine, now),
        machine=by_machine(ending),
    )


def after_ending(
    retry: RetryDef,
    episode: Episode,
    outcome: str,
    now: int,
    chance: float,
    *,
    reasons: Collection[str] = (),
    stopped: bool = False,
    progress: bool = False,
    machine: bool = False,
) -> Verdict:
    """Return the next attempt or the end of the episode after its current run ended with `outcome`.

    `reasons` are those for which a policy may try again, besides the outcome; `progress` says that it made some, `machine` that it was lost by the machine's own doing.
    """
    attempt = episode.attempt
    if outcome == "lost":
        lost = 0 if progress else episode.lost_in_a_row
        if machine:
            if stopped or episode.infrastructure >= MACHINES_MAX:
                return NoRetry("" if stopped else "machine", attempt)
            before = 0 if progress else episode.infrastructure
            wait = backoff(INFRASTRUCTURE_FIRST, 3.0, MACHINE_LONGEST, before, 0.1, chance)
            return NextAttempt(now + wait, attempt + 1, "machine", lost)
        if stopped or lost >= retry.infrastructure_attempts:
            return NoRetry("" if stopped else "infrastructure", attempt)
        wait = backoff(INFRASTRUCTURE_FIRST, 3.0, INFRASTRUCTURE_LONGEST, lost, 0.1, chance)
        return NextAttempt(now + wait, attempt + 1, "infrastructure", lost + 1)
    if outcome == "conflicted":
        if stopped or episode.conflicts >= CONFLICTS_MAX:
            return NoRetry("" if stopped else "conflict", attempt)
        wait = backoff(CONFLICT_FIRST, 2.0, CONFLICT_LONGEST, episode.conflicts, 1.0, chance)
        return NextAttempt(now + wait, attempt + 1, "conflict", episode.conflicts + 1)
    if outcome not in retry.on and not any(reason in retry.on for reason in reasons):
        return NoRetry()
    spent = attempt - episode.infrastructure - episode.conflicts
    if spent >= retry.attempts:
        return NoRetry("user" if retry.attempts > 1 else "", attempt)
    wait = backoff(retry.first, retry.factor, retry.longest, spent - 1, retry.jitter, chance)
    return NextAttempt(now + wait, attempt + 1, "user")


def reasons_of(ending: Ending | RunEnded) -> list[str]:
    """Return the further causes, as in `RetryDef.on`, for which a failed run may be retried."""
    if ending.outcome != "failed":
        return []
    code, error, reasons = ending.exit_code, ending.error, []
    if code:
        reasons.append(f"exit {code}")
        if code - SHELL_SIGNAL in SIGNALS:
            reasons.append(SIGNALS[code - SHELL_SIGNAL])
    if error is not None and error.type not in ("ExitCode", "Signal"):
        reasons += [f"error {name}" for name in (error.type, *error.bases)]
    if error is not None and (
        error.type == "OOMKilled"
        or "error MemoryError" in reasons
        or (error.type == "Signal" and KILLED_FOR_MEMORY in error.message)
    ):
        reasons.append(OUT_OF_MEMORY)
    return reasons


def by_machine(ending: Ending | RunEnded) -> bool:
    """Whether the machine caused the loss of a run."""
    return ending.outcome == "lost" and MACHINE in (ending.detail or {})


def made_progress(retry: RetryDef, run: OpenRun, engine: EngineOpened | None, now: int) -> bool:
    """Whether a run had been running long enough before it was lost, by the times in the log.

    What happened to it while no engine was there is not known: a run of an earlier engine that was not found alive
    again counts until that engine's last sign of life. So an engine leaves a sign when it comes to that (`runs`).
    """
    if retry.progress is None or run.started_at is None:
        return False
    until = now
    if engine is not None and engine.epoch not in (run.epoch, run.adopted):
        until = engine.last_sign or 0
    return until - run.started_at >= retry.progress


def backoff(first: int, factor: float, longest: int, failures: int, jitter: float, chance: float) -> int:
    """Return the wait in nanoseconds after `failures` earlier ones, spread by +-jitter."""
    exponent = min(failures, 64)
    plain = min(float(longest), first * factor**exponent)
    return max(0, int(plain * (1 + jitter * (2 * chance - 1))))


def ending_events(
    run: OpenRun, job: str, ending: Ending, verdict: Verdict, retry: RetryDef, now: int
) -> list[e.Event]:
    """Return the events for a run's end and its consequence."""
    again = verdict if isinstance(verdict, NextAttempt) else None
    ended = RunEnded(
        at=now,
        task=run.task,
        job=job,
        run=run.run,
        cause=run.run,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        error=ending.error,
        started_at=ending.started_at,
        ended_at=ending.ended_at,
        usage=ending.usage,
        reads=ending.reads,
        where=ending.where or run.where,
        detail=ending.detail if again is None else _with_budget(ending.detail, again, retry),
        final=again is None,
    )
    if isinstance(verdict, NoRetry) and not verdict.exhausted:
        return [ended]
    about: dict[str, Any] = {"at": now, "task": run.task, "job": job, "run": run.run, "cause": run.run}
    if isinstance(verdict, NextAttempt):
        return [ended, e.RetryScheduled(**about, **verdict._asdict())]
    exhausted: Any = verdict.exhausted  # not "": it had returned
    return [ended, e.RetriesExhausted(**about, attempts=verdict.attempts, budget=exhausted)]


def _with_budget(detail: dict[str, str] | None, again: NextAttempt, retry: RetryDef) -> dict[str, str] | None:
    """Add the budget of the next attempt, unless it is the user's."""
    if again.budget == "user":
        return detail
    if again.budget == "machine":
        return {**(detail or {}), "again": "machine, which uses up no budget"}
    most = retry.infrastructure_attempts if again.budget == "infrastructure" else CONFLICTS_MAX
    return {**(detail or {}), "again": f"{again.budget} {again.spent} of {most}"}
