"""Files that appear under their name whole, or not at all.

In: a path, and bytes as the caller writes them. Out: the file with all of them, on disk where it is to be durable; where
anything fails, what was there before, and nothing beside it. Standard library only.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_numbers = itertools.count()


@contextmanager
def whole(
    path: Path,
    *,
    durable: bool,
    fresh: str = "",
    opener: Callable[[str, int], int] | None = None,
    finish: Callable[[Path], object] = lambda fresh: None,
) -> Iterator[BinaryIO]:
    """Open a file beside `path` that replaces it when the body ends.

    `fresh` is its name until then, where one after a crash is to be found; `finish` is called with it, closed, just before.
    """
    beside = path.with_name(fresh or f"new-{os.getpid()}-{threading.get_ident()}-{next(_numbers)}")
    try:
        with open(beside, "wb", opener=opener) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        finish(beside)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file's bytes durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
