"""How a process ended, in the engine's words, and whether its outputs are what it wrote.

In: an exit code, the reason of a stop, what is wrong with outputs; a checksum as POSIX's `cksum`, or `sha256sum`, prints it.
Out: an `Ending`; whether content has that checksum. POSIX's CRC is not zlib's: its bits are reversed and the length
follows the content. Checksums block.
"""

from __future__ import annotations

import hashlib
import signal
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from datatask.engine.runtime.calls import stopped_message, stopped_outcome
from datatask.schema.events import MACHINE, Ending, ErrorInfo, Outcome, StopReason

OUT_OF_MEMORY_PERHAPS = "the kernel has killed for lack of memory meanwhile, perhaps this process"


UNSTARTED = "the engine stopped before this run was started"


def ended_by_machine(what: str, message: str, exit_code: int | None = None) -> Ending:
    """Return the ending of a run that its machine, node or service ended, `what` in a word: it uses up no budget."""
    error = ErrorInfo(type="Lost", message=message)
    return Ending(outcome="lost", exit_code=exit_code, error=error, detail={MACHINE: what})


def unstarted_ending(message: str = UNSTARTED) -> Ending:
    """Return the ending of a run that never began, since its engine was stopped before."""
    return ended_by_machine("unstarted", message)


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


def cut(name: str, written: int, there: int) -> str:
    """Say what is wrong with an output that was cut when its process had written so many bytes."""
    what = f": {written} bytes were written, {there} are there"
    if written <= there:
        what = f", when {written} bytes had been written"
    return (
        f"its {name} was cut while it ran{what}"
        " (somebody else did it, or the script by opening /dev/stdout or /dev/stderr; see >&1 and >&2)"
    )


def exchanged(name: str) -> str:
    """Say what is wrong with an output that is not the one that was there when its process ended."""
    return f"its {name} was exchanged or written by somebody else after it had ended"


def on_full_disk(ending: Ending) -> Ending:
    """Return the ending of a process on whose outputs' disk there was no room when it ended: a success is not proved by its code."""
    words = "the disk of its outputs was full when it ended: what it wrote may not be all there"
    return judged(ending, {"": words}, ())


def judged(ending: Ending, wrong: Mapping[str, str], found: Collection[str]) -> Ending:
    """Return the ending in the light of what is wrong with outputs, by their names; `found` are those that are collected.

    A success without one of them is `lost`, one with a part of it `failed`.
    """
    if not wrong:
        return ending
    words = "; ".join(wrong.values())
    if ending.outcome != "succeeded":
        error = ending.error or ErrorInfo(type="Output", message="")
        more = ErrorInfo(type=error.type, message=f"{error.message}; {words}".removeprefix("; "))
        return msgspec.structs.replace(ending, error=more)
    outcome: Outcome = "failed" if all(name in found for name in wrong) else "lost"
    return msgspec.structs.replace(ending, outcome=outcome, error=ErrorInfo(type="Output", message=words))


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


CHUNK_BYTES = 1 << 20
_BEGIN = 0xFFFFFFFF
_SHA256_DIGITS = 64
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def fits(printed: str, content: bytes | Path, size: int) -> bool:
    """Whether the first `size` bytes have this checksum; true where no checksum was made."""
    if not printed:
        return True
    if len(printed) == _SHA256_DIGITS:
        digest = hashlib.sha256()
        for data in _parts(content, size):
            digest.update(data)
        return digest.hexdigest() == printed
    crc = _BEGIN
    for data in _parts(content, size):
        crc = _more(data, crc)
    length = size.to_bytes((size.bit_length() + 7) // 8, "little")
    return f"{_more(length, crc):032b}"[::-1] == f"{int(printed):032b}"


def _parts(content: bytes | Path, size: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content[:size]
        return
    with content.open("rb") as file:
        while size and (data := file.read(min(size, CHUNK_BYTES))):
            yield data
            size -= len(data)


def _more(data: bytes, crc: int) -> int:
    return zlib.crc32(data.translate(_TURNED), crc)
