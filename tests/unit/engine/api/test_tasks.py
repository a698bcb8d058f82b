"""Tasks as users write them: links, plug, readiness, policies."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from datatask import (
    STDOUT,
    AggregateAndRepository,
    BlockingRepository,
    ExecutorTask,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    InProcessSyncTask,
    Link,
    LocalLinuxManager,
    ProcessTask,
    Resources,
    Retry,
    Task,
)
from datatask.engine.api.repositories import RelatedItemRepository
from datatask.engine.api.tasks import LinkNameError, MissingFunctionError
from datatask.schema.definition import RetryDef
from datatask.schema.errors import CallerError
from datatask.schema.units import SECOND

Meta = InProcessMetadataRepository
Blob = InProcessBlobRepository


def a_task(name: str = "t", **more: Any) -> InProcessSyncTask:
    """Return a function task with `inp` and `out`."""
    task = InProcessSyncTask(name, Meta(), **more)
    task.link("inp", Meta(), is_input=True)
    task.link("out", Meta(), is_output=True)
    return task


def a_process(**more: Any) -> ProcessTask:
    """Return a process task with all links."""
    return ProcessTask("p", LocalLinuxManager("app"), None, Resources(), Meta(), "true", **more)


def dispositions(link: Link) -> str:
    """Return the link's dispositions that are set, as one string."""
    return " ".join(name for name, value in vars(link).items() if value is True)


def test_links_default_as_documented() -> None:
    """Inputs are required for the start, outputs for the output, unless said otherwise."""
    task = a_task()
    task.link("plain", Meta())
    task.link("optional", Meta(), is_input=True, required_for_start=False)
    task.link("byproduct", Meta(), is_output=True, required_for_output=False)
    assert {name: dispositions(link) for name, link in task.links.items()} == {
        "done": "is_status inhibits_start required_for_output",
        "inp": "is_input required_for_start",
        "out": "is_output required_for_output",
        "plain": "",
        "optional": "is_input",
        "byproduct": "is_output",
    }
    assert list(task.input) == ["inp", "optional"]
    assert list(task.output) == ["out", "byproduct"]
    assert list(task.status) == ["done"]
    assert list(task.required_for_start) == ["inp"]
    assert list(task.inhibits_start) == ["done"]
    assert list(task.inhibits_output) == []
    assert list(task.required_for_output) == ["done", "out"]


def test_a_link_is_named_once() -> None:
    """pydatatask silently took the last one."""
    with pytest.raises(CallerError, match="has a link inp already"):
        a_task().link("inp", Meta())


def test_a_link_is_a_repository() -> None:
    """A dict is not, and None is not."""
    with pytest.raises(CallerError, match="NoneType"):
        a_task().link("more", None)  # type: ignore[arg-type]


def test_the_links_of_each_kind_of_task() -> None:
    """As pydatatask has them."""
    process = a_process(done=Meta(), stdin=Blob(), stdout=Blob(), stderr=Blob())
    assert {name: dispositions(link) for name, link in process.links.items()} == {
        "pids": "is_status inhibits_start inhibits_output",
        "stdin": "is_input required_for_start",
        "stdout": "is_output required_for_output",
        "stderr": "is_output required_for_output",
        "done": "is_status inhibits_start required_for_output",
    }
    executor = ExecutorTask("e", lambda: None, Meta())
    assert {name: dispositions(link) for name, link in executor.links.items()} == {
        "live": "is_status inhibits_start inhibits_output",
        "done": "is_status inhibits_start required_for_output",
    }


def test_stderr_may_be_stdout() -> None:
    """Then there is one link for both, and `.stderr` is stdout's repository."""
    out = Blob()
    process = a_process(stdout=out, stderr=STDOUT)
    assert "stderr" not in process.links
    assert process.stderr is out


def test_plug_takes_outputs_as_inputs_and_carries_the_dispositions() -> None:
    """Outputs keep their names, what is not an output is named after the other task."""
    process = a_process(done=Meta(), stdout=Blob())
    task = InProcessSyncTask("t", Meta())
    task.plug(process)
    assert {name: dispositions(link) for name, link in task.links.items() if name != "done"} == {
        "stdout": "is_input required_for_start",
        "p_pids": "inhibits_start",
        "p_done": "required_for_start",
    }


def test_plug_keeps_that_an_output_is_not_required() -> None:
    """pydatatask forgot it."""
    first, second = a_task("first"), InProcessSyncTask("second", Meta())
    first.link("byproduct", Meta(), is_output=True, required_for_output=False)
    second.plug(first)
    assert dispositions(second.links["byproduct"]) == "is_input"
    assert dispositions(second.links["out"]) == "is_input required_for_start"


def test_plug_with_an_allowlist_and_without_meta() -> None:
    """`output_links=[]` still carries the bookkeeping, `meta=False` carries none."""
    first, second, third = (
        a_task("first"),
        InProcessSyncTask("second", Meta()),
        InProcessSyncTask("third", Meta()),
    )
    second.plug(first, output_links=[])
    assert {*second.links} == {"done", "first_done"}
    third.plug(first, meta=False)
    assert {*third.links} == {"done", "out"}
    assert dispositions(third.links["out"]) == "is_input required_for_start"
    with pytest.raises(CallerError, match="no link nothing"):
        third.plug(first, output_links=["nothing"])


def test_plug_through_a_translator() -> None:
    """Each repository is wrapped."""
    first, second = a_task("first"), InProcessSyncTask("second", Meta())
    translator = Meta()
    second.plug(first, translator=translator)
    wrapped = [link.repo for name, link in second.links.items() if name != "done"]
    assert all(isinstance(repo, RelatedItemRepository) for repo in wrapped)


def test_plug_that_requires_success() -> None:
    """The view takes the place of the done entry."""
    first, second = a_task("first"), InProcessSyncTask("second", Meta())
    second.plug(first, require_success=True)
    assert {name: dispositions(link) for name, link in second.links.items() if name != "done"} == {
        "out": "is_input required_for_start",
        "first_succeeded": "required_for_start",
    }
    assert second.links["first_succeeded"].repo is first.succeeded


async def test_ready_is_what_the_links_say() -> None:
    """Required, and not inhibited; an override wins; nothing required is the caller's mistake."""
    task = a_task()
    assert isinstance(task.ready, BlockingRepository)
    task.input["inp"].data.update(a=1, b=2)  # type: ignore[attr-defined]
    task.status["done"].data["a"] = {}  # type: ignore[attr-defined]
    assert [job async for job in task.ready] == ["b"]
    override = Meta()
    assert a_task(ready=override).ready is override
    lonely = InProcessSyncTask("lonely", Meta(), func=nothing)
    with pytest.raises(CallerError, match="which jobs task lonely is for"):
        await lonely.validate()


def test_ready_without_inhibitors() -> None:
    """pydatatask raised AssertionError."""

    class Plain(Task):
        async def update(self) -> bool:
            return False

        async def launch(self, job: str) -> None: ...

    task = Plain("plain")
    task.link("inp", Meta(), is_input=True)
    assert isinstance(task.ready, AggregateAndRepository)
    assert task.opaque
    assert not a_task().opaque


async def nothing(job: str) -> None:
    """A function."""


async def test_functions_are_checked() -> None:
    """There is one, it is async, and each parameter is `job` or a link."""
    with pytest.raises(ValueError, match="task t has no function") as missing:
        await a_task().validate()
    assert isinstance(missing.value, MissingFunctionError)

    async def odd(job: str, other: Any) -> None: ...

    with pytest.raises(NameError, match="parameter other of the function") as name:
        await a_task(func=odd).validate()
    assert isinstance(name.value, LinkNameError)

    async def rest(job: str, **rest: Any) -> None: ...

    with pytest.raises(NameError, match="rest"):
        await a_task(func=rest).validate()
    with pytest.raises(CallerError, match="not async"):
        await a_task(func=lambda job: None).validate()
    await a_task(func=nothing).validate()


def test_a_decorator_returns_the_task() -> None:
    """The name of the function is the task from then on."""
    task = a_task()
    assert task(nothing) is task
    assert task.func is nothing


async def test_an_unopened_task_says_so() -> None:
    """Launching needs an engine."""
    task = a_task(func=nothing)
    for call in (task.launch("j"), task.cancel("j"), task.update()):
        with pytest.raises(CallerError, match="not in an open pipeline"):
            await call


async def test_views_of_an_unopened_task_are_empty() -> None:
    """They live in the engine; only `live` can be deleted from."""
    task = a_task()
    assert [job async for job in task.live] == []
    assert not await task.succeeded.contains("j")
    assert (task.live.id, task.failed.id) == ("live(t)", "failed(t)")
    await task.live.delete("j")
    with pytest.raises(CallerError, match="follows from what happened"):
        await task.failed.delete("j")


@pytest.mark.parametrize(
    "wrong", [{"timeout": -1}, {"timeout": "soon"}, {"grace": float("nan")}, {"concurrency": 0}]
)
def test_durations_and_limits_are_checked(wrong: dict[str, Any]) -> None:
    """By the task's name."""
    with pytest.raises(CallerError, match="task t"):
        a_task(**wrong)


def test_retry_as_declared() -> None:
    """Seconds are a fixed wait; three numbers grow."""
    assert Retry().to_def() == RetryDef(attempts=1, first=SECOND, factor=1.0, longest=SECOND)
    growing = Retry(5, backoff=(0.5, 3, 60), on=("failed",), jitter=0)
    assert growing.to_def() == RetryDef(
        attempts=5, first=SECOND // 2, factor=3, longest=60 * SECOND, jitter=0, on=("failed",)
    )
    refused: tuple[dict[str, Any], ...] = (
        {"attempts": 0},
        {"on": "failed"},
        {"on": ("never",)},
        {"backoff": -1},
        {"jitter": 2},
    )
    for wrong in refused:
        with pytest.raises(CallerError):
            Retry(**wrong)


def test_public_parameters_are_pydatatasks() -> None:
    """In its order, so that positional calls go on working."""
    expected = {
        InProcessSyncTask: "name done ready func",
        ExecutorTask: "name executor done ready func",
        ProcessTask: "name manager resource_manager job_resources pids template window environ done stdin stdout "
        "stderr ready",
        Task: "name ready disabled",
    }
    for cls, names in expected.items():
        parameters = inspect.signature(cls).parameters.values()
        positional = [
            parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert positional == names.split()
