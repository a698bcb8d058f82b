"""Help at a prompt: `init`, `shell`, `enter` and `completion`; and the live output that `cat` prints of an open run.

In: the log, which knows the open run of a task and job and its place; the pipeline, whose manager reaches it. Out: an example
project, a shell, a script, output as it comes. The engine that watches the run is not disturbed, and nothing is written.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datatask.adapters.cli.commands import JOB, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, recorded
from datatask.adapters.cli.settings import Settings
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Filters
from datatask.schema.errors import AlreadyThereError, InvalidValueError, NotPossibleError, UnknownNameError

if TYPE_CHECKING:
    from datatask.adapters.execute.base.targets import RunPlace


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


STREAMS = ("stdout", "stderr", "logs")
TAIL_SECONDS = 0.3


@command("enter", example="datatask -p pipeline.py enter resize cat")
@click.argument("task")
@click.argument("job", type=JOB)
def enter(settings: Settings, task: str, job: str) -> int:
    """Open a shell in the folder of a job's run, on the machine where it runs, or in its pod.

    With input that is no terminal, the shell reads its commands from there. The exit code is the shell's.
    """
    with recorded(settings) as log:
        place = place_of(settings, log, open_run(settings, log, task, job))

    async def inside() -> int:
        try:
            return await place.enter()
        finally:
            await place.close()

    return asyncio.run(inside())


def find_run(log: Recorded, task: str, job: str) -> OpenRun | None:
    """Return the open run of a task and job, or None."""
    for run in log.state.open_runs.values():
        if run.task == task and log.state.jobs[run.job] == job:
            return run
    return None


def open_run(settings: Settings, log: Recorded, task: str, job: str) -> OpenRun:
    """Return the open run of a task and job; `UnknownNameError` when there is none."""
    if task not in log.state.tasks:
        raise UnknownNameError(f"there is no task {task}", remedy=f"see `{settings.command('status')}`")
    run = find_run(log, task, job)
    if run is None:
        raise UnknownNameError(
            f"{task} has no run of {job} now; a run's folder is removed when its end is recorded",
            remedy=f"see `{settings.command('runs')}`",
        )
    return run


def place_of(settings: Settings, log: Recorded, run: OpenRun) -> RunPlace:
    """Return the folder of an open run, or its pod, by the pipeline's own manager."""
    from datatask.adapters.execute.base.process_task import ProcessTask

    task = settings.load_pipeline().tasks.get(run.task)
    identity = f"{log.state.log}.{run.epoch}.{run.run}"
    if isinstance(task, ProcessTask):
        return task.manager.place(identity, run.where)
    if any(kind.__name__ == "KubeTask" for kind in type(task).__mro__):
        from datatask.adapters.execute.kube.tasks import KubeTask

        assert isinstance(task, KubeTask)
        return task.podman.place(identity)
    raise NotPossibleError(f"the runs of {run.task} are no processes", remedy="only these have a folder")


def tail(settings: Settings, log: Recorded, run: OpenRun, name: str) -> int:
    """Print a stream of an open run as it comes, until the run is over; return how many bytes were printed."""
    place = place_of(settings, log, run)

    async def following() -> int:
        offset, after, over = 0, log.state.position, False
        try:
            while True:
                while data := await place.read(name, offset):
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                    offset += len(data)
                if over:
                    return offset
                await asyncio.sleep(TAIL_SECONDS)
                ended = Filters(kinds=("RunEnded",), runs=(run.run,))
                over = any(True for _ in log.reader.read(after, filters=ended))
        finally:
            await place.close()

    return asyncio.run(following())


PIPELINE = '''"""Counts the words of texts: `datatask run`, then `datatask status` and `datatask cat count.words poem`."""

from pathlib import Path

import datatask

here = Path(__file__).parent
session = datatask.Session()

texts = datatask.FileRepository(here / "texts", extension=".txt")
words = datatask.LogMetadataRepository("words")
done = datatask.LogMetadataRepository("done")

count = datatask.InProcessSyncTask("count", done)
count.link("texts", texts, is_input=True)
count.link("words", words, is_output=True)


@count
async def count_words(job: str, texts: datatask.FileRepository, words: datatask.LogMetadataRepository) -> None:
    async with texts.open(job, "r") as file:
        text = await file.read()
    await words.dump(job, {"words": len(text.split()), "lines": len(text.splitlines())})


pipeline = datatask.Pipeline([count], session, [])

if __name__ == "__main__":
    datatask.main(pipeline)
'''

FILES = {
    "pipeline.py": PIPELINE,
    "texts/poem.txt": "The log remembers\nwhat the pipeline did last night:\none line for each step\n",
    "texts/note.txt": "Put a text into this folder and run the pipeline again.\n",
    ".gitignore": ".datatask/\n__pycache__/\n",
}


@command("init", example="datatask init words && cd words && datatask run")
@click.argument("directory", type=click.Path(path_type=Path), default=".")
@click.option("--dry-run", is_flag=True, help="Show what would be made, and make nothing.")
def init(settings: Settings, directory: Path, dry_run: bool) -> None:
    """Make a small example project in DIRECTORY (here); nothing is overwritten."""
    output = Output(settings)
    if directory.exists() and not directory.is_dir():
        raise AlreadyThereError("this is a file", where=str(directory), remedy="name a directory")
    there = [name for name in FILES if (directory / name).exists()]
    if there:
        raise AlreadyThereError(
            f"{', '.join(there)} is there already", where=str(directory), remedy="name another directory"
        )
    for name, text in () if dry_run else FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    if output.json:
        output.document({"directory": str(directory.absolute()), "files": list(FILES)})
        return
    for name in FILES:
        output.line(f"{'would make' if dry_run else 'made'} {directory / name}")
    if not dry_run:
        output.say("now: " + ("" if directory == Path() else f"cd {directory} && ") + "datatask run")
