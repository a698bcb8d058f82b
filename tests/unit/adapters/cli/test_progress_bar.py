"""A budget ends a command with exit code 7, also where the exception that ends it was swallowed."""

from __future__ import annotations

import signal
import time

import pytest

from datatask.adapters.cli.progress_bar import SPENT, reporting
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SpentError
from datatask.schema.errors import TimeLimitError


def test_a_command_that_swallows_the_end_of_its_budget_ends_with_a_time_out() -> None:
    """As Python itself does with what is raised in a finalizer."""
    swallowed = []

    def work() -> int:
        try:
            time.sleep(5)
        except SpentError as error:
            swallowed.append(error)
        return 0

    with pytest.raises(TimeLimitError):
        reporting(Settings(budget=0.01, json=True), "status", work)
    assert swallowed
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_results_that_were_had_by_then_are_its_answer() -> None:
    def work() -> int:
        try:
            time.sleep(5)
        except SpentError:
            return SPENT
        return 0

    assert reporting(Settings(budget=0.01, json=True), "simulate", work) == SPENT
