"""Files that a command writes for people: whole or not at all, and over nothing that is not an earlier one of its kind."""

from __future__ import annotations

import os
from pathlib import Path

from datatask.adapters.store.staged import take_over
from datatask.schema.errors import CallerError, InvalidValueError


def write_whole(path: Path, text: str, *, mark: str, what: str) -> None:
    """Write a text that begins with `mark`; `CallerError` where a file is that does not, or nothing can be written."""
    try:
        with path.open("rb") as file:
            if not file.read(len(mark)) == mark.encode():
                raise InvalidValueError(
                    f"this file is no {what}", where=str(path), remedy="name another file"
                )
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CallerError(f"{error.strerror}", where=str(path), remedy="name another file") from error
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        take_over(fresh, path)
        fresh.replace(path)
    except OSError as error:
        raise CallerError(f"{error.strerror}", where=str(path), remedy="name another file") from error
    finally:
        fresh.unlink(missing_ok=True)
