"""The version of datatask, and the storage format: its number, its mark, and the keys of the table `meta`.

Apart from `tables`, so that reading a log does not load SQLAlchemy.
"""

from __future__ import annotations

VERSION = "0.1.0"
"""The version of datatask; `datatask.__version__` and the wheel have it from here."""

FORMAT = 1
"""The storage format that this version writes; raised by a `LogUpgraded`."""

APPLICATION_ID = 0x64744C67
"""`dtLg`: what `file` and `PRAGMA application_id` tell of a log."""

META_KEYS: dict[str, str] = {
    "format": "the storage format, an integer",
    "may_read": "the oldest format a reader must know to read this log",
    "may_write": "the oldest format an engine must know to append to this log",
    "written_by": "the datatask version that created the log",
    "uuid": "the log's identity, 32 hex digits",
    "pipeline": "the name of the one pipeline that this log serves",
    "epoch": "how often an engine has opened the log; an append under an older epoch is refused",
    "host": "the host of the engine that opened it last",
    "pid": "the process of the engine that opened it last",
    "started": "when that engine opened it, UTC nanoseconds",
    "base": "the last position that lives in an archive, 0 when none does",
    "base_chain": "the chain hash at `base`, 32 bytes",
}
