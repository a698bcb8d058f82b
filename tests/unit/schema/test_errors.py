"""Errors by cause: each kind of wrong call has a class of its own, with the code and exit code that all have."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

import datatask
from datatask.schema import errors
from datatask.schema.errors import CallerError, DatataskError, error_with, one_of, unknown

CAUSES = (
    errors.InvalidValueError,
    errors.NotPossibleError,
    errors.NotInstalledError,
    errors.AlreadyThereError,
    errors.AlreadyOpenError,
    errors.NotOpenError,
    errors.NoLogError,
    errors.OtherPipelineError,
)


def _pipeline(log: Path, name: str = "one") -> datatask.Pipeline:
    return datatask.Pipeline([], datatask.Session(), name=name, log=log, durability="process")


@pytest.mark.parametrize("kind", CAUSES)
def test_what_a_command_prints_is_the_same_for_all_causes(kind: type[CallerError]) -> None:
    """The JSON `code` and the exit code are those of `CallerError`, and the class survives a process border."""
    assert (kind.code, kind.exit_code) == (CallerError.code, CallerError.exit_code) == ("usage", 2)
    assert getattr(datatask, kind.__name__) is kind
    again = pickle.loads(pickle.dumps(kind("what", where="where", remedy="remedy")))
    assert type(again) is kind
    assert str(again) == "where: what; remedy"


def test_a_code_stands_for_its_most_general_class() -> None:
    """A refusal bears a code only: `usage` must not become one of the causes."""
    assert error_with("usage") is CallerError
    assert error_with("run_open") is errors.RunOpenError
    assert error_with("of a later version") is CallerError
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DatataskError)
    ]
    assert all(issubclass(kind, error_with(kind.code)) for kind in kinds)


def test_names_are_proposed_by_likeness() -> None:
    """The nearest names, all where none is near, nothing where there are none."""
    assert one_of(["resize", "collect"], "resiez") == "use one of: resize"
    assert one_of(["b", "a"], "zzz") == "use one of: a, b"
    assert one_of([]) == ""
    assert str(unknown("task", "resiez", ["resize"])) == "there is no task resiez; use one of: resize"


async def test_a_caller_tells_the_causes_apart(tmp_path: Path) -> None:
    """No log, not open, open already, another pipeline's, a bad value, an unknown name."""
    log = tmp_path / "log.db"
    with pytest.raises(datatask.NoLogError):
        datatask.History(log)
    pipeline = _pipeline(log)
    with pytest.raises(datatask.NotOpenError):
        await pipeline.run()
    async with pipeline:
        with pytest.raises(datatask.UnknownNameError):
            await pipeline.put("nowhere", "job", 1)
        with pytest.raises(datatask.UnknownNameError):
            await pipeline.gather_ready_jobs("nothing")
        with pytest.raises(datatask.NotPossibleError):
            pipeline.run_sync()
        with pytest.raises(datatask.AlreadyOpenError):
            await pipeline.open()
    with pytest.raises(datatask.OtherPipelineError):
        await _pipeline(log, "other").open()
    with pytest.raises(datatask.InvalidValueError):
        datatask.Pipeline([], "session")  # type: ignore[arg-type]
    with datatask.History(log) as history, pytest.raises(datatask.InvalidValueError):
        history.status(at="yesterday or so")
    with pytest.raises(datatask.AlreadyThereError):
        (tmp_path / "copy").mkdir()
        datatask.backup(log, tmp_path / "copy")
