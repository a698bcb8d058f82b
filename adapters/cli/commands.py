"""The table of commands: name, where its code is, and one line of help; and the group that loads them late.

`datatask --help` prints from this table alone, so it stays fast and imports nothing but click. A new command
is a line here, a function decorated with `options.command`, and a section in docs/cli.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import click

from datatask.adapters.cli.terminal import drop_output, output_trouble
from datatask.schema.troubles import as_error


class Entry(NamedTuple):
    """Where a command lives (module below adapters/cli, function), and what it does in one line."""

    module: str
    function: str
    help: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Work": {
        "init": Entry("init", "init", "Make a small example project."),
        "run": Entry("run", "run", "Work until all is quiet."),
        "update": Entry("run", "update", "Work one round."),
        "plan": Entry("plan", "plan", "Show what would be launched, and what changed in the definition."),
    },
    "Look": {
        "status": Entry("status", "status", "Count jobs per task and link."),
        "trace": Entry("trace", "trace", "Show where jobs are, link by link."),
        "why": Entry("why", "why", "Explain why a job runs or does not."),
        "ls": Entry("ls", "ls", "List the jobs of a set expression."),
        "cat": Entry("ls", "cat", "Print a job's value."),
        "graph": Entry("graph", "graph", "Draw tasks and repositories."),
    },
    "Change": {
        "inject": Entry("inject", "inject", "Put values into a repository."),
        "rm": Entry("inject", "rm", "Delete jobs from repositories."),
        "launch": Entry("verbs", "launch", "Launch one job now."),
        "cancel": Entry("verbs", "cancel", "Cancel jobs of a task, running or waiting."),
        "retry": Entry("verbs", "retry", "Run jobs of a task again."),
        "pause": Entry("verbs", "pause", "Launch no more jobs of tasks."),
        "resume": Entry("verbs", "resume", "Launch jobs of paused tasks again."),
        "quota": Entry("quota", "quota", "Change limits of a quota."),
    },
    "Audit": {
        "log": Entry("log", "log", "Print the log's events."),
        "runs": Entry("runs", "runs", "List runs."),
        "lineage": Entry("lineage", "lineage", "Show what values came from, and what came from them."),
        "waiting": Entry("waiting", "waiting", "Tell where the time went that jobs waited."),
        "query": Entry("query", "query", "Ask the log in SQL."),
        "export": Entry("export", "export_", "Write the log as Parquet, CSV, JSON lines or OpenLineage."),
        "replay": Entry("replay", "replay", "Fold a log from its beginning."),
        "simulate": Entry("simulate", "simulate", "Try a pipeline's future."),
        "verify": Entry("verify", "verify", "Check a log: file, chain, blobs, and all that follows."),
        "log-anchor": Entry("verify", "log_anchor", "Print the head's hash, to be noted elsewhere."),
        "log-compact": Entry("maintenance", "log_compact", "Remove blobs that nothing refers to."),
        "redact": Entry("maintenance", "redact", "Remove what events hold, and keep the chain."),
        "backup": Entry("maintenance", "backup", "Copy a log whole, also while an engine writes."),
    },
    "Keep": {
        "log-archive": Entry("maintenance", "log_archive", "Move the beginning of the log into an archive."),
    },
    "Help": {
        "enter": Entry("enter", "enter", "Open a shell in the folder of a job's run."),
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
