"""pydatatask's verbs as functions: what its command line did, importable, with its names and its plain text.

In: a pipeline, open in most cases. Out: what the verb prints on stdout, from the repositories as they are, so
that they answer also where no log is. `datatask` on the command line has the same verbs on the log.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from datatask.adapters.wiring.sets import evaluate, names, parse
from datatask.engine.api.declare import dependants
from datatask.engine.api.links import Link, ViewRepository
from datatask.engine.api.repositories import Repository
from datatask.engine.api.tasks import Task
from datatask.schema.errors import NotInstalledError, unknown
from datatask.schema.values import check_job

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline
    from datatask.adapters.wiring.rounds import Outcome

logger = logging.getLogger("datatask.main")

EVERY_JOB = "__all__"


async def update(pipeline: Pipeline) -> bool:
    """Work one round; returns whether anything is live or was done.

    Functions that run in this process have ended when it returns: pydatatask ran them within the round.
    """
    busy = await pipeline.update()
    runtime, tasks = pipeline.runtime, pipeline.tasks
    while runtime.failure is None and any(
        type(tasks[run.task]).synchronous for run in runtime.state.open_runs.values() if run.task in tasks
    ):
        await runtime.advanced()
    await runtime.flushed()
    return busy


async def run(
    pipeline: Pipeline, forever: bool = False, launch_once: bool = False, timeout: float | None = None
) -> Outcome:
    """Work until all is quiet; `TimeoutError` after `timeout` seconds."""
    return await pipeline.run(forever=forever, launch_once=launch_once, timeout=timeout)


async def print_status(pipeline: Pipeline, all_repos: bool = False) -> None:
    """Print the number of jobs behind each link: task, `task.link COUNT`, an empty line."""
    for task, links in _tasks(pipeline, all_repos):
        print(task.name)
        for name, link in links:
            count = 0
            async for _ in link.repo:
                count += 1
            print(f"{task.name}.{name} {count}")
        print()


async def print_trace(pipeline: Pipeline, all_repos: bool, jobs: Iterable[str]) -> None:
    """Print for each link which of the jobs are there."""
    wanted = [check_job(job) for job in jobs]
    for task, links in _tasks(pipeline, all_repos):
        print(task.name)
        for name, link in links:
            present = [job for job in wanted if await link.repo.contains(job)]
            print(f"{task.name}.{name} {' '.join(present)}")
        print()


def _tasks(pipeline: Pipeline, all_repos: bool) -> Iterator[tuple[Task, list[tuple[str, Link]]]]:
    """Yield each task with its links: inputs, then status, then the rest."""
    for task in pipeline.tasks.values():
        links = sorted(
            task.links.items(), key=lambda item: 0 if item[1].is_input else 1 if item[1].is_status else 2
        )
        yield (
            task,
            [
                (name, link)
                for name, link in links
                if all_repos or link.is_input or link.is_output or link.is_status
            ],
        )


async def list_data(pipeline: Pipeline, data: str | Iterable[str]) -> None:
    """Print the jobs of a set expression over `task.link` names, sorted; see `sets`."""
    text = data if isinstance(data, str) else " ".join(data)
    known = _names(pipeline)
    for task in pipeline.tasks.values():  # pydatatask's expressions say `a_b` for a task named `a-b`
        for name, link in task.links.items():
            known.setdefault(f"{task.name.replace('-', '_')}.{name}", link.repo)
    tree = parse(text, known)
    found: dict[str, set[str]] = {}
    for name in names(tree):
        if name not in known:
            raise unknown("", name, known)
        found[name] = {job async for job in known[name]}
    for job in sorted(evaluate(tree, found.__getitem__)):
        print(job)


def _names(pipeline: Pipeline) -> dict[str, Repository]:
    return {
        f"{task.name}.{name}": link.repo
        for task in pipeline.tasks.values()
        for name, link in task.links.items()
    }


def _find(pipeline: Pipeline, name: str) -> Repository:
    known = _names(pipeline)
    if name not in known:
        raise unknown("repository", name, known)
    return known[name]


async def cat_data(pipeline: Pipeline, data: str, job: str) -> None:
    """Print a job's value: bytes as they are, a document as YAML."""
    from datatask.adapters.yaml_text import dump_yaml

    repository: Any = _find(pipeline, data)
    check_job(job, where=data)
    if repository.is_blob():
        async with repository.open(job, "rb") as stream:
            content = await stream.read()
    elif repository.is_metadata():
        content = dump_yaml(await repository.info(job), f"{data} {job}")
    else:
        print("Error: cannot cat a repository which is not a blob or metadata")
        return
    _write(content)


def _write(content: bytes) -> None:
    """Write bytes to stdout, as text where stdout has been replaced by something that takes only text."""
    sys.stdout.flush()
    raw = getattr(sys.stdout, "buffer", None)
    if raw is None:
        sys.stdout.write(content.decode(errors="replace"))
    else:
        raw.write(content)
        raw.flush()


async def inject_data(pipeline: Pipeline, data: str, job: str) -> None:
    """Put what stdin holds as a job's value: a document in YAML, or bytes."""
    from datatask.adapters.yaml_text import load_yaml

    repository: Any = _find(pipeline, data)
    check_job(job, where=data)
    if not repository.is_metadata() and not repository.is_blob():
        print("Error: cannot inject data into a repository which is not a blob or metadata")
        return
    content = await asyncio.to_thread(_read)
    if repository.is_metadata():
        await repository.dump(job, load_yaml(content, "stdin", typed=True))
    else:
        async with repository.open(job, "wb") as stream:
            await stream.write(content)


def _read() -> bytes:
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if raw is None else raw.read()


async def delete_data(pipeline: Pipeline, data: str, recursive: bool, jobs: Iterable[str]) -> None:
    """Delete jobs (`__all__`: every one) from `task.link`, or from all that a task fills, with `recursive` from all
    that lies downstream; prints `job repository` for each.
    """
    listed = [jobs] if isinstance(jobs, str) else list(jobs)
    node: Task | Repository = pipeline.tasks[data] if data in pipeline.tasks else _find(pipeline, data)
    wanted = None if listed == [EVERY_JOB] else [check_job(job) for job in listed]
    if isinstance(node, Repository) and not recursive:
        targets = [node]
    else:
        reached = dependants(pipeline.tasks.values(), node, recursive)
        targets = [found.live if isinstance(found, Task) else found for found in reached]
    for repository in _last_inhibitors(pipeline, targets):
        present = [job async for job in repository]
        for job in present if wanted is None else [job for job in wanted if job in set(present)]:
            await repository.delete(job)
            print(job, repository)


def _last_inhibitors(pipeline: Pipeline, targets: list[Repository]) -> list[Repository]:
    """Put last what keeps a job from starting, which it would do on what is half deleted; leave out other views."""
    inhibits = {id(repo) for task in pipeline.tasks.values() for repo in task.inhibits_start.values()}
    lives = {id(task.live) for task in pipeline.tasks.values()}
    stored = [repo for repo in targets if not isinstance(repo, ViewRepository) or id(repo) in lives]
    return sorted(stored, key=lambda repo: 0 if id(repo) in lives else 2 if id(repo) in inhibits else 1)


async def launch(
    pipeline: Pipeline, task_name: str, job: str, sync: bool = False, meta: bool = True, force: bool = False
) -> bool:
    """Launch a job if it is ready, or with `force` in any case; with `sync` return when its run has ended."""
    task = pipeline.tasks.get(task_name)
    if task is None:
        raise unknown("task", task_name, pipeline.tasks)
    pipeline.settings(sync, meta)
    if not force and not await task.ready.contains(check_job(job)):
        logger.warning("Task is not ready to launch - use -f to force")
        return False
    await pipeline.launch(task_name, job, meta=meta)
    while sync and pipeline.runtime.failure is None and _is_open(pipeline, task_name, job):
        await pipeline.runtime.advanced()
    if sync:
        await pipeline.runtime.flushed()  # the state is ahead of the stores, in which the caller will look
    return True


def _is_open(pipeline: Pipeline, task: str, job: str) -> bool:
    state = pipeline.state
    return any((run.task, state.jobs[run.job]) == (task, job) for run in state.open_runs.values())


def shell(pipeline: Pipeline) -> None:
    """Open an IPython shell in which `pipeline` is the pipeline, not yet opened."""
    try:
        import IPython
    except ImportError as error:
        raise NotInstalledError(
            "IPython is not installed",
            remedy="pip install ipython, or install datatask with its extra [shell]",
        ) from error
    IPython.start_ipython(argv=[], user_ns={"pipeline": pipeline})
