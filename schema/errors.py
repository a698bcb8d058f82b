"""What can go wrong, in words a person can act on.

Every error says *what* happened, *where* (file, task, job, position) and the *remedy*. Its class says who
has to act: the caller (`CallerError`), no one yet (`TemporaryError`: try again later), the owner of the
log (`LogError` and below), or us (`InternalError`). `exit_code` is what the command line returns for it.
Foreign errors (SQLAlchemy, OS, YAML) are mapped onto these once, in the adapter that met them.

What constructors expect: a wrong or swapped argument is refused where it is given, by name, not at its first use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class DatataskError(Exception):
    """The root of all errors that datatask raises on purpose: `what`, `where`, `remedy`, all plain text."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    @property
    def fact(self) -> str:
        """Where and what, without the remedy."""
        return f"{self.where}: {self.what}" if self.where else self.what

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(cls: type[DatataskError], what: str, where: str, remedy: str) -> DatataskError:
    return cls(what, where=where, remedy=remedy)


class CallerError(DatataskError):
    """The call is wrong; calling again unchanged fails again. The classes below say why; the `code` of most is this one's."""

    code = "usage"
    exit_code = 2


class InvalidValueError(CallerError):
    """An argument, an option or a text is not what is expected there, or contradicts another."""


class NotPossibleError(CallerError):
    """What is asked for cannot be done with this one, or not in the state that it is in."""


class NotInstalledError(CallerError):
    """A package or program that this needs is not installed."""


class AlreadyThereError(CallerError):
    """A file or folder that would be made is there already."""


class AlreadyOpenError(CallerError):
    """A pipeline, a session or a repository is open already, or was; each is opened once."""


class NotOpenError(CallerError):
    """A pipeline, a session, a log or a stream is not open, or is open no longer."""


class NoLogError(CallerError):
    """There is no log at the place that was named, or none that lasts."""


class OtherPipelineError(CallerError):
    """The log belongs to another pipeline."""


class InvalidJobError(InvalidValueError, KeyError):
    """A job id that is not 1-128 letters, digits, `.`, `_`, `-` with an alphanumeric at both ends."""

    code = "invalid_job"
    __str__ = DatataskError.__str__


class UnknownNameError(CallerError, LookupError):
    """A task, link, repository, quota or run that the pipeline or the log does not have."""

    code = "unknown_name"


class RunOpenError(CallerError):
    """A launch was asked for a (task, job) that has an open run already."""

    code = "run_open"


class TemporaryError(DatataskError):
    """It may work later; nothing was changed."""

    code = "temporary"
    exit_code = 1


class SystemTroubleError(DatataskError):
    """The machine did not do what was asked of it: a disk, memory, a descriptor; what is in the log stays."""

    code = "system"
    exit_code = 1


class StoreError(DatataskError):
    """A store did not take what it was given; what it has is as before."""

    code = "store"
    exit_code = 1


class ConflictError(StoreError):
    """Another has changed a key since this run read it: the run's writes would undo that, and it is run again."""

    code = "conflict"


class TimeLimitError(DatataskError, TimeoutError):
    """The time that the caller allowed has passed; the work so far is in the log."""

    code = "timeout"
    exit_code = 7


class NothingCanProgressError(DatataskError):
    """Jobs are waiting for what cannot come by itself."""

    code = "stuck"
    exit_code = 6


class LogError(DatataskError):
    """The log cannot be used as it is."""

    code = "log"
    exit_code = 5


class LogDamagedError(LogError):
    """The log does not say what it said when it was written: the position is named in `where`."""

    code = "log_damaged"


class LogGoneError(LogError):
    """The log's file was removed, moved, replaced or emptied while it was open."""

    code = "log_gone"


class ValueDamagedError(LogError):
    """The bytes of a value, beside the log, are not those that were recorded."""

    code = "value_damaged"


class FutureLogError(LogError):
    """The log was written by a newer version, or holds an essential event that this one does not know."""

    code = "log_version"


class LeaseHeldError(LogError):
    """Another engine holds the log; `where` names its host and pid."""

    code = "lease_held"
    exit_code = 4


class LeaseLostError(LogError):
    """This engine's epoch is no longer the log's: it must stop, and nothing was written."""

    code = "lease_lost"
    exit_code = 4


class ServiceFailedError(DatataskError):
    """Part of an engine failed again and again; the engine has stopped rather than go on without it."""

    code = "service"
    exit_code = 70


class InternalError(DatataskError):
    """A promise of ours is broken; please report it with the log."""

    code = "internal"
    exit_code = 1


def error_with(code: str) -> type[DatataskError]:
    """Return the class of the errors with a code, the most general one; `CallerError` for an unknown code."""
    kinds = [
        kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, DatataskError)
    ]
    return next((kind for kind in kinds if kind.code == code), CallerError)


NAMES_MAX = 20


def one_of(known: Iterable[str], name: str = "") -> str:
    """Return a remedy: the names that are most like `name`, or all of them; empty where there are none."""
    names = sorted(known)
    if name:
        import difflib  # costs more than all other imports of this module

        names = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names
    return "use one of: " + ", ".join(names[:NAMES_MAX]) if names else ""


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that is none; `what` says of what, `a task` for instance."""
    return UnknownNameError(
        f"there is no {what} {name}" if what else f"there is no {name}", remedy=one_of(known, name)
    )


TEXT = "a text"
FLAG = "True or False"
FUNCTION = "a function"
PATH = "a path"
_CHECKS: dict[str, Any] = {
    TEXT: lambda value: isinstance(value, str),
    FLAG: lambda value: isinstance(value, bool | int),
    FUNCTION: callable,
    PATH: lambda value: isinstance(value, str) or hasattr(type(value), "__fspath__"),
}


def expect(
    owner: object, wanted: str | type, remedy: str = "", *, optional: bool = False, **values: object
) -> None:
    """Raise `InvalidValueError` for the first of `values` that is not as wanted: one of the kinds above, or a class.

    `optional` lets None pass; `owner` is whose constructor it is.
    """
    for name, value in values.items():
        if not (optional and value is None):
            expect_one(owner, wanted, name, value, remedy)


def expect_one(owner: object, wanted: str | type, name: str, value: object, remedy: str = "") -> None:
    """Raise `InvalidValueError` when the value that was given as `name` is not as wanted."""
    if isinstance(value, wanted) if isinstance(wanted, type) else _CHECKS[wanted](value):
        return
    what = f"a {wanted.__name__}" if isinstance(wanted, type) else wanted
    try:
        given = f"{value!r:.80}"
    except Exception:
        given = "what has no text"
    raise InvalidValueError(
        f"{name} is {given} (of type {type(value).__name__}), not {what}",
        where=type(owner).__name__,
        remedy=remedy or f"pass {what} as {name}; are arguments swapped?",
    )
