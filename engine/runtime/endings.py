"""What the engine makes of the ends that runners report, before the reactor has them.

In come facts. A failure over a damaged value is no fault of the job's and becomes an end of its own kind; runs that were lost
by the doing of their machine, node or service are logged. Each run has its own words in `runs` and `why`.
"""

from __future__ import annotations

import logging

import msgspec

from datatask.engine.core.retry import by_machine
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.errors import LogDamagedError, ValueDamagedError
from datatask.schema.events import MACHINE
from datatask.schema.messages import Ended, Fact

logger = logging.getLogger("datatask.engine")


class Losses:
    """Knows which losses by the doing of a machine this engine has logged: one line a task and reason, not one a run."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._told: set[tuple[str, str]] = set()

    def see(self, fact: Fact) -> None:
        """Log the first such end of its task, before the state has taken it."""
        if not isinstance(fact, Ended) or not by_machine(fact.ending):
            return
        run, ending = self._state.open_runs.get(fact.run), fact.ending
        what = (run.task if run is not None else "", (ending.detail or {})[MACHINE])
        if run is None or run.stopping is not None or what in self._told:
            return
        self._told.add(what)
        logger.warning(
            "%s: run %d is run again after a pause, which grows, and so are others that end so; they use up no attempt: %s",
            run.task,
            run.run,
            "" if ending.error is None else ending.error.message,
        )


def judged(fact: Ended, *, log_damaged: bool) -> Ended:
    """Take a failure over a damaged value for what it is: no fault of the job's.

    As with an input: `lost` where it is the log that is damaged, and run when that is sound again; else `refused`.
    """
    error = fact.ending.error
    outcome: e.Outcome
    if error is None or fact.ending.outcome not in ("failed", "refused"):
        return fact
    if error.type == LogDamagedError.__name__ and log_damaged:
        outcome = "lost"
    elif error.type == ValueDamagedError.__name__:
        outcome = "refused"
    else:
        return fact
    return fact._replace(ending=msgspec.structs.replace(fact.ending, outcome=outcome))
