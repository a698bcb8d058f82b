"""What the engine has to say while it works: one line on stderr, never a traceback unless --debug asks for it."""

from __future__ import annotations

import logging
import sys

from datatask.schema.troubles import shown

_LOGGER, _LOOP = "datatask", "asyncio"


class Lines(logging.Handler):
    """Writes records to whatever stderr is at that moment, so that a live display can keep its place."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__(logging.DEBUG if debug else logging.WARNING)
        self._debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = f"{record.levelname.lower()}: {_said(record)}"
        if record.exc_info is not None and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {error})"
        lines = [shown(" ".join(text.split()))]
        if self._debug and record.exc_info:
            lines.append(logging.Formatter().formatException(record.exc_info))
        try:
            sys.stderr.write("\n".join(lines) + "\n")
        except (OSError, ValueError):
            self.handleError(record)


def _said(record: logging.LogRecord) -> str:
    """Return a record's message; of asyncio's, which tell of objects and where they were made, that something failed."""
    return record.getMessage() if record.name != _LOOP else "something in the background failed"


def listen(*, debug: bool) -> None:
    """Print what our loggers say, unless the program has arranged for that itself."""
    for name in (_LOGGER, _LOOP):
        logger = logging.getLogger(name)
        if logging.getLogger().handlers or any(not isinstance(known, Lines) for known in logger.handlers):
            continue
        for known in list(logger.handlers):
            logger.removeHandler(known)
        logger.addHandler(Lines(debug=debug))
        logger.propagate = False
