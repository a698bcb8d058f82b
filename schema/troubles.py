"""What the machine refuses a program, in words a person can act on.

In: an exception that no code is to blame for: of the operating system, of a text's encoding, of memory, of depth.
Out: a `DatataskError` with what, where and remedy, or None for any other exception, which then is a mistake of ours.
Adapters map what they meet with words of their own; this is for what reaches an edge: the command line, the engine's loop.
A `Divergence` is what is found wrong in a log.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from datatask.schema.errors import (
    DatataskError,
    InternalError,
    InvalidValueError,
    NotPossibleError,
    SystemTroubleError,
)

_FULL = "free some space and do it again"
_RIGHTS = "check the permissions of it and of the folders above it, and who runs this"
_THERE = "check the name, and whether it was moved or is not mounted"
_OF_SYSTEM = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the quota of this disk is used up", _FULL),
    errno.EFBIG: ("the file would grow larger than is allowed", "raise `ulimit -f`, or use another disk"),
    errno.EROFS: ("the file system cannot be written", "make it writable, or use another place"),
    errno.EACCES: ("not permitted", _RIGHTS),
    errno.EPERM: ("not permitted", _RIGHTS),
    errno.ENOENT: ("it is not there", _THERE),
    errno.ENOTDIR: ("a name on the way to it is no folder", _THERE),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.EEXIST: ("it exists already", "remove it, or use another name"),
    errno.ELOOP: ("links lead in a circle", "see where the links point"),
    errno.ENAMETOOLONG: ("the name is too long", "use shorter names, or a folder nearer to the root"),
    errno.EMFILE: ("too many files are open in this process", "raise `ulimit -n`, and do it again"),
    errno.ENFILE: ("too many files are open on this machine", "end something, and do it again"),
    errno.EAGAIN: ("no process, thread or memory was left for a moment", "do it again; see `ulimit -u` if it stays"),
    errno.ENOMEM: ("no memory is left", "end something, or raise `ulimit -v`, and do it again"),
    errno.EIO: ("the disk failed", "look at the system log (`dmesg`), then do it again"),
    errno.ESTALE: ("the network file system has lost it", "see to the mount, then do it again"),
    errno.ETXTBSY: ("it is being executed", "wait for its end, and do it again"),
    errno.EBUSY: ("it is in use", "end what uses it, and do it again"),
    errno.EPIPE: ("the other end of a connection is gone", "do it again"),
    errno.EBADF: ("a file was closed under this process", "do it again"),
    errno.EADDRINUSE: ("the address is in use", "end what listens there, or name another port"),
    errno.ECONNREFUSED: ("nothing listens there", "see whether the server runs"),
    errno.ETIMEDOUT: ("it did not answer in time", "see whether the server can be reached"),
}  # fmt: skip


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (9, 10)}


def trouble(error: BaseException, where: str = "") -> DatataskError | None:
    """Return our error for one of the machine's; `where` is told where the error itself names nothing."""
    match error:
        case DatataskError():
            return error
        case MemoryError():
            return SystemTroubleError(
                "no memory is left", where=where, remedy="end something, raise `ulimit -v`, or ask for less"
            )
        case RecursionError():
            return InvalidValueError("this is nested too deeply", where=where, remedy="use fewer levels")
        case UnicodeError():
            return _of_text(error, where)
        case OSError():
            return _of_system(error, where)
        case RuntimeError() if "start new thread" in str(error):  # Python tells no more of it
            return _of_system(BlockingIOError(errno.EAGAIN, str(error)), where)
    return None


def as_error(error: BaseException, where: str = "") -> DatataskError:
    """Return our error for any: what is no trouble of the machine's is a mistake of ours, told as such."""
    known = trouble(error, where)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return known if known is not None else InternalError(text[:500], where=where)


def again(error: BaseException) -> DatataskError:
    """Return the error that has stopped an engine as a fresh one: several waiters do not share a traceback."""
    if isinstance(error, DatataskError):
        return type(error)(error.what, where=error.where, remedy=error.remedy)
    return trouble(error, "the engine") or InternalError(f"the engine has stopped: {error!r}")


def printable(text: str) -> str:
    r"""Return text that can be encoded: what stands for bytes that are no UTF-8 as `\xe4`."""
    if text.isascii():
        return text
    return "".join(f"\\x{ord(one) - 0xDC00:02x}" if "\udc80" <= one <= "\udcff" else one for one in text).encode(
        "utf-8", "backslashreplace"
    ).decode()  # fmt: skip


def shown(text: str) -> str:
    """Return text from a log or a store without what would act on a terminal, and that can be encoded."""
    return text if text.isprintable() else printable(text.translate(_CONTROL))


def _of_system(error: OSError, where: str) -> DatataskError:
    names = [printable(_text(name)) for name in (error.filename, error.filename2) if name is not None]
    said = " ".join((error.strerror or str(error) or type(error).__name__).split())
    what, remedy = _OF_SYSTEM.get(
        error.errno or 0, ("the system refused something", "see what it says, then do it again")
    )
    return SystemTroubleError(f"{what} ({said[:200]})", where=" -> ".join(names) or where, remedy=remedy)


def _of_text(error: UnicodeError, where: str) -> DatataskError:
    if isinstance(error, UnicodeEncodeError):
        bad = printable(error.object[max(0, error.start - 60) : error.start + 60])
        return NotPossibleError(
            f"this cannot be written in {error.encoding}: {bad!r:.200}", where=where,
            remedy="rename what has such a name, or leave such letters out",
        )  # fmt: skip
    if isinstance(error, UnicodeDecodeError):
        byte = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "its end"
        return InvalidValueError(
            f"this is not {error.encoding} text ({byte} at {error.start})", where=where,
            remedy="convert it to UTF-8, as with `iconv -f LATIN1 -t UTF-8`",
        )  # fmt: skip
    return InvalidValueError(
        f"this is not text in the expected encoding: {error!s:.200}",
        where=where,
        remedy="convert it to UTF-8",
    )


def _text(name: str | bytes | int) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


class Divergence(NamedTuple):
    """One thing found wrong; `expected` and `recorded` are plain values (text, numbers) or None for nothing."""

    position: int
    what: str
    expected: Any = None
    recorded: Any = None
    remedy: str = ""

    def __str__(self) -> str:
        """Return it as one line; position 0 stands for the file as a whole."""
        where = f"position {self.position}: " if self.position else ""
        line = f"{where}{self.what}: expected {in_words(self.expected)}, recorded {in_words(self.recorded)}"
        return f"{line}; {self.remedy}" if self.remedy else line

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape."""
        return self._asdict()


def in_words(value: Any) -> str:
    """Return an expected or a recorded value in words."""
    return "nothing" if value is None else value if isinstance(value, str) else repr(value)
