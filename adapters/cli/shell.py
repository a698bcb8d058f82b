"""`shell` and `completion`: what helps at a prompt."""

from __future__ import annotations

import sys

import click

from datatask.adapters.cli.options import command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.schema.errors import InvalidValueError


@command("shell", example="datatask shell\ndatatask -p pipeline.py shell")
def shell(settings: Settings) -> None:
    """Open an IPython shell in which `pipeline` is the pipeline, not yet opened.

    `async with pipeline:` opens it; `await pipeline.run()` and all else may be typed as it stands.
    """
    from datatask.adapters.wiring import verbs

    hook = sys.excepthook
    try:
        verbs.shell(settings.load_pipeline())
    finally:
        sys.excepthook = hook  # IPython leaves its own


@command(
    "completion",
    example='eval "$(datatask completion bash)"\ndatatask completion fish > ~/.config/fish/completions/datatask.fish',
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(settings: Settings, shell: str) -> None:
    """Print a script that completes commands and options in your shell."""
    from click.shell_completion import get_completion_class

    from datatask.adapters.cli.main import make_group

    found = get_completion_class(shell)
    if found is None:
        raise InvalidValueError(f"{shell} is not known", remedy="use bash, zsh or fish")
    source = found(make_group(settings), {}, "datatask", "_DATATASK_COMPLETE").source
    try:
        Output(settings).line(source())
    except RuntimeError as error:
        raise InvalidValueError(
            f"no completion for this {shell}: {error}", remedy="use bash 4.4 or newer"
        ) from error
