"""An input folder that is not as it should be: refused by name, with what was probably meant.

In comes the path of a folder that nothing in the pipeline fills, out goes nothing, or an error with the remedy. Nothing is made:
an empty folder in the place of one that was mistyped or is not mounted would look like one without work. Blocking.
"""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from datatask.adapters.store.oserrors import MissingFileError, NotPermittedError, os_errors
from datatask.schema.errors import CallerError, DatataskError

_EFFECTIVE = os.access in os.supports_effective_ids


def check_folder(path: Path, whose: str) -> None:
    """Raise `CallerError` unless the folder is there and can be listed; `whose` names the input."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise _missing(path, whose) from None
    except NotADirectoryError:
        above = next(parent for parent in path.parents if os.path.lexists(parent))
        raise _wrong(above, whose) from None
    except OSError:
        with os_errors(str(path)):
            raise
    if not stat.S_ISDIR(status.st_mode):
        raise _wrong(path, whose)
    if not os.access(path, os.R_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise NotPermittedError(
            f"the folder of the input {whose} cannot be read",
            where=str(path),
            remedy="make it readable for this user",
        )


def _wrong(path: Path, whose: str) -> DatataskError:
    return CallerError(
        f"the input {whose} is not a folder but something else",
        where=str(path),
        remedy="name the folder that holds its files",
    )


def _missing(path: Path, whose: str) -> DatataskError:
    if path.is_symlink():
        return MissingFileError(
            f"the folder of the input {whose} is a link to {os.readlink(path)}, which is not there",
            where=str(path),
            remedy="mount or make what it links to",
        )
    near = nearest(path)
    meant = f"is {near} meant? Else " if near is not None else ""
    return MissingFileError(
        f"the folder of the input {whose} is not there", where=str(path), remedy=f"{meant}mount or make it"
    )


def nearest(path: Path) -> Path | None:
    """Return the folder that is there with the name nearest to this one's; where one above is missing, to that one's."""
    there = next(parent for parent in path.parents if parent.is_dir())
    missing, *below = path.relative_to(there).parts
    try:
        names = {name.casefold(): name for name in os.listdir(there) if os.path.isdir(there / name)}
    except OSError:
        return None
    close = difflib.get_close_matches(missing.casefold(), names, n=1)
    if not close:
        return None
    found = there / names[close[0]]
    return found.joinpath(*below) if found.joinpath(*below).is_dir() else found
