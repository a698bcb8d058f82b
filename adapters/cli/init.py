"""`init`: a small project that runs as it stands, to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from datatask.adapters.cli.options import command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.schema.errors import AlreadyThereError

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
