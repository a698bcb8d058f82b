"""Gathered: what is declared, what it says of itself, and one line for what cannot be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from datatask import (
    DatataskError,
    Gathered,
    InProcessMetadataRepository,
    InProcessSyncTask,
    Pipeline,
    Repository,
    Session,
)
from datatask.engine.api.declare import declare
from datatask.schema import definition as d


def a_task(name: str = "t") -> InProcessSyncTask:
    """Return a task with an input, an output and what holds it back."""
    task = InProcessSyncTask(name, done=InProcessMetadataRepository(name=f"{name}.done"))
    task.link("source", InProcessMetadataRepository(name="source"), is_input=True)
    task.link("skip", InProcessMetadataRepository(name="skip"), inhibits_start=True)
    task.link("out", InProcessMetadataRepository(name="out"), is_output=True)

    @task
    async def double(job: str, source: Any, skip: Repository, out: Any) -> None:
        value = await source.info(job)
        if value is None:
            raise ValueError("nothing to double")
        await out.dump(job, 2 * value)

    return task


def reader(gathered: Gathered, seen: list[tuple[str, Any]]) -> InProcessSyncTask:
    """Return a task that notes what it gets."""
    task = InProcessSyncTask("u", done=InProcessMetadataRepository(name="u.done"))
    task.link("all", gathered, is_input=True)

    @task
    async def note(job: str, all: Repository) -> None:
        seen.append((job, await all.info(job)))

    return task


TASK = a_task()
STORE = InProcessMetadataRepository(name="store")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"of": TASK, "batch": 0}, "batch=0"),
    ({"of": TASK, "batch": True}, "batch=True"),
    ({"of": TASK, "count": -1}, "count=-1"),
    ({"of": TASK, "share": 1.5}, "share=1.5"),
    ({"of": TASK, "share": 0}, "share=0"),
    ({"of": TASK, "share": float("nan")}, "share=nan"),
    ({"of": TASK, "share": "half"}, "share='half'"),
    ({"of": TASK, "share": 0.5, "count": 3}, "share and count together"),
    ({"of": TASK, "batch": 3, "by": "x"}, "batch and by together"),
    ({"of": TASK, "which": "failed"}, "which='failed' is no choice"),
    ({"of": TASK, "late": "never"}, "late='never' is no choice"),
    ({"of": TASK, "by": "("}, "is no regular expression"),
    ({"of": TASK, "by": r"(\w)-(\w)"}, "has 2 groups"),
    ({"of": TASK, "by": 3}, "by is a int"),
    ({"of": TASK, "job": "a b"}, "'a b' is not a job id"),
    ({"of": STORE}, "nothing says when all members of a repository are there"),
    ({"of": STORE, "batch": 2, "rest": True}, "nobody knows whether more will come"),
    ({"of": STORE, "which": "succeeded", "count": 1}, "only tasks succeed"),
    ({"of": "t"}, "of='t' is a str"),
]


@pytest.mark.parametrize(("given", "says"), WRONG, ids=[says for _, says in WRONG])
def test_what_cannot_be_gets_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DatataskError) as caught:
        Gathered(**given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_that_is_not_in_the_pipeline_is_named() -> None:
    with pytest.raises(DatataskError, match=r"no task .*u.all.* elsewhere") as caught:
        declare([reader(Gathered(a_task("elsewhere")), [])])
    assert "\n" not in str(caught.value)


def test_the_definition_says_it_all() -> None:
    """What is held back for good is not waited for; a share is a part of all, those that failed too."""
    task = a_task()
    declared = declare([task, reader(Gathered(task, "succeeded", by=r"^(\w)"), [])]).definition
    rule = {one.id: one.derived for one in declared.repositories}["gathered(t)"]
    assert isinstance(rule, d.GatheredDef)
    assert (rule.key, rule.pattern, rule.late) == ("name", r"^(\w)", "again")
    assert rule.base == d.In(leaf="succeeded(t)")
    waited = repr(rule.translator)
    assert "source" in waited
    assert "skip" in waited
    assert "failed(t)" in waited


Seen = list[tuple[str, Any]]


def gathered_by(values: dict[str, Any], later: dict[str, Any] | None = None, **given: Any) -> Seen:
    """Run a pipeline with these values, and once more with others; return what the reader got."""
    task, seen = a_task(), Seen()
    pipeline = Pipeline([task, reader(Gathered(task, **given), seen)], Session())

    async def run() -> None:
        async with pipeline:
            for more in (values, later or {}):
                for job, value in more.items():
                    await pipeline.put("t.source", job, value)
                await pipeline.run(timeout=5)

    asyncio.run(run())
    return seen


THREE = {"a-1": 1, "a-2": 2, "b-1": 3}


def test_all_of_a_task_with_its_values_and_again_for_a_late_one() -> None:
    doubled = {"a-1": 2, "a-2": 4, "b-1": 6}
    assert gathered_by(THREE, {"c": 4}) == [("all", doubled), ("all.2", {**doubled, "c": 8})]


def test_a_late_one_is_ignored() -> None:
    assert [job for job, _ in gathered_by(THREE, {"c": 4}, late="ignore")] == ["all"]


def test_those_that_succeeded() -> None:
    assert gathered_by({"a": 1, "b": None}, which="succeeded") == [("all", {"a": 2})]
    assert gathered_by({"a": 1, "b": None}, which="succeeded", share=1.0) == []
    assert gathered_by({"a": 1, "b": None}) == [("all", {"a": 2, "b": None})]


def test_groups_by_name_by_value_and_by_function() -> None:
    by_name = gathered_by(THREE, by=r"^(\w)-")
    assert sorted(by_name) == [("a", {"a-1": 2, "a-2": 4}), ("b", {"b-1": 6})]
    assert sorted(gathered_by(THREE, by=lambda job: job[0])) == sorted(by_name)
    task, seen = a_task(), Seen()
    source: Any = task.links["source"].repo
    gathered = Gathered(task, by=source.map(lambda value: "odd" if value % 2 else "even"))
    pipeline = Pipeline([task, reader(gathered, seen)], Session())

    async def run() -> None:
        async with pipeline:
            for job, value in THREE.items():
                await pipeline.put("t.source", job, value)
            await pipeline.run(timeout=5)

    asyncio.run(run())
    assert sorted(job for job, _ in seen) == ["even", "odd"]


def test_batches_and_what_is_left() -> None:
    seen = gathered_by({f"j{number}": number for number in range(5)}, batch=2)
    assert sorted(len(values) for _, values in seen) == [1, 2, 2]
    assert {job for job, _ in seen} == {"batch-1", "batch-2", "batch-3"}


def test_a_key_that_is_missing_gets_one_line() -> None:
    task = a_task()
    gathered = Gathered(task, by=lambda job: str({}[job]))
    with pytest.raises(DatataskError, match=r"a has no key: KeyError 'a'"):
        asyncio.run(gathered.evaluate("a"))
    with pytest.raises(DatataskError, match="cannot name a job"):
        asyncio.run(Gathered(task, by=lambda job: "no job").evaluate("a"))


def test_it_cannot_be_deleted_from() -> None:
    with pytest.raises(DatataskError, match="follows from what is gathered"):
        asyncio.run(Gathered(a_task()).delete("all"))
