"""A pipeline's objects as a definition: which leaf gets which id, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import (
    AggregateOrRepository,
    CallerError,
    FileRepository,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    ResourceManager,
    Resources,
    Task,
)
from datatask.engine.api.declare import declare
from datatask.schema import definition as d


async def body(job: str) -> None:
    """Do nothing."""


def task(name: str, source: Any, **options: Any) -> InProcessSyncTask:
    """Return a task with one input and an unnamed `done`."""
    made = InProcessSyncTask(name, InProcessMetadataRepository(), func=body, **options)
    made.link("source", source, is_input=True)
    return made


def ids(*tasks: Task) -> list[str]:
    """Return the leaf ids in order."""
    return [repository.id for repository in declare(tasks).definition.repositories]


def test_ids_are_the_name_else_the_place_else_the_first_link(tmp_path: Path) -> None:
    """And they do not depend on the order of unrelated tasks."""
    named, filed, plain = (
        LogMetadataRepository("named"),
        FileRepository(tmp_path),
        InProcessMetadataRepository(),
    )
    assert ids(task("one", named), task("two", filed), task("three", plain)) == [
        "one.done",
        "named",
        "two.done",
        f"FileRepository:{tmp_path}/*",
        "three.done",
        "three.source",
    ]


def test_two_objects_with_one_place_are_one_repository(tmp_path: Path) -> None:
    """Both are bound, one is listed."""
    declared = declare([task("one", FileRepository(tmp_path)), task("two", FileRepository(tmp_path))])
    assert len(declared.repositories) == 3
    assert len([id for _, id in declared.objects if id.startswith("FileRepository")]) == 2


def test_two_places_with_one_name_are_refused(tmp_path: Path) -> None:
    """The message shows both."""
    first, second = FileRepository(tmp_path, name="x"), FileRepository(tmp_path / "other", name="x")
    with pytest.raises(CallerError, match="two repositories are named x"):
        declare([task("one", first), task("two", second)])


def test_combinators_become_conditions() -> None:
    """An `or` of two inputs, and not done."""
    a, b = LogMetadataRepository("a"), LogMetadataRepository("b")
    declared = declare([task("t", AggregateOrRepository(left=a, right=b))])
    (definition,) = declared.definition.tasks
    either = d.Any(of=(d.In(leaf="a"), d.In(leaf="b")))
    assert definition.ready == d.All(of=(d.All(of=(either,)), d.Not(of=d.Any(of=(d.In(leaf="t.done"),)))))


def test_derived_leaves_have_structural_ids() -> None:
    """A filtered map and a translation, what they stand on before them."""

    async def even(job: str) -> bool:
        return int(job) % 2 == 0

    base, names = LogMetadataRepository("base"), LogMetadataRepository("names")
    upstream = task("up", base)
    upstream.link("out", LogMetadataRepository("out"), is_output=True)
    down = task("down", base.map(lambda info: info, even))
    down.plug(upstream, translator=names)
    assert ids(upstream, down) == [
        "up.done",
        "base",
        "out",
        "down.done",
        "filtered(base,even)",
        "names",
        "related(up.done,names)",
        "related(out,names)",
    ]


def test_quotas_get_names() -> None:
    """`default`, `default2`, and their own; as good as unlimited launches are none."""
    limits = Resources.parse(2, "1Gi")
    managers = [ResourceManager(limits), ResourceManager(limits, name="mine"), ResourceManager(limits)]
    tasks = [task(f"t{number}", LogMetadataRepository("in")) for number in range(3)]
    for made, manager in zip(tasks, managers, strict=True):
        made.resource_manager, made.job_resources = manager, Resources.parse(1, 0, 1)
    definition = declare(tasks).definition
    assert [quota.name for quota in definition.quotas] == ["default", "mine", "default2"]
    assert definition.quotas[0].launches is None
    assert [made.quota for made in definition.tasks] == ["default", "mine", "default2"]
    assert definition.tasks[0].resources == {"cpu": 10**9}


def test_equal_pipelines_have_equal_digests() -> None:
    """Made twice; a changed limit makes another one."""

    def digest(concurrency: int) -> str:
        return declare([task("t", LogMetadataRepository("in"), concurrency=concurrency)]).definition.digest()

    assert digest(3) == digest(3)
    assert digest(3) != digest(4)


def test_task_names_are_unique() -> None:
    """Where pydatatask let the second one win silently."""
    source = LogMetadataRepository("in")
    with pytest.raises(CallerError, match="two tasks are named t"):
        declare([task("t", source), task("t", source)])


def test_a_task_without_input_is_refused() -> None:
    """Nothing says which jobs it is for."""
    with pytest.raises(CallerError, match="no link says which jobs task t is for"):
        declare([InProcessSyncTask("t", InProcessMetadataRepository(), func=body)])


def test_only_ephemeral_pipelines_need_no_file() -> None:
    """In-process repositories throughout."""
    assert declare([task("t", InProcessMetadataRepository())]).ephemeral_only()
    assert not declare([task("t", LogMetadataRepository("in"))]).ephemeral_only()
