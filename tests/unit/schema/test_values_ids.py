"""Names of jobs and of tasks: what is accepted."""

from __future__ import annotations

import pytest

from datatask.schema.errors import CallerError, InvalidJobError
from datatask.schema.values import check_job, check_name, is_job


@pytest.mark.parametrize("job", ["a", "A9", "a.b-c_d", "0" * 128, "json.decoder"])
def test_job_ids(job: str) -> None:
    """Letters, digits, dot, underscore and dash, alphanumeric at both ends."""
    assert check_job(job) == job


@pytest.mark.parametrize(
    "job",
    ["", ".", "..", "a/b", "../a", "-a", "a-", "_a", "a b", "a\n", "а", "０", "0" * 129, "a\x00", None, 5],
)
def test_everything_else_is_no_job_id(job: object) -> None:
    """Path tricks, look-alikes of other alphabets, and too long ones; also a `KeyError`, as in pydatatask."""
    assert not is_job(job)
    with pytest.raises(InvalidJobError, match="is not a job id"):
        check_job(job)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        check_job(job)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "9a", "a b", "a/b", "x" * 129])
def test_names_are_checked(name: str) -> None:
    """Of tasks, links, quotas and pipelines."""
    with pytest.raises(CallerError, match="cannot name a task"):
        check_name(name, "task")
