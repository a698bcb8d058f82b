"""Durations by job from a table: a CSV file with a job and seconds on each line, for one task or for several.

In: `job,seconds` or `task,job,seconds`, with or without a line of headings. Out: seconds by job, by task. Whatever is no
job, no number or negative is refused by file and line.
"""

from __future__ import annotations

import csv
from math import inf
from pathlib import Path

from datatask.schema.errors import CallerError
from datatask.schema.ids import is_job

HEADINGS = ("job", "task")


def durations_from_csv(path: str | Path) -> dict[str, dict[str, float]]:
    """Return {task: {job: seconds}}; the task is "" where the table does not name any. `CallerError` names the line."""
    found: dict[str, dict[str, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in row]
                if not any(cells) or (number == 1 and cells[0].lower() in HEADINGS):
                    continue
                _add(found, cells, f"{path}:{number}")
    except OSError as error:
        raise CallerError(f"the table cannot be read: {error.strerror}", where=str(path)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CallerError(
            f"this is no CSV: {error}", where=str(path), remedy="save it as UTF-8 CSV"
        ) from error
    if not found:
        raise CallerError("the table has no durations", where=str(path), remedy="write lines of job,seconds")
    return found


def _add(found: dict[str, dict[str, float]], cells: list[str], where: str) -> None:
    if len(cells) not in (2, 3):
        raise CallerError(
            f"{len(cells)} columns", where=where, remedy="write job,seconds or task,job,seconds"
        )
    task, job, told = ("", *cells) if len(cells) == 2 else cells
    if not is_job(job):
        raise CallerError(f"{job!r:.80} is not a job id", where=where, remedy="write job,seconds")
    try:
        seconds = float(told)
    except ValueError:
        raise CallerError(f"{told!r:.80} is no number of seconds", where=where) from None
    if not 0 <= seconds < inf:
        raise CallerError(f"{told} seconds is no duration", where=where, remedy="give 0 or more")
    if job in found.setdefault(task, {}):
        raise CallerError(f"{job} is in the table twice", where=where, remedy="leave one line for each job")
    found[task][job] = seconds
