"""A project with a secret, and where it can be found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.integration.cli_kit import Project

SECRET = "hunter2-is-the-password"


BLOB = (SECRET * 4000).encode()


WHO = "ada@lab: datatask redact"


PIPELINE = """
import datatask

words = datatask.LogMetadataRepository("words")
copies = datatask.LogMetadataRepository("copies")
blobs = datatask.LogBlobRepository("blobs")
done = datatask.LogMetadataRepository("done")

copy = datatask.InProcessSyncTask("copy", done)
copy.link("words", words, is_input=True)
copy.link("blobs", blobs)
copy.link("copies", copies, is_output=True)


@copy
async def run_copy(job, words, blobs, copies):
    value = await words.info(job)
    if value.get("read"):
        async with blobs.open(value["read"], "rb") as stream:
            await stream.read()
    if value.get("fails"):
        raise ValueError("cannot copy " + value["word"])
    await copies.dump(job, value)


pipeline = datatask.Pipeline([copy], datatask.Session(), [])
"""


def inject(project: Project, **documents: Any) -> None:
    lines = "".join(json.dumps({"job": job, **document}) + "\n" for job, document in documents.items())
    (project.folder / "words.jsonl").write_text(lines)
    project.ok("inject", "copy.words", "--from", "words.jsonl")
    (project.folder / "words.jsonl").unlink()


def leaked(folder: Path) -> Project:
    """Make a log in which a secret stands in a value, its copy, a blob, an error, and a reason."""
    project = Project(folder, PIPELINE)
    inject(
        project, good={"word": "plain"}, bad={"word": SECRET * 1500}, worse={"word": SECRET, "fails": True}
    )
    project.call("run")
    project.ok("inject", "copy.blobs", "big", stdin=BLOB)
    project.ok("pause", "copy", "--reason", f"somebody leaked {SECRET}")
    return project


def copied(original: Project, folder: Path) -> Project:
    """Copy a project, to be changed."""
    copy = Project(folder, PIPELINE)
    shutil.copytree(original.log.parent, copy.log.parent)
    return copy


def events(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in project.ok("log", "--json").lines]


def found_in(folder: Path, secret: str = SECRET) -> list[str]:
    """Return the files in which the secret's bytes stand."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes()]
