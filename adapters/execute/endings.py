"""How a process ended, in the engine's words: from an exit code, or from the reason of a stop."""

from __future__ import annotations

import signal

from datatask.engine.calls import stopped_message, stopped_outcome
from datatask.schema.events import Ending, ErrorInfo, StopReason

OUT_OF_MEMORY_PERHAPS = "the kernel has killed for lack of memory meanwhile, perhaps this process"


def exit_ending(code: int, why: str = "") -> Ending:
    """Return the ending of a process that was left alone; `code` is an exit code, or minus a signal's number.

    `why` is what is known beyond that about one that did not succeed.
    """
    if code == 0:
        return Ending(outcome="succeeded", exit_code=0)
    kind = "ExitCode" if code >= 0 else "Signal"
    words = f"{_words(code)}: {why}" if why else _words(code)
    return Ending(outcome="failed", exit_code=_shell_code(code), error=ErrorInfo(type=kind, message=words))


def stopped_ending(reason: StopReason, code: int | None = None) -> Ending:
    """Return the ending of a process that was stopped, and how it went then, if that is known."""
    how = "" if code is None else f" ({_words(code)})"
    error = ErrorInfo(type="Stopped", message=stopped_message(reason) + how)
    exit_code = None if code is None else _shell_code(code)
    return Ending(outcome=stopped_outcome(reason), exit_code=exit_code, error=error)


def _shell_code(code: int) -> int:
    """Return the code as a shell shows it: 128 + the signal's number for a killed process."""
    return code if code >= 0 else 128 - code


def _words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
