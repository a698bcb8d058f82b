"""Verbs that a script adds by pydatatask's `instrument(subparsers)`: argparse in, click commands out.

The script registers sub-parsers on a parser of ours; each becomes a command that hands its arguments to that
parser and calls its `func` default with the pipeline, inside the open pipeline where it is a coroutine.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from datatask.schema.errors import InvalidValueError

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline


def add_verbs(group: click.Group, instrument: Callable[[Any], None], pipeline: Pipeline) -> None:
    """Let the script register its verbs and add each to the group."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    verbs = parser.add_subparsers(dest=argparse.SUPPRESS, required=True)
    instrument(verbs)
    for name, verb in verbs.choices.items():
        group.add_command(_command(name, verb, pipeline))


def _command(name: str, verb: argparse.ArgumentParser, pipeline: Pipeline) -> click.Command:
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def call(arguments: tuple[str, ...]) -> None:
        values = vars(verb.parse_args(list(arguments)))
        func = values.pop("func", None)
        if func is None:
            raise InvalidValueError(
                f"the verb {name} has no func", remedy="call set_defaults(func=…) on its sub-parser"
            )
        result = func(pipeline, **values)
        if inspect.iscoroutine(result):
            asyncio.run(_inside(pipeline, result))

    return click.command(
        name,
        short_help=verb.description or "",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )(call)


async def _inside(pipeline: Pipeline, result: Any) -> None:
    async with pipeline:
        await result
