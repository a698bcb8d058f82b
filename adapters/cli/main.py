"""The command line: `datatask …`, and the same for a script that ends in `datatask.main(pipeline)`.

Arguments in, an exit code out. Every error leaves as one line on stderr (or one JSON object on stdout with
`--json`) and the exit code of its class; a traceback is for our own mistakes only, and only with `--debug`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.commands import LazyGroup
from datatask.adapters.cli.options import shared_options
from datatask.adapters.cli.settings import Settings
from datatask.schema.errors import CallerError, DatataskError, InternalError

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

INTERRUPTED = 130
BROKEN = 70
CLOSED = "a function closed files that are not its own: the engine cannot go on; start it again"
Instrument = Callable[[Any], None]


def main(pipeline: Pipeline | None = None, instrument: Instrument | None = None) -> None:
    """Run the command line and exit; with a pipeline given, for that one.

    `instrument(subparsers)` may add verbs of its own as with pydatatask: argparse sub-parsers whose `func`
    default is called with the pipeline and the parsed arguments.
    """
    from datatask.adapters.cli.loading import is_loading

    if is_loading():
        return  # a pipeline file is being loaded by the command line: it is in charge already
    program = Path(sys.argv[0])
    settings = Settings(debug=bool(os.environ.get("DATATASK_DEBUG")))
    if pipeline is not None:
        settings.given = pipeline
        settings.given_folder = (program.parent if program.is_file() else Path.cwd()).absolute()
        settings.program = program.name
    code = invoke(sys.argv[1:], settings, instrument)
    if code == BROKEN:
        os._exit(code)  # threads of ours wait for files that are gone; Python would wait for them
    sys.exit(code)


def invoke(
    arguments: Sequence[str], settings: Settings | None = None, instrument: Instrument | None = None
) -> int:
    """Run one command and return its exit code."""
    settings = settings or Settings(debug=bool(os.environ.get("DATATASK_DEBUG")))
    try:
        group = make_group(settings, instrument)
        result = group.main(
            list(arguments) or ["--help"], prog_name=settings.program, standalone_mode=False, obj=settings
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        exec(
            ""
        )  # one that passed through an `exec` on its way, as of an import, CPython would die of at its end
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; what Python would flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.ClickException as error:
        return _failed(_usage(error), settings, arguments)
    except DatataskError as error:
        return _failed(error, settings, arguments)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            click.echo(f"datatask: {CLOSED}", err=True)
            return BROKEN
        if settings.debug:
            import traceback

            traceback.print_exc()
        return _failed(_internal(error), settings, arguments)


def make_group(settings: Settings, instrument: Instrument | None = None) -> click.Group:
    """Return the command line as a click group."""
    import datatask

    group = LazyGroup(
        name="datatask",
        help="Run data pipelines, and ask what happened in them.",
        epilog=f"Example: {settings.program} run   (each command has examples: {settings.program} COMMAND --help)",
        params=[parameter for parameter in shared_options(hidden=False) if _fits(parameter, settings)],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    click.version_option(datatask.__version__, prog_name="datatask")(group)
    if instrument is not None and settings.given is not None:
        from datatask.adapters.cli.instruments import add_verbs

        add_verbs(group, instrument, settings.given)
    return group


def _fits(parameter: click.Parameter, settings: Settings) -> bool:
    """A script has its pipeline, so it takes no `-p`."""
    return settings.given is None or "--pipeline" not in parameter.opts


def _usage(error: click.ClickException) -> CallerError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "datatask"
    what = error.format_message().strip().rstrip(".")
    return CallerError(what[:1].lower() + what[1:], remedy=f"see `{path} --help`")


def _internal(error: Exception) -> InternalError:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return InternalError(
        f"internal error: {text[:500]}", remedy="please report it, with the traceback that --debug shows"
    )


def _failed(error: DatataskError, settings: Settings, arguments: Sequence[str]) -> int:
    from datatask.adapters.cli.output import encode, error_document, error_line

    if settings.json or "--json" in arguments:
        click.echo(encode(error_document(error)))
    else:
        click.echo(error_line(error), err=True)
    return error.exit_code
