"""Which files the example is about: a repository of its own.

A repository of your own needs three methods. datatask knows nothing else of it and therefore lists it: when the
pipeline opens, about once a second while it runs, and once more before a run is called done.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from datatask import CallerError, Repository

HERE = Path(__file__).resolve().parent
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
FOLDERS = {"Lib": STDLIB, "example": HERE / "odd"}
"""The first word of a job id -> the folder that the rest is a path in; CPython's own repository says `Lib`, too."""

SKIPPED = {"__pycache__", "site-packages", "dist-packages"}


def path_of(job: str) -> Path:
    """Return the file that a job stands for: `Lib.json.decoder.py` is `json/decoder.py` in the standard library."""
    folder, *parts = job.removesuffix(".py").split(".")
    return FOLDERS[folder].joinpath(*parts).with_suffix(".py")


def job_of(path: Path) -> str:
    """Return the job that stands for a file; the inverse of `path_of`."""
    for name, folder in FOLDERS.items():
        if path.is_relative_to(folder):
            return ".".join([name, *path.relative_to(folder).parts])
    raise ValueError(f"{path} is in none of the folders")


def python_files() -> Iterator[str]:
    """Yield all jobs. What has a dot in its name besides `.py` is no module and is left out."""
    for name, folder in FOLDERS.items():
        for here, folders, files in os.walk(folder):
            folders[:] = sorted(each for each in folders if each not in SKIPPED and "." not in each)
            prefix = ".".join([name, *Path(here).relative_to(folder).parts])
            for file in sorted(files):
                if file.endswith(".py") and file.count(".") == 1:
                    yield f"{prefix}.{file}"


class Sources(Repository):
    """The Python files on this machine that belong to Python itself, and one that nobody can parse."""

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield one job per file."""
        for job in python_files():
            yield job

    async def contains(self, item: str) -> bool:
        """Whether there is such a file; without this method all would be listed to find out."""
        return item.split(".")[0] in FOLDERS and path_of(item).is_file()

    async def info(self, job: str) -> str:
        """Return the file's path: it is what `{{ source }}` is in a template."""
        return str(path_of(job))

    async def delete(self, job: str) -> None:
        """Refuse: these files are not ours."""
        raise CallerError(f"{self.name} cannot be changed", where=job)
