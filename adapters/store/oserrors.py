"""What the operating system says about files, in our words: mapped here, once, for all stores on files.

`PermissionError` and `FileNotFoundError` stay what they are for whoever catches them; what may work later
(disk full, input/output errors, stale network handles, a missing root) is a `TemporaryError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from datatask.schema.errors import CallerError, DatataskError, TemporaryError, UnknownNameError

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_WRONG = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


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
