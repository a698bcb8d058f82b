"""Verbs that a script adds by pydatatask's `instrument(subparsers)`."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from datatask import CallerError, InProcessMetadataRepository, InProcessSyncTask, Pipeline, Session
from datatask.adapters.cli.main import add_verbs
from datatask.testing import memory_log

told: list[tuple[Any, ...]] = []


async def inside(pipeline: Pipeline, job: str, loud: bool) -> None:
    """Note what the open pipeline is asked."""
    told.append((job, loud, pipeline.runtime.state.pipeline))


def plain(pipeline: Pipeline) -> None:
    """Note the pipeline, which is not open."""
    told.append((pipeline.name,))


def instrument(verbs: Any) -> None:
    """Add three verbs, one of them without a function."""
    shout = verbs.add_parser("shout", description="Shout a job.")
    shout.add_argument("job")
    shout.add_argument("--loud", action="store_true")
    shout.set_defaults(func=inside)
    verbs.add_parser("plain").set_defaults(func=plain)
    verbs.add_parser("empty")


@pytest.fixture
def group() -> click.Group:
    """A group with the script's verbs, over a small pipeline."""

    async def body(job: str) -> None:
        """Do nothing."""

    task = InProcessSyncTask("task", InProcessMetadataRepository(), func=body)
    task.link("source", InProcessMetadataRepository(), is_input=True)
    made = click.Group("script")
    add_verbs(made, instrument, Pipeline([task], Session(), name="mine", log=memory_log("mine")))
    told.clear()
    return made


def test_a_coroutine_verb_runs_inside_the_open_pipeline(group: click.Group) -> None:
    """With the arguments that its parser made."""
    result = CliRunner().invoke(group, ["shout", "a", "--loud"], catch_exceptions=False)
    assert (result.exit_code, told) == (0, [("a", True, "mine")])


def test_a_plain_verb_gets_the_pipeline(group: click.Group) -> None:
    """Not opened for it."""
    result = CliRunner().invoke(group, ["plain"], catch_exceptions=False)
    assert (result.exit_code, told) == (0, [("mine",)])


def test_a_verb_without_a_function_says_what_to_do(group: click.Group) -> None:
    """By its name."""
    with pytest.raises(CallerError, match="the verb empty has no func"):
        CliRunner().invoke(group, ["empty"], catch_exceptions=False)
