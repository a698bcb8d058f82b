"""How commands are declared: `@command(example=…)`, the options that all share, and their types.

Where a command works and how it speaks (`-p`, `--log`, `--json`, `--fields`, `--color`) may be said before or
after the command's name; all of it ends up in one `Settings`, which every command gets first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from datatask.adapters.cli.settings import COLORS, Settings
from datatask.schema.errors import NotPossibleError
from datatask.schema.values import check_job

if TYPE_CHECKING:
    from datatask.adapters.history.moments import When

F = TypeVar("F", bound=Callable[..., Any])


def _kept(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that keeps an option's value in the settings, unless it was not given."""

    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False, ()):
            setattr(context.ensure_object(Settings), name, value)

    return keep


def _split(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    _kept("fields")(
        context, parameter, tuple(part.strip() for part in (value or "").split(",") if part.strip())
    )


def shared_options(*, hidden: bool) -> list[click.Option]:
    """Return fresh instances of the options that every command takes; `hidden` leaves the rarer out of help."""
    return [
        _option("pipeline", ["-p", "--pipeline"], hidden, "FILE[:NAME] or MODULE[:NAME]; else $DATATASK_PIPELINE, "
                "else ./pipeline.yaml, ./pipeline.py.", metavar="PIPELINE"),
        _option("log", ["--log"], hidden, "The log: a path or URL; else what the pipeline names, else "
                "$DATATASK_LOG, else .datatask/log.db beside the pipeline.", metavar="URL"),
        _option("with_archives", ["--with-archives"], hidden, "Read the log with what was archived of it.",
                is_flag=True),
        _option("json", ["--json"], False, "Print JSON.", is_flag=True),
        click.Option(["--fields"], expose_value=False, callback=_split, metavar="A,B",
                     help="Print only these fields."),
        _option("color", ["--color"], hidden, "Use colour; by default on a terminal, unless NO_COLOR is set.",
                type=click.Choice(COLORS)),
        _option("budget", ["--budget"], hidden, "Stop after this time; print the results so far and exit with 7.",
                type=click.FloatRange(min=0, min_open=True), metavar="S"),
        _option("debug", ["--debug"], True, "Print tracebacks of internal errors.", is_flag=True),
    ]  # fmt: skip


def _option(name: str, flags: list[str], hidden: bool, help: str, **more: Any) -> click.Option:
    return click.Option(flags, expose_value=False, callback=_kept(name), hidden=hidden, help=help, **more)


class Command(click.Command):
    """A command with the shared options and an example in its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        if not any("--json" in parameter.opts for parameter in self.params):
            self.params += shared_options(hidden=True)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        with formatter.section("Example"):
            for line in self.example.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


WITH_ARCHIVES = frozenset((
    "status", "trace", "why", "ls", "cat", "graph", "log", "runs", "lineage", "waiting", "query", "export", "replay",
    "verify", "log-anchor", "simulate",
))  # fmt: skip
"""Commands that read a log with its archives where that is asked for; the others refuse it."""


def command(
    name: str, *, example: str, ignore_unknown: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command of a function that takes the settings first and returns an exit code or None."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def call(context: click.Context, /, *args: Any, **kwargs: Any) -> Any:
            settings = context.ensure_object(Settings)
            if settings.with_archives and name not in WITH_ARCHIVES:
                raise NotPossibleError(
                    f"{name} does not read archives",
                    where="--with-archives",
                    remedy="leave it out here: it is for commands that read",
                )
            from datatask.adapters.cli.progress_bar import reporting

            with reporting(settings, name):
                return function(settings, *args, **kwargs)

        more = {"ignore_unknown_options": True} if ignore_unknown else {}
        return click.command(name, cls=Command, example=example, context_settings=more)(call)

    return decorate


def changing(function: F) -> F:
    """Add the options of every command that changes something."""
    for option in (
        click.option(
            "--exit-code", is_flag=True, help="With --dry-run: exit with 3 when something would change."
        ),
        click.option("--reason", default="", metavar="TEXT", help="Why, for the log."),
        click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing."),
    ):
        function = option(function)
    return function


waits = click.option("--wait", is_flag=True, help="Wait until it is done, however long that takes.")
"""The option of commands that else leave to the next engine what takes long."""


def WHEN(text: str) -> When:
    """A position, an ISO time, or an age."""
    from datatask.adapters.clock import SystemClock
    from datatask.adapters.history.moments import parse_when

    return parse_when(text, SystemClock().now())


def JOB(text: str) -> str:
    """A job id: what cannot be one is refused before anything is opened."""
    return check_job(text)
