"""Where a log is: a URL or a path in, a file and its sidecars out.

`sqlite:///relative/log.db`, `sqlite:////absolute/log.db`, a bare path and `memory:` are understood. Network
file systems are refused by name, because their locks and their shared memory do not keep the promises that
SQLite's write-ahead log and our lease rest on.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from datatask.schema.errors import InvalidValueError, NotPossibleError

MEMORY = "memory:"
DEFAULT = Path(".datatask") / "log.db"

_HOME = "user.datatask.home"
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb2",
        "smb3",
        "smbfs",
        "ncpfs",
        "afs",
        "lustre",
        "ceph",
        "gpfs",
        "beegfs",
        "pvfs2",
        "orangefs",
        "glusterfs",
        "panfs",
        "gfs2",
        "ocfs2",
        "davfs",
        "9p",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.gcsfuse",
        "fuse.davfs2",
        "fuse.juicefs",
        "fuse.beegfs",
        "fuse.mount-s3",
    ]
)


class Place(NamedTuple):
    """A log's canonical URL, and its file; None for a log in memory."""

    url: str
    path: Path | None


def locate(text: str | Path) -> Place:
    """Return the place that a URL or a path names; `CallerError` for a scheme that no log has."""
    given = str(text)
    if given in (MEMORY, "memory://", "sqlite://", ":memory:", "sqlite:///:memory:"):
        return Place(MEMORY, None)
    scheme, separator, rest = given.partition("://")
    if separator and scheme.replace("+aiosqlite", "").replace("+pysqlite", "") != "sqlite":
        raise InvalidValueError(
            f"{given!r:.200} is not the place of a log",
            remedy="use sqlite:///PATH, a path, or memory:",
        )
    path = home(at_home(unquote(rest.removeprefix("/")) if separator else given))
    return Place(f"sqlite:///{path}", path)


def at_home(text: str) -> Path:
    """Return a path with `~` in its place; `CallerError` for an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidValueError(
            "this home is not known", where=text, remedy="set HOME, or write the whole path"
        ) from error


def user_cache() -> Path | None:
    """Return the user's cache folder for this program, or None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "datatask"
    try:
        return Path.home() / ".cache" / "datatask"
    except RuntimeError:
        return None


def home(path: Path) -> Path:
    """Return the one name of a log's file by which its sidecars are found, whatever name leads to it.

    Symbolic links are followed. A hard link or a bind mount cannot be told from the name that the log was made under: that is
    kept in an extended attribute of the file, and counts for as long as it still leads to the file.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise NotPossibleError(
            f"the path cannot be followed: {error}", where=str(path), remedy="see its links"
        ) from error
    try:
        named = Path(os.fsdecode(os.getxattr(real, _HOME)))
        # One that is a link by now may go: what it leads to stays.
        return named if named.resolve() == named and os.path.samefile(named, real) else real
    except (OSError, RuntimeError, AttributeError):  # no file yet, none with attributes, or a system without
        return real


def remember_home(path: Path) -> None:
    """Note in the log's file that this is its name; `CallerError` where it has several and they cannot be told apart."""
    try:
        noted = os.fsencode(path)
        if _attribute(path) != noted:
            os.setxattr(path, _HOME, noted)
    except (OSError, AttributeError) as error:
        if os.stat(path).st_nlink > 1:
            raise NotPossibleError(
                "the log's file has several names, and this file system cannot note which is its own",
                where=str(path),
                remedy="keep one of the hard links, and make the others symbolic ones (`ln -s`)",
            ) from error


def _attribute(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, _HOME)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def default_path(beside: Path) -> Path:
    """Return the default place of a pipeline's log: `.datatask/log.db` beside the pipeline's file."""
    return (beside if beside.is_dir() else beside.parent).absolute() / DEFAULT


def lease_path(path: Path) -> Path:
    """Return the lease of the log at `path`."""
    return path.with_name(path.name + "-lease")


def blobs_path(path: Path) -> Path:
    """Return the folder of the log's blobs."""
    return path.with_name(path.name + ".blobs")


def inbox_path(path: Path) -> Path:
    """Return the folder of the log's inbox."""
    return path.with_name(path.name + ".inbox")


def quarantine_path(path: Path) -> Path:
    """Return the folder of what lay in the log's inbox and was not believed."""
    return inbox_path(path) / "quarantine"


def archives_path(log: Path) -> Path:
    """Return the folder of the archives of a log."""
    return log.with_name(log.name + ".archives")


def checkpoints_path(path: Path) -> Path:
    """Return the folder of the log's checkpoints."""
    return path.with_name(path.name + ".checkpoints")


def verified_path(path: Path) -> Path:
    """Return the folder of the states up to which the log was verified."""
    return checkpoints_path(path) / "verified"


def file_system(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds `path`; empty where the system does not tell.

    `mounts` is the text of /proc/self/mountinfo, read when not given.
    """
    if mounts is None:
        mounts = _MOUNTS.read_text(errors="surrogateescape") if _MOUNTS.exists() else ""
    resolved = path.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = Path(_unescaped(fields[4]))
        # The last mount on a point hides the earlier ones, hence >=.
        if len(point.parts) >= best and resolved.is_relative_to(point):
            best, kind = len(point.parts), after.split(" ")[0]
    return kind


def refuse_network(path: Path, mounts: str | None = None) -> None:
    """Raise `CallerError` when `path` is on a network file system."""
    kind = file_system(path, mounts)
    if kind in _NETWORK:
        raise NotPossibleError(
            f"a log cannot live on a network file system ({kind})",
            where=str(path),
            remedy="keep the log on a local disk (--log PATH); repositories may stay where they are",
        )


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
