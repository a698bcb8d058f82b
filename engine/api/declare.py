"""A pipeline's objects as a definition: which leaf is which, what each task rests on.

In: tasks with links to repository objects, in the user's words. Out: `Declared`, the definition that goes into
the log and the objects by leaf id. A leaf's id is its `name`, else its locator (kind and canonical place), else
`task.link` of its first link; derived leaves have structural ids. Two objects with one id must be one place.

A pipeline as a graph of tasks and repositories, for pydatatask's `graph()` and for drawing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace

from datatask.engine.api.links import Link, ViewRepository
from datatask.engine.api.parameters import Parameter
from datatask.engine.api.policies import ResourceManager, nanoseconds
from datatask.engine.api.repositories import DerivedLeaf, Repository, all_leaves
from datatask.engine.api.tasks import Task
from datatask.engine.core.expressions import unnegated
from datatask.schema import definition as d
from datatask.schema.errors import InvalidValueError, unknown
from datatask.schema.resources import UNLIMITED_LAUNCHES, Resources
from datatask.schema.units import NANO
from datatask.schema.values import check_name

TASKS_MAX = 10_000
REPOSITORIES_MAX = 100_000


@dataclass
class Declared:
    """The definition, and the objects behind its names."""

    definition: d.PipelineDef
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: list[tuple[Repository, str]] = field(default_factory=list)
    links: dict[tuple[str, str], Repository] = field(default_factory=dict)
    renamed: list[tuple[str, str, str]] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    """What only comes from outside, by leaf id: tasks read it and none fills it. With the `task.link` that reads it."""

    def find(self, name: str) -> Repository:
        """Return the repository with an id or at a `task.link`; `UnknownNameError` says which there are."""
        task, _, link = name.rpartition(".")
        found = self.links.get((task, link)) or self.repositories.get(name)
        if found is None:
            raise unknown("repository", name, map(".".join, self.links))
        return found

    def measure(self, tasks: Sequence[Task]) -> None:
        """Take what each run takes from the tasks anew: some know it only once they have been validated."""
        amounts = {task.name: _requests(task) for task in tasks}
        if any(task.requests != amounts[task.name] for task in self.definition.tasks):
            told = (
                replace(task, resources=amounts[task.name][0], later=amounts[task.name][1:])
                for task in self.definition.tasks
            )
            self.definition = replace(self.definition, tasks=tuple(told))

    def ephemeral_only(self) -> bool:
        """Whether nothing in the pipeline outlives the process: then neither need the log."""
        stored = [r for r in self.definition.repositories if r.medium not in ("derived", "view")]
        return all(repository.ephemeral for repository in stored)


def declare(
    tasks: Sequence[Task],
    *,
    name: str = "pipeline",
    priority: object = None,
    parameters: Sequence[Parameter] = (),
    logs: int = d.LOGS_BYTES,
    cache: bool = False,
) -> Declared:
    """Return the definition of a pipeline; `CallerError` names the task or repository that is declared wrongly."""
    _check_names(tasks)
    _check_parameters(tasks, parameters)
    names = _Names(tasks)
    for task in tasks:
        for link_name, link in task.links.items():
            for leaf in all_leaves(link.repo):
                names.give(leaf, task.name, link_name)
        for leaf in all_leaves(task.ready):
            names.give(leaf, task.name, "ready")
    quotas = _quotas(tasks)
    definition = d.PipelineDef(
        name=check_name(name, "pipeline"),
        repositories=tuple(names.definitions()),
        tasks=tuple(_task(task, names, quotas, priority is not None, logs, cache) for task in tasks),
        quotas=tuple(quotas[key] for key in quotas),
        parameters=tuple(parameter.to_def() for parameter in parameters),
    )
    links = {(task.name, link_name): link.repo for task in tasks for link_name, link in task.links.items()}
    renamed = [("task", task.was, task.name) for task in tasks if task.was]
    renamed += [("repository", leaf.was, id) for id, leaf in names.leaves.items() if leaf.was]
    return Declared(definition, names.leaves, names.objects(), links, renamed, _inputs(tasks, names))


def _inputs(tasks: Sequence[Task], names: _Names) -> dict[str, str]:
    read: dict[str, str] = {}
    filled: set[str] = set()
    for task in tasks:
        for name, link in (*task.links.items(), ("ready", Link(task.ready, required_for_start=True))):
            if link.is_input or link.required_for_start:
                for leaf in names.wanted(link.repo):
                    read.setdefault(leaf, f"{task.name}.{name}")
            if (
                link.is_output
                or link.is_status
                or not (link.is_input or link.required_for_start or link.inhibits_start)
            ):  # the last: its code does with it as it likes
                filled.update(names.resolve(leaf) for leaf in all_leaves(link.repo))
    return {leaf: link for leaf, link in read.items() if leaf not in filled}


def _check_names(tasks: Sequence[Task]) -> None:
    if len(tasks) > TASKS_MAX:
        raise InvalidValueError(f"a pipeline of {len(tasks)} tasks", remedy=f"tasks_max is {TASKS_MAX}")
    seen: set[str] = set()
    for task in tasks:
        check_name(task.name, "task")
        if task.name in seen:
            raise InvalidValueError(
                f"two tasks are named {task.name}", remedy="give each task a name of its own"
            )
        seen.add(task.name)


def _check_parameters(tasks: Sequence[Task], parameters: Sequence[Parameter]) -> None:
    seen: dict[str, str] = {}
    for parameter in parameters:
        if (other := seen.setdefault(parameter.variable, parameter.name)) and len(seen) < len(parameters):
            if sum(one.variable == parameter.variable for one in parameters) > 1:
                raise InvalidValueError(
                    f"two parameters are named {other} and {parameter.name}",
                    remedy="give each one name, whatever its case",
                )
        for task in tasks:
            if parameter.name in task.links:
                raise InvalidValueError(
                    f"task {task.name} has a link with the name of the parameter {parameter.name}",
                    remedy="rename one of the two",
                )


class _Names:
    """Gives each leaf object its id."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = {task.name for task in tasks}
        self.leaves: dict[str, Repository] = {}
        self._ids: dict[int, str] = {}
        self._objects: list[Repository] = []

    def give(self, leaf: Repository, task: str, link: str) -> str:
        """Return the leaf's id, naming it on first sight."""
        known = self._ids.get(id(leaf))
        if known is not None:
            return known
        if isinstance(leaf, ViewRepository):
            if leaf.task.name not in self._tasks:
                raise unknown(f"task (which {task}.{link} is about)", leaf.task.name, self._tasks)
            leaf_id = d.view_id(leaf.task.name, leaf.view)
        elif leaf.name is not None:
            leaf_id = self._same_place(leaf, leaf.name)
        elif isinstance(leaf, DerivedLeaf):
            children = [self._described(part) for part in leaf.parts()]
            leaf_id = self._fresh(leaf.structural_id(children))
        else:
            leaf_id = leaf.locator() or self._fresh(f"{task}.{link}")
        if len(self.leaves) >= REPOSITORIES_MAX:
            raise InvalidValueError("too many repositories", remedy=f"repositories_max is {REPOSITORIES_MAX}")
        self.leaves.setdefault(leaf_id, leaf)
        self._ids[id(leaf)] = leaf_id
        self._objects.append(leaf)
        return leaf_id

    def _same_place(self, leaf: Repository, name: str) -> str:
        other = self.leaves.get(name)
        if (
            other is not None
            and (leaf.locator() is None or other.locator() != leaf.locator())
            and leaf.medium != "native"
        ):
            raise InvalidValueError(
                f"two repositories are named {name}: {other!r} and {leaf!r}",
                remedy="give each place a name of its own",
            )
        return name

    def _fresh(self, wanted: str) -> str:
        leaf_id, number = wanted, 2
        while leaf_id in self.leaves:
            leaf_id, number = f"{wanted}#{number}", number + 1
        return leaf_id

    def _described(self, part: Repository) -> str:
        ids = [self._ids[id(leaf)] for leaf in part.leaves()]
        return ids[0] if len(ids) == 1 else f"{type(part).__name__}({','.join(ids)})"

    def resolve(self, leaf: Repository) -> str:
        """Return the id of a named leaf."""
        return self._ids[id(leaf)]

    def wanted(self, repository: Repository) -> list[str]:
        """Return the leaves in which a job has to be, with those that they are derived from."""
        found = unnegated(repository.expression(self.resolve))
        derived = [leaf for leaf in found if isinstance(self.leaves[leaf], DerivedLeaf)]
        return [*found, *(self.resolve(part) for leaf in derived for part in all_leaves(self.leaves[leaf]))]

    def objects(self) -> list[tuple[Repository, str]]:
        """Return every leaf object with its id; two objects may share one."""
        return [(leaf, self._ids[id(leaf)]) for leaf in self._objects]

    def definitions(self) -> Iterable[d.RepositoryDef]:
        """Yield the leaves' definitions, but for views, which each task has by itself."""
        for leaf_id, leaf in self.leaves.items():
            if not isinstance(leaf, ViewRepository):
                yield d.RepositoryDef(
                    id=leaf_id,
                    kind=leaf.kind,
                    medium=leaf.medium,
                    locator=leaf.locator(),
                    record=leaf.record,
                    ephemeral=leaf.ephemeral,
                    derived=leaf.derivation(self.resolve) if isinstance(leaf, DerivedLeaf) else None,
                )


def _quotas(tasks: Sequence[Task]) -> dict[int, d.QuotaDef]:
    """Return quota definitions by the id of the user's object, named ones under their names."""
    found: dict[int, d.QuotaDef] = {}
    taken: set[str] = {
        task.resource_manager.name
        for task in tasks
        if task.resource_manager is not None and task.resource_manager.name
    }
    number = 1
    for task in tasks:
        manager = task.resource_manager
        if manager is None or id(manager) in found:
            continue
        name = manager.name
        while name is None or (manager.name is None and name in taken):
            name = "default" if number == 1 else f"default{number}"
            number += 1
        taken.add(name)
        quota = manager.to_def(name)
        if quota.launches is not None and quota.launches >= UNLIMITED_LAUNCHES:
            quota = replace(quota, launches=None)
        if any(other.name == quota.name for other in found.values()):
            raise InvalidValueError(
                f"two quotas are named {quota.name}", remedy="share one ResourceManager, or rename one"
            )
        found[id(manager)] = quota
    return found


def _task(
    task: Task, names: _Names, quotas: Mapping[int, d.QuotaDef], priority: bool, logs: int, cache: bool
) -> d.TaskDef:
    manager = task.resource_manager
    quota = quotas[id(manager)].name if manager is not None else None
    return d.TaskDef(
        name=task.name,
        kind=task.kind,
        ready=task.ready.expression(names.resolve),
        links=tuple(_link(name, link, names) for name, link in task.links.items()),
        quota=quota,
        resources=_requests(task)[0],
        later=_requests(task)[1:],
        concurrency=task.concurrency,
        priority=priority,
        retry=task.retry.to_def() if task.retry is not None else d.RetryDef(),
        timeout=None if task.timeout is None else nanoseconds(task.timeout, "timeout"),
        grace=nanoseconds(task.grace, "grace"),
        repeat=task.repeat,
        disabled=task.disabled,
        opaque=task.opaque,
        done=_leaf_id(task, task.done_link, names) if task.metadata else None,
        done_shape=task.done_shape,
        pids=_leaf_id(task, task.pids_link, names),
        conflicts=task.conflicts,
        logs=logs if task.logs_bytes is None else task.logs_bytes,
        fingerprint=task.fingerprint().components,
        on_change=task.on_change,
        cache=cache if task.cache is None else task.cache,
    )


def _requests(task: Task) -> tuple[dict[str, int], ...]:
    manager, first = task.resource_manager, task.job_resources
    if manager is None or first is None:
        return ({},)
    return tuple(_amounts(task, manager, request) for request in (first, *task.later_resources))


def _amounts(task: Task, manager: ResourceManager, request: Resources) -> dict[str, int]:
    if request.identities:
        raise InvalidValueError(
            f"task {task.name} asks for a list of {', '.join(request.identities)}",
            remedy="say how many one run takes; the quota has the list",
        )
    amounts = request.to_amounts()
    for name in manager.quota.identities.keys() & amounts.keys():
        if amounts[name] % NANO:
            raise InvalidValueError(
                f"task {task.name} asks for {request.custom[name]} {name}, which is given out one by one",
                remedy="ask for a whole number",
            )
        if amounts[name] and not task.has_identities:
            raise InvalidValueError(
                f"task {task.name} asks for {name} of a quota that lists them, and Kubernetes gives pods devices of its own",
                remedy="use a quota with a number for tasks of pods",
            )
    return amounts


def _leaf_id(task: Task, link: str | None, names: _Names) -> str | None:
    return names.resolve(task.links[link].repo) if link is not None and link in task.links else None


def _link(name: str, link: Link, names: _Names) -> d.LinkDef:
    return d.LinkDef(
        name=name,
        expr=link.repo.expression(names.resolve),
        kind=link.repo.kind,
        is_input=link.is_input,
        is_output=link.is_output,
        is_status=link.is_status,
        inhibits_start=link.inhibits_start,
        required_for_start=link.required_for_start,
        inhibits_output=link.inhibits_output,
        required_for_output=link.required_for_output,
    )


class Edge(NamedTuple):
    """One link as an arrow: data flows from `source` to `target`."""

    source: Task | Repository
    target: Task | Repository
    name: str
    link: Link


def edges_of(tasks: Iterable[Task]) -> Iterator[Edge]:
    """Yield the arrows: into a task what it needs or is held back by, out of it what it fills."""
    for task in tasks:
        for name, link in task.links.items():
            into = link.is_input or link.required_for_start or link.inhibits_start
            if into:
                yield Edge(link.repo, task, name, link)
            if not into or link.is_output or link.is_status:
                yield Edge(task, link.repo, name, link)


def graph_of(tasks: Iterable[Task]) -> Any:
    """Return a networkx DiGraph with the link's flags and `link_name` on each edge."""
    import networkx

    graph = networkx.DiGraph()
    for task in tasks:
        graph.add_node(task)
    for edge in edges_of(tasks):
        graph.add_edge(edge.source, edge.target, link_name=edge.name, **_flags(edge.link))
    return graph


def _flags(link: Link) -> dict[str, bool]:
    names = (
        "is_input",
        "is_output",
        "is_status",
        "inhibits_start",
        "required_for_start",
        "inhibits_output",
        "required_for_output",
    )
    return {name: bool(getattr(link, name)) for name in names}


def dependants(tasks: Iterable[Task], node: Task | Repository, recursive: bool) -> list[Task | Repository]:
    """Return the node and what lies downstream: its direct successors, or everything reachable, in preorder."""
    following: dict[int, list[Task | Repository]] = {}
    for edge in edges_of(tasks):
        following.setdefault(id(edge.source), []).append(edge.target)
    found, seen, stack = [], set(), [node]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        found.append(current)
        if recursive or current is node:
            stack.extend(reversed(following.get(id(current), [])))
    return found
