"""The command line: `datatask …`, and the same for a script that ends in `datatask.main(pipeline)`.

Arguments in, an exit code out. Every error leaves as one line on stderr (or one JSON object on stdout with `--json`) and the exit
code of its class; a traceback is for our own mistakes only, and only with `--debug`. What the machine refuses (a full disk, no
memory, a closed stdout) is no mistake of ours: schema/troubles.py has its words. A script may add verbs by pydatatask's
`instrument(subparsers)`: each sub-parser becomes a command that calls its `func` with the pipeline, open where it is a coroutine.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.commands import COMMANDS, LazyGroup, shared_options
from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.terminal import (  # fmt: skip
    INPUT,
    catch_outside,
    drop_output,
    input_is_closed,
    line_of,
    output_error,
    output_trouble,
    prepare_streams,
    quiet_threads,
    say,
)
from datatask.adapters.wiring.last_bound import guard
from datatask.schema.errors import CallerError, DatataskError, InternalError, InvalidValueError, LogError
from datatask.schema.troubles import trouble
from datatask.schema.version import VERSION

if TYPE_CHECKING:
    import argparse

    from datatask.adapters.wiring.pipeline import Pipeline


INTERRUPTED = 130
BROKEN = 70
END_SECONDS = 3.0
"""Python waits so long for threads that an error, or a pipeline's end, has left without anyone to end them."""

CLOSED = "a function closed files that are not its own: the engine cannot go on; start it again"
Instrument = Callable[[Any], None]


def main(pipeline: Pipeline | None = None, instrument: Instrument | None = None) -> None:
    """Run the command line and exit; with a pipeline given, for that one.

    `instrument(subparsers)` may add verbs of its own as with pydatatask: argparse sub-parsers whose `func`
    default is called with the pipeline and the parsed arguments.
    """
    try:
        code = _main(pipeline, instrument)
    except BaseException as error:
        code = _last_words(error, sys.argv[1:])
    if code is None:
        return  # a pipeline file is being loaded by the command line: it is in charge already
    if code == BROKEN:
        os._exit(code)  # threads of ours wait for files that are gone; Python would wait for them
    guard.at_last(END_SECONDS, code, "a thread that does not end was left behind")
    sys.exit(code)


catch_outside(main)


def _main(pipeline: Pipeline | None, instrument: Instrument | None) -> int | None:
    from datatask.adapters.cli.loading import is_loading

    if is_loading():
        return None
    debug = bool(os.environ.get("DATATASK_DEBUG"))
    if not debug:
        quiet_threads()
    prepare_streams()
    return invoke(sys.argv[1:], _settings(pipeline, debug), instrument)


def _settings(pipeline: Pipeline | None, debug: bool) -> Settings:
    settings = Settings(debug=debug)
    if pipeline is not None:
        program = Path(sys.argv[0])
        settings.given = pipeline
        settings.given_folder = (program.parent if program.is_file() else Path.cwd()).absolute()
        settings.program = program.name
    return settings


def invoke(
    arguments: Sequence[str], settings: Settings | None = None, instrument: Instrument | None = None
) -> int:
    """Run one command and return its exit code."""
    settings = settings or Settings(debug=bool(os.environ.get("DATATASK_DEBUG")))
    try:
        try:
            code = _run(arguments, settings, instrument)
            broken = output_trouble()
            return code if broken is None else _without_output(broken, code)
        except BaseException as error:
            return _report(error, settings, arguments)
    except BaseException as error:  # while the first one was told
        return _last_words(error, arguments)


def _run(arguments: Sequence[str], settings: Settings, instrument: Instrument | None) -> int:
    group = make_group(settings, instrument)
    try:
        result = group.main(
            list(arguments) or ["--help"], prog_name=settings.program, standalone_mode=False, obj=settings
        )
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return result if isinstance(result, int) else 0


def _report(error: BaseException, settings: Settings, arguments: Sequence[str]) -> int:
    """Tell an exception in one line, in the words of its kind; return the exit code."""
    broken = output_trouble() if isinstance(error, OSError | ValueError | click.Abort) else None
    if broken is not None:
        return _without_output(broken, 0)
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        case KeyboardInterrupt() | click.Abort():
            # CPython remembers one that left an `exec`, though it was caught, and ends a `-m` program by SIGINT
            # (python/cpython#11862, bpo-41602); the next `exec` makes it forget.
            exec("")
            say("interrupted")
            return INTERRUPTED
        case click.ClickException():
            return _failed(_usage(error), settings, arguments)
        case DatataskError():
            odd = _damage(settings) if isinstance(error, InternalError) else None
            return _failed(odd or error, settings, arguments)
        case OSError(errno=errno.EBADF) if input_is_closed():
            return _failed(
                CallerError("it is closed", where=INPUT, remedy="redirect it from a file, or from /dev/null"),
                settings, arguments,
            )  # fmt: skip
        case OSError() if _is_closed(error, arguments):
            say(f"datatask: {CLOSED}")
            return BROKEN
        case FileNotFoundError() if not os.path.isabs(error.filename or "") and _is_nowhere():
            return _failed(
                CallerError("the working directory is gone", where=os.environ.get("PWD", ""),
                            remedy="change to a directory that is there"),
                settings, arguments,
            )  # fmt: skip
    known = trouble(error, _command(arguments)) or _damage(settings)
    if known is None and settings.debug:
        traceback.print_exception(error)
    known = known or _of_the_pipeline(error)
    return _failed(_internal(error) if known is None else known, settings, arguments)


def _without_output(broken: OSError, code: int) -> int:
    """End without stdout: quietly where its reader has seen enough, else with one line."""
    drop_output()
    if isinstance(broken, BrokenPipeError):
        return code
    from datatask.adapters.cli.output import error_line

    error = output_error(broken)
    say(error_line(error))
    return code or error.exit_code


def _last_words(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error that came before or during the printing of another one, with as few calls as possible."""
    drop_output()
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    say(f"datatask: {line_of(error)}")
    known = trouble(error, _command(arguments))
    return 1 if known is None else known.exit_code


def _damage(settings: Settings) -> DatataskError | None:
    """Return what is wrong with the rows of this call's log: code of ours may fail on what no log should hold."""
    from datatask.adapters.log.integrity.verify import wrong_row

    try:
        return wrong_row(settings.log_path())
    except LogError as error:
        return error
    except Exception:
        return None  # there is no log, or no time: then it is told as what it was


def _of_the_pipeline(error: BaseException) -> CallerError | None:
    """Return the error for what the pipeline's own code has raised (a resource, a repository of its own), else None.

    It is the pipeline's where the innermost frame is not ours, libraries left out.
    """
    import sysconfig

    own = str(Path(__file__).parents[2].resolve())
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    last = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] == "datatask" or str(Path(file).resolve()).startswith(f"{own}/"):
            last = None
        elif not file.startswith(("<", *libraries)):
            last = f"{file}:{line}"
    if last is None:
        return None
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return CallerError(text[:500], where=last, remedy="mend the pipeline, or what it needs")


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _is_closed(error: OSError, arguments: Sequence[str]) -> bool:
    """Whether a file was closed under this process.

    A file that is opened next gets the number of the closed one: an event loop then waits on that (EINVAL, ENOTSOCK).
    """
    if error.errno in (errno.EINVAL, errno.ENOTSOCK):
        return error.filename is None and _command(arguments) == "datatask run"
    return error.errno == errno.EBADF


def _command(arguments: Sequence[str]) -> str:
    """Return which command this is, for errors that name no place of their own."""
    named = next((one for one in arguments if one in COMMANDS), "")
    return f"datatask {named}".strip()


def make_group(settings: Settings, instrument: Instrument | None = None) -> click.Group:
    """Return the command line as a click group."""
    group = LazyGroup(
        name="datatask",
        help="Run data pipelines, and ask what happened in them.",
        epilog=f"Example: {settings.program} run   (each command has examples: {settings.program} COMMAND --help)",
        params=[parameter for parameter in shared_options(hidden=False) if _fits(parameter, settings)],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    click.version_option(VERSION, prog_name="datatask")(group)
    if instrument is not None and settings.given is not None:
        pass

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


def _internal(error: BaseException) -> InternalError:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return InternalError(
        f"internal error: {text[:500]}", remedy="please report it, with the traceback that --debug shows"
    )


def _failed(error: DatataskError, settings: Settings, arguments: Sequence[str]) -> int:
    from datatask.adapters.cli.output import encode, error_document, error_line

    code = INTERRUPTED if settings.interrupted and error.exit_code != BROKEN else error.exit_code
    if settings.json or "--json" in arguments:
        sys.stdout.write(encode(error_document(error)) + "\n")
        if (broken := output_trouble()) is not None:
            return _without_output(broken, code)
    else:
        say(error_line(error))
    return code


def add_verbs(group: click.Group, instrument: Callable[[Any], None], pipeline: Pipeline) -> None:
    """Let the script register its verbs and add each to the group."""
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    verbs = parser.add_subparsers(dest=argparse.SUPPRESS, required=True)
    instrument(verbs)
    for name, verb in verbs.choices.items():
        group.add_command(_verb_command(name, verb, pipeline))


def _verb_command(name: str, verb: argparse.ArgumentParser, pipeline: Pipeline) -> click.Command:
    import asyncio

    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def call(arguments: tuple[str, ...]) -> None:
        values = vars(verb.parse_args(list(arguments)))
        func = values.pop("func", None)
        if func is None:
            raise InvalidValueError(
                f"the verb {name} has no func", remedy="call set_defaults(func=…) on its sub-parser"
            )
        result = func(pipeline, **values)
        if asyncio.iscoroutine(result):
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
