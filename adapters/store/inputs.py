"""What the operating system says about files, in our words, once for all stores on files; and inputs that are not there.

`PermissionError` and `FileNotFoundError` stay what they are for whoever catches them; what may work later (disk full, stale network
handles, a missing root) is a `TemporaryError`. An input folder that is missing is refused, with the name that was probably meant,
and not made: an empty one in the place of one that was mistyped or is not mounted would look like one without work. Blocking.
"""

from __future__ import annotations

import difflib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datatask.schema.errors import CallerError, DatataskError, TemporaryError, UnknownNameError

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


_EFFECTIVE = os.access in os.supports_effective_ids


class NotPermittedError(CallerError, PermissionError):
    """The operating system does not let us: change the permissions, or use another folder."""

    code = "not_permitted"
    __str__ = DatataskError.__str__


class MissingFileError(UnknownNameError, FileNotFoundError):
    """The job has no file; write one, or ask `contains` first."""

    code = "missing_file"
    __str__ = DatataskError.__str__


@contextmanager
def os_errors(where: str) -> Iterator[None]:
    """Raise the `DatataskError` for an `OSError` of the body; `where` names the place."""
    try:
        yield
    except DatataskError:
        raise
    except OSError as error:
        raise _mapped(error, where) from error


def _mapped(error: OSError, where: str) -> DatataskError:
    what = error.strerror or type(error).__name__
    if error.errno in _FORBIDDEN:
        return NotPermittedError(what, where=where, remedy="make it readable and writable for this user")
    if error.errno in _WRONG:
        return CallerError(
            what, where=where, remedy="look at what is there: a link in a circle, or the wrong kind of file"
        )
    if error.errno == errno.ENOENT:
        return TemporaryError("the folder is not there", where=where, remedy="mount or create it")
    return TemporaryError(what, where=where, remedy="it is tried again; see to the disk if it stays")


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
