"""The table of commands (name, module, one line of help), the group that loads them late, and how they are declared.

`datatask --help` prints from this table alone and imports nothing but click. A new command is a line here, a function decorated
with `@command(example=…)`, and a section in docs/cli.md. The shared options (`-p`, `--log`, `--json`, `--fields`, `--color`) may come
before or after the command's name; they fill one `Settings`, which every command gets first.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from datatask.adapters.cli.settings import COLORS, Settings
from datatask.adapters.cli.terminal import drop_output, output_trouble
from datatask.schema.errors import NotPossibleError
from datatask.schema.troubles import as_error
from datatask.schema.units import parse_span
from datatask.schema.values import check_job

if TYPE_CHECKING:
    from datatask.adapters.history.moments import When


class Entry(NamedTuple):
    """Where a command lives (module below adapters/cli, function), and what it does in one line."""

    module: str
    function: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Work": {
        "init": Entry("shell", "init", "Make a small example project."),
        "run": Entry("run", "run", "Work until all is quiet."),
        "update": Entry("run", "update", "Work one round."),
        "plan": Entry("plan", "plan", "Show what would be launched, and what changed in the definition."),
    },
    "Look": {
        "status": Entry("status", "status", "Count jobs per task and link."),
        "trace": Entry("status", "trace", "Show where jobs are, link by link."),
        "why": Entry("why", "why", "Explain why a job runs or does not."),
        "diff": Entry("diff", "diff", "Tell what differs between two runs of a job."),
        "ls": Entry("ls", "ls", "List the jobs of a set expression."),
        "cat": Entry("ls", "cat", "Print a job's value."),
        "logs": Entry("logs", "logs", "Show what a job's run printed."),
        "graph": Entry("plan", "graph", "Draw tasks and repositories."),
    },
    "Change": {
        "inject": Entry("inject", "inject", "Put values into a repository."),
        "rm": Entry("inject", "rm", "Delete jobs from repositories."),
        "launch": Entry("verbs", "launch", "Launch one job now."),
        "cancel": Entry("verbs", "cancel", "Cancel jobs of a task, running or waiting."),
        "accept": Entry("accept", "accept", "Take results that are out of date as good."),
        "retry": Entry("verbs", "retry", "Run jobs of a task again."),
        "pause": Entry("verbs", "pause", "Launch no more jobs of tasks."),
        "resume": Entry("verbs", "resume", "Launch jobs of paused tasks again."),
        "quota": Entry("verbs", "quota", "Change limits of a quota."),
        "undo": Entry("undo", "undo", "Take back changes that a person made."),
    },
    "Audit": {
        "log": Entry("log", "log", "Print the log's events."),
        "runs": Entry("runs", "runs", "List runs."),
        "lineage": Entry("runs", "lineage", "Show what values came from, and what came from them."),
        "waiting": Entry("why", "waiting", "Tell where the time went that jobs waited."),
        "query": Entry("log", "query", "Ask the log in SQL."),
        "export": Entry("log", "export_", "Write the log as Parquet, CSV, JSON lines or OpenLineage."),
        "replay": Entry("replay", "replay", "Fold a log from its beginning."),
        "simulate": Entry("simulate", "simulate", "Try a pipeline's future."),
        "verify": Entry("replay", "verify", "Check a log: file, chain, blobs, and all that follows."),
        "log-anchor": Entry("replay", "log_anchor", "Print the head's hash, to be noted elsewhere."),
    },
    "Keep": {
        "log-compact": Entry("maintenance", "log_compact", "Remove blobs that nothing refers to."),
        "redact": Entry("maintenance", "redact", "Remove what events hold, and keep the chain."),
        "backup": Entry("maintenance", "backup", "Copy a log whole, also while an engine writes."),
        "log-archive": Entry("maintenance", "log_archive", "Move the beginning of the log into an archive."),
    },
    "Help": {
        "enter": Entry("shell", "enter", "Open a shell in the folder of a job's run."),
        "shell": Entry("shell", "shell", "Open an IPython shell with the pipeline."),
        "doctor": Entry("doctor", "doctor", "Check the surroundings."),
        "completion": Entry("shell", "completion", "Print a script for completion in your shell."),
    },
}
COMMANDS: dict[str, Entry] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; `added` ones are there from the start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, then what was added."""
        return [*COMMANDS, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"datatask.adapters.cli.{entry.module}")
        command = getattr(module, entry.function)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown name say which ones are near."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS and name not in self.commands:
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no command {name}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; when the reader of its output has seen enough, it is done."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Caught before click, which would exit with 1.
            if not isinstance(output_trouble(), BrokenPipeError):
                raise as_error(error) from error
            drop_output()
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, section by section, without importing a command."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])
        if self.commands:
            with formatter.section("This pipeline's own"):
                formatter.write_dl(
                    [(name, command.get_short_help_str()) for name, command in self.commands.items()]
                )


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


class Span(click.FloatRange):
    """Seconds, or such as 90s, 5m, 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = parse_span(value) if isinstance(value, str) else None
        return super().convert(value if seconds is None else seconds, param, ctx)


def shared_options(*, hidden: bool) -> list[click.Option]:
    """Return fresh instances of the options that every command takes; `hidden` leaves the rarer out of help."""
    return [
        _option("pipeline", ["-p", "--pipeline"], hidden, "FILE[:NAME] or MODULE[:NAME]; else $DATATASK_PIPELINE, "
                "else ./pipeline.py.", metavar="PIPELINE"),
        _option("log", ["--log"], hidden, "The log: a path or URL; else what the pipeline names, else "
                "$DATATASK_LOG, else .datatask/log.db beside the pipeline.", metavar="URL"),
        click.Option(["--set"], expose_value=False, callback=_add, hidden=hidden, multiple=True, metavar="NAME=VALUE",
                     help="Give a parameter of the pipeline this value; may be repeated."),
        _option("with_archives", ["--with-archives"], hidden, "Read the log with what was archived of it.",
                is_flag=True),
        _option("json", ["--json"], False, "Print JSON.", is_flag=True),
        click.Option(["--fields"], expose_value=False, callback=_split, metavar="A,B",
                     help="Print only these fields."),
        _option("color", ["--color"], hidden, "Use colour; by default on a terminal, unless NO_COLOR is set.",
                type=click.Choice(COLORS)),
        _option("budget", ["--budget"], hidden, "Stop after this time; print the results so far and exit with 7.",
                type=Span(min=0, min_open=True), metavar="S"),
        _option("debug", ["--debug"], hidden, "Print tracebacks of internal errors.", is_flag=True),
    ]  # fmt: skip


def _add(context: click.Context, _: click.Parameter, value: tuple[str, ...]) -> None:
    settings = context.ensure_object(Settings)
    settings.values = (*settings.values, *value)


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

            code = reporting(settings, name, lambda: function(settings, *args, **kwargs))
            if settings.values and settings.loaded_pipeline is None:
                sys.stderr.write(f"note: --set changed nothing: {name} has not loaded the pipeline\n")
            return code

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


def selecting_events(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select events; the function gets `filters`, `since` and `until`."""

    @functools.wraps(function)
    def call(*args: Any, since: When | None, until: When | None, text: str, **kwargs: Any) -> Any:
        from datatask.engine.ports import Filters
        from datatask.schema.errors import unknown
        from datatask.schema.events import KINDS

        fields = ("kind", "task", "repository", "job", "run", "actor")
        filters = Filters(*[kwargs.pop(field) for field in fields])._replace(text=text)
        for kind in filters.kinds:
            if kind not in KINDS:
                raise unknown("kind of event", kind, KINDS)
        return function(*args, filters=filters, since=since, until=until, **kwargs)

    for option in (
        click.option("--grep", "text", default="", metavar="TEXT",
                     help="Only events that hold this text: in a name, or in their own fields as JSON."),
        click.option("--until", type=WHEN, metavar="WHEN", help="Only up to a position, time or age."),
        click.option("--since", type=WHEN, metavar="WHEN", help="Only from a position, time or age on."),
        click.option("--actor", multiple=True,
                     help="Only what this one caused: `engine`, a user, user@host, or all of `user@host: command`."),
        click.option("--run", type=click.IntRange(1), multiple=True, metavar="RUN", help="Only this run."),
        click.option("--kind", multiple=True, metavar="KIND", help="Only this kind of event."),
        click.option("--repository", multiple=True, metavar="REPO", help="Only this repository (id)."),
        click.option("--job", type=JOB, multiple=True, help="Only this job."),
        click.option("--task", multiple=True, metavar="TASK", help="Only this task."),
    ):  # fmt: skip
        call = option(call)
    return call


def choosing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says what of the pipeline is meant; the function gets it as `choice`."""

    @functools.wraps(function)
    def call(
        *args: Any, tasks: tuple[str, ...], jobs: str | None, until: tuple[str, ...], limit: int | None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        from datatask.adapters.wiring.choosing import Choice

        return function(*args, choice=Choice(tasks, jobs, until, limit), **kwargs)

    for option in (
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Launch at most N runs, retries included."),
        click.option("--until", multiple=True, metavar="TASK", help="Only this task and those that it needs."),
        click.option("--jobs", metavar="EXPR",
                     help="Only jobs of this set expression: repositories as for `ls`, names of jobs, with * and ?."),
        click.argument("tasks", nargs=-1, metavar="[TASK]..."),
    ):  # fmt: skip
        call = option(call)
    return call


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
