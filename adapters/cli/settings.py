"""Where a command works and how it speaks: what the options before and after the command's name say.

In: options, the environment, the working directory, and the pipeline of `datatask.main(pipeline)`. Out: the
pipeline, loaded when first asked for, and the place of the log. The order is that of docs/cli.md; reading
commands come here for the log and load a pipeline only where `-p` names one, or where its file names the log.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from datatask.adapters.cli.loading import Loaded, Reference, find_reference, load, names_log
from datatask.adapters.log.locate import MEMORY, default_path, locate
from datatask.schema.errors import CallerError, InvalidValueError, NoLogError, unknown

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

COLORS = ("auto", "always", "never")


@dataclass
class Settings:
    """What was asked for, before anything is loaded or opened."""

    program: str = "datatask"
    pipeline: str | None = None
    log: str | None = None
    with_archives: bool = False
    json: bool = False
    color: str = "auto"
    fields: tuple[str, ...] = ()
    debug: bool = False
    budget: float | None = None
    interrupted: bool = False
    values: tuple[str, ...] = ()
    given: Pipeline | None = None
    given_folder: Path | None = None
    began: float = field(default_factory=time.monotonic)
    _loaded: Loaded | None = None

    @property
    def names_pipeline(self) -> bool:
        """Whether this call says itself which pipeline it means."""
        return self.given is not None or self.pipeline is not None

    # --- the pipeline -------------------------------------------------------------------------------

    def load_pipeline(self) -> Pipeline:
        """Return the pipeline with its log in place; `CallerError` when there is none or it cannot be loaded."""
        return self._load().pipeline

    @property
    def loaded_pipeline(self) -> Pipeline | None:
        """The pipeline if it has been loaded, else None."""
        return self._loaded.pipeline if self._loaded is not None else None

    def _load(self) -> Loaded:
        if self._loaded is None:
            from datatask.adapters.cli.diagnostics import listen

            listen(debug=self.debug)
            from datatask.engine.api.parameters import variable_of

            values = self._values()
            os.environ.update((variable_of(name), text) for name, text in values.items())
            if self.given is not None:
                loaded = Loaded(self.given, self.given_folder or Path.cwd())
            else:
                loaded = load(self._reference())
            for name, text in values.items():
                parameter = loaded.pipeline.parameters.get(name)
                if parameter is None:
                    raise unknown("parameter", name, loaded.pipeline.parameters)
                parameter.give(text)
            self._place(loaded)
            _introduce(loaded.pipeline)
            self._loaded = loaded
        return self._loaded

    def _values(self) -> dict[str, str]:
        """Return what --set says, by name; the last one holds."""
        found: dict[str, str] = {}
        for text in self.values:
            name, separator, value = text.partition("=")
            if not separator or not name.isidentifier():
                raise InvalidValueError(
                    f"{text!r:.80} sets nothing", where="--set", remedy="write --set NAME=VALUE"
                )
            found[name] = value
        return found

    def _reference(self) -> Reference:
        reference = find_reference(self.pipeline)
        if reference is None:
            raise InvalidValueError(
                "there is no pipeline here",
                where=str(Path.cwd()),
                remedy="name one with -p, or start with `datatask init`",
            )
        return reference

    def _place(self, loaded: Loaded) -> None:
        """Tell the pipeline where its log is: --log, else its own, else $DATATASK_LOG, else beside its file; and its file."""
        pipeline = loaded.pipeline
        for task in pipeline.tasks.values():
            task.program = loaded.program
        named = os.environ.get("DATATASK_LOG")
        place = locate(named) if named else locate(default_path(loaded.folder))
        pipeline.default_log = place.path
        if self.log is not None:
            pipeline.location = locate(self.log).url
        elif place.path is None and pipeline.location is None:
            pipeline.location = place.url

    # --- the log ------------------------------------------------------------------------------------

    def log_url(self) -> str:
        """Return the URL of the log, loading a pipeline only when this call names one and no log, or its file names the log."""
        if self.log is not None:
            return locate(self.log).url
        if self.names_pipeline or _is_told_by_pipeline():
            return self.load_pipeline().log_location()
        named = os.environ.get("DATATASK_LOG")
        return locate(named).url if named else locate(self._default_log()).url

    def _default_log(self) -> Path:
        reference = find_reference(None)
        if reference is not None and reference.file is not None:
            return default_path(reference.file.parent)
        if reference is not None:
            raise NoLogError(
                f"where the log of {reference.text} is, is known only when it is loaded",
                remedy=f"say -p {reference.text}, or name the log with --log",
            )
        here = default_path(Path.cwd())
        if not here.exists():
            raise NoLogError(
                "there is no pipeline and no log here",
                where=str(Path.cwd()),
                remedy="name the pipeline with -p or the log with --log, or start with `datatask init`",
            )
        return here

    def log_path(self) -> Path:
        """Return the file of the log; `CallerError` for one in memory."""
        path = locate(self.log_url()).path
        if path is None:
            raise NoLogError(
                "this pipeline keeps its log in memory: nothing is left of it when its process ends",
                where=MEMORY,
                remedy="name a file with --log, here and for `run`",
            )
        if path.is_dir():
            raise NoLogError(
                "this is a directory, not a log",
                where=str(path),
                remedy=f"try --log {os.path.relpath(default_path(path))}",
            )
        return path

    def command(self, *words: str) -> str:
        """Return a command line that works as printed, from this working directory, for the same log."""
        prefix = _program()
        if not self._is_default():
            prefix += ["--log", near(self.log_path())]
        import shlex

        return shlex.join([*prefix, *words])

    def _is_default(self) -> bool:
        if self.log is None and not self.names_pipeline:
            return True
        if _is_told_by_pipeline():
            return False  # to know it, the pipeline would have to be loaded: --log is right in any case
        try:
            plain = Settings().log_url()
        except CallerError:
            return False
        return plain == locate(self.log_path()).url


def _is_told_by_pipeline() -> bool:
    """Whether the pipeline file that a call without options means names its log itself."""
    reference = find_reference(None)
    return reference is not None and reference.file is not None and names_log(reference.file)


def _introduce(pipeline: Pipeline) -> None:
    """Tell the pipeline who opens it, by which command, and why: what the log will say."""
    import click

    from datatask.adapters.wiring.opening import actor

    context = click.get_current_context(silent=True)
    if context is not None:
        pipeline.actor = pipeline.actor or actor(f"datatask {context.info_name}")
        pipeline.reason = pipeline.reason or context.params.get("reason", "")


def _program() -> list[str]:
    """Return what to type for this program: `datatask`, or its path where the shell would not find this one."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py" and called.parent.name == "datatask":
        return [_from_here(Path(sys.executable)), "-m", "datatask"]
    return [_from_here(called) if called.name == "datatask" else "datatask"]


def _from_here(program: Path) -> str:
    import shutil  # takes long to import

    found = shutil.which(program.name)
    if found is not None and Path(found).absolute() == program.absolute():
        return program.name
    return near(program)


def near(path: Path) -> str:
    """Return a path as people would type it here: relative when it is below the working directory."""
    relative = os.path.relpath(path)
    return str(path.absolute()) if relative.startswith("..") else relative
