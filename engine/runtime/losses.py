"""Runs that were lost by the doing of their machine, node or service: told in one line a task and reason, not one a run.

In: what runners tell. Out: a line on the log of messages the first time. Each run has its own words in `runs` and `why`.
"""

from __future__ import annotations

import logging

from datatask.engine.core.retry import by_machine
from datatask.engine.core.state import State
from datatask.schema.events import MACHINE
from datatask.schema.messages import Ended, Fact

logger = logging.getLogger("datatask.engine")


class Losses:
    """Knows what this engine has told."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._told: set[tuple[str, str]] = set()

    def see(self, fact: Fact) -> None:
        """Tell of the first such end of its task, before the state has taken it."""
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
