"""A budget ends a command with exit code 7, also where the exception that ends it was swallowed."""

from __future__ import annotations

import signal
import time

import pytest

from datatask.adapters.cli.progress_bar import reporting
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SpentError
from datatask.schema.errors import TimeLimitError


def test_a_command_that_swallows_the_end_of_its_budget_ends_with_a_time_out() -> None:
    """As Python itself does with what is raised in a finalizer."""
    swallowed = False
    with pytest.raises(TimeLimitError), reporting(Settings(budget=0.01, json=True), "status"):
        try:
            time.sleep(5)
        except SpentError:
            swallowed = True
    assert swallowed
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
