"""Scenarios as people write them: a YAML file of named ones, tables of durations as CSV.

In: the path of a file (docs/simulation.md shows one). Out: its scenarios as trees, on which `varying` may work, and
`Scenario` values of them. What is misspelt, missing or of the wrong kind is refused in one line that names the place.

What varies between scenarios: texts like `quota.cluster.cpu=8,16,32`, and the places in a scenario that they mean.

In: trees of scenarios (`scenarios`), and what a person wants varied. Out: a tree for every combination, by a name that
says what it has.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datatask.adapters.sim.distributions import (
    Constant,
    Distribution,
    Empirical,
    Exponential,
    Lognormal,
    Uniform,
    Weibull,
    durations_from_csv,
)
from datatask.adapters.sim.scenario import Arrivals, Machines, Scenario, TaskScenario
from datatask.adapters.store.yamls import load_yaml
from datatask.adapters.wiring.documents import At
from datatask.schema.errors import CallerError, InvalidValueError, one_of

Tree = dict[str, Any]

_SHAPES: dict[str, tuple[type[Distribution], tuple[str, ...]]] = {
    "constant": (Constant, ("value",)),
    "uniform": (Uniform, ("low", "high")),
    "exponential": (Exponential, ("average",)),
    "lognormal": (Lognormal, ("median", "sigma")),
    "weibull": (Weibull, ("scale", "shape")),
}
"""Distributions by name, with their numbers in the order in which a list gives them."""

_SPELT = {"average": "mean"}
"""How a number is called in a file, where it has another name here."""


def scenarios_from_yaml(path: str | Path) -> list[Scenario]:
    """Return the scenarios of a file, in its order; `CallerError` names what is wrong and where."""
    file = Path(path)
    return [scenario_of(tree, name, file.parent) for name, tree in load_scenarios(file).items()]


def load_scenarios(path: Path) -> dict[str, Tree]:
    """Return the tree of each scenario of a file by name, with what all of them share."""
    try:
        document = load_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise CallerError(
            f"the scenarios cannot be read: {error.strerror}", where=str(path), remedy="check the path"
        ) from None
    top = At(document if document is not None else {}, path.name, path.parent)
    base = dict(top.mapping())
    if "scenarios" not in base:
        return {path.stem: base}
    del base["scenarios"]
    told = top.at("scenarios")
    if not told.mapping():
        told.fail("no scenario is named", "name at least one")
    return {
        name: base if tree is None else merged(base, told.at(name).mapping())
        for name, tree in told.mapping().items()
    }


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Return a tree with what the other one says in place of, or beside, what is there."""
    found = dict(copy.deepcopy(dict(base)))
    for key, value in over.items():
        mine = found.get(key)
        if isinstance(mine, dict) and isinstance(value, Mapping) and not _is_distribution(mine, value):
            found[key] = merged(mine, value)
        else:
            found[key] = copy.deepcopy(value)
    return found


def _is_distribution(*trees: Mapping[str, Any]) -> bool:
    """Whether any of these is a distribution: another one takes its place and is not mixed with it."""
    return any(set(tree) & {*_SHAPES, "empirical", "table", "jobs"} for tree in trees)


# --- from trees to values ---------------------------------------------------------------------------


def scenario_of(tree: Mapping[str, Any], name: str, folder: Path = Path()) -> Scenario:
    """Return the scenario that a tree describes: what a task does not say, `default` does; tables are in `folder`."""
    usual = tree.get("default")
    tasks = tree.get("tasks")
    if isinstance(usual, Mapping) and isinstance(tasks, Mapping):
        own = {
            task: merged(usual, told) if isinstance(told, Mapping) else told for task, told in tasks.items()
        }
        tree = {**tree, "tasks": own}
    at = At(tree, f"scenario {name}", folder)
    given = {"name": name, **at.fields(_SCENARIO_FIELDS)}
    try:
        return Scenario(**given)
    except CallerError as error:
        raise InvalidValueError(error.what, where=error.where or at.place, remedy=error.remedy) from None


def _tasks(at: At) -> dict[str, TaskScenario]:
    return {name: _task(at.at(name)) for name in at.mapping()}


def _task(at: At) -> TaskScenario:
    given = at.fields({**TASK_FIELDS, "retry": lambda it: it.fields({"attempts": At.whole})})
    return TaskScenario(**{**given.pop("retry", {}), **given})


def _quotas(at: At) -> dict[str, dict[str, Any]]:
    return {name: at.at(name).amounts() for name in at.mapping()}


def _machines(at: At) -> tuple[Machines, ...]:
    return tuple(Machines(**pool.fields(_MACHINES_FIELDS)) for pool in at.items())


def _amounts(at: At) -> dict[str, Any] | list[dict[str, Any]]:
    return [one.amounts() for one in at.items()] if at.is_list() else at.amounts()


def _speed(at: At) -> float | list[float]:
    return [one.number() for one in at.items()] if at.is_list() else at.number()


def _jobs(at: At) -> int | list[str]:
    return at.names() if at.is_list() else at.whole()


def _arrivals(at: At) -> Arrivals:
    if isinstance(at.value, str):
        return Arrivals(at.value)  # type: ignore[arg-type]
    tree = at.mapping()
    if len(tree) != 1:
        at.fail(
            "is not one way of arriving", "write at_once, recorded, {even: JOBS_A_SECOND} or {poisson: …}"
        )
    (how,) = tree
    return Arrivals(how, at.at(how).number())  # type: ignore[arg-type]


def _duration(at: At) -> Distribution | float:
    """Read seconds, a duration such as `5m`, or a distribution."""
    if not isinstance(at.value, Mapping):
        return at.seconds()
    tree = at.mapping()
    if len(tree) != 1:
        at.fail("is not one distribution", one_of([*_SHAPES, "empirical"]))
    (shape,) = tree
    inner = at.at(shape)
    if shape == "empirical":
        return Empirical(tuple(one.seconds() for one in inner.items()))
    if shape not in _SHAPES:
        at.fail(f"has no distribution {shape}", one_of([*_SHAPES, "empirical"]))
    made, numbers = _SHAPES[shape]
    spelt = [_SPELT.get(number, number) for number in numbers]
    read = {name: At.number if name in ("sigma", "shape") else At.seconds for name in spelt}
    if isinstance(inner.value, Mapping):
        given = inner.fields(read)
        missing = [name for name in spelt if name not in given]
        if missing:
            inner.fail("lacks " + ", ".join(missing), "a distribution needs all its numbers")
        return made(*(given[name] for name in spelt))
    told = inner.items() if inner.is_list() else [inner]
    if len(told) != len(numbers):
        inner.fail(f"has {len(told)} numbers", f"{shape} needs {len(numbers)}: " + ", ".join(spelt))
    return made(*(read[name](one) for name, one in zip(spelt, told, strict=True)))


def _durations(at: At) -> Distribution | float | Mapping[str, float]:
    """Read a distribution, or durations by job: `{jobs: {JOB: …}}`, or `{table: FILE}`."""
    if isinstance(at.value, Mapping):
        tree = at.mapping()
        if list(tree) == ["table"]:
            return _table(
                at.folder / at.at("table").text(), at.path.removeprefix("tasks.").removesuffix(".duration")
            )
        if list(tree) == ["jobs"]:
            jobs = at.at("jobs")
            return {job: jobs.at(job).seconds() for job in jobs.mapping()}
    return _duration(at)


def _table(path: Path, task: str) -> dict[str, float]:
    """Return the seconds by job of one task from a table, which need not name the task."""
    found = durations_from_csv(path)
    if task in found or "" in found:
        return {**found.get("", {}), **found.get(task, {})}
    raise InvalidValueError(
        f"the table has no durations of {task}", where=str(path), remedy="it has those of " + ", ".join(found)
    )


def _outcomes(at: At) -> dict[str, float] | list[str]:
    return at.names() if at.is_list() else {name: at.at(name).number() for name in at.mapping()}


def _outputs(at: At) -> list[str] | dict[str, float]:
    return at.names() if at.is_list() else {name: at.at(name).number() for name in at.mapping()}


def _spawns(at: At) -> dict[str, Any]:
    return {
        name: at.at(name).whole() if isinstance(at.value[name], int) else _duration(at.at(name))
        for name in at.mapping()
    }


TASK_FIELDS: dict[str, Callable[[At], Any]] = {
    "duration": _durations,
    "failure": At.number,
    "outcomes": _outcomes,
    "latency": _duration,
    "outputs": _outputs,
    "spawns": _spawns,
    "attempts": At.whole,
    "concurrency": At.whole,
    "timeout": At.seconds,
    "resources": At.amounts,
    "machines": At.text,
}
"""How each field of a task is read."""

_MACHINES_FIELDS: dict[str, Callable[[At], Any]] = {
    "name": At.text,
    "count": At.whole,
    "amounts": _amounts,
    "start": _duration,
    "latency": _duration,
    "speed": _speed,
    "mtbf": At.seconds,
    "repair": _duration,
    "preempted": At.seconds,
    "loss": At.text,
}

_SCENARIO_FIELDS: dict[str, Callable[[At], Any]] = {
    "jobs": _jobs,
    "arrivals": _arrivals,
    "entries": At.names,
    "tasks": _tasks,
    "default": _task,
    "quotas": _quotas,
    "machines": _machines,
    "replications": At.whole,
    "seed": At.whole,
    "until": At.seconds,
    "own": At.truth,
}


COMBINATIONS_MAX = 10_000


def varied(trees: Mapping[str, Tree], varying: Sequence[str]) -> dict[str, Tree]:
    """Return each tree with every combination of `PLACE=VALUE,…`, named by it."""
    axes = [axis(text) for text in varying]
    count = len(trees)
    for _, values in axes:
        count *= len(values)
    if count > COMBINATIONS_MAX:
        raise InvalidValueError(
            f"{count:,} combinations are too many", where="--vary", remedy=f"at most {COMBINATIONS_MAX:,}"
        )
    found: dict[str, Tree] = {}
    for name, tree in trees.items():
        for combination in itertools.product(*(values for _, values in axes)):
            changed = copy.deepcopy(tree)
            for (place, _), value in zip(axes, combination, strict=True):
                put_at(changed, place, value)
            told = ", ".join(f"{place}={value}" for (place, _), value in zip(axes, combination, strict=True))
            label = told if len(trees) == 1 and told else ", ".join(part for part in (name, told) if part)
            found[label] = changed
    return found


def axis(text: str, option: str = "--vary") -> tuple[str, list[Any]]:
    """Return the place and the values of `PLACE=VALUE,…`; `CallerError` names the option."""
    place, equals, values = text.partition("=")
    told = [value.strip() for value in values.split(",")]
    if not equals or not place.strip() or not all(told):
        raise InvalidValueError(
            f"{text!r} does not say what varies",
            where=option,
            remedy="write PLACE=VALUE,VALUE such as quota.NAME.cpu=8,16",
        )
    if len(set(told)) != len(told):
        raise InvalidValueError(f"{text!r} has a value twice", where=option, remedy="name each value once")
    return place.strip(), [_scalar(value) for value in told]


def _scalar(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def put_at(tree: Tree, place: str, value: Any) -> None:
    """Set what a place such as `quota.NAME.cpu`, `TASK.retry.attempts` or `machines.NAME.count` names."""
    parts = place.split(".")
    match parts:
        case ["jobs" | "until" | "seed" | "replications" as name]:
            tree[name] = value
        case ["default", field] if field in TASK_FIELDS:
            _below(tree, "default")[field] = value
        case ["arrivals", ("even" | "poisson") as how]:
            tree["arrivals"] = {how: value}
        case ["quota" | "quotas", *middle, amount] if middle:
            _below(tree, "quotas", ".".join(middle))[amount] = value
        case ["machines", *middle, field] if middle:
            _pool(tree, ".".join(middle))[field] = value
        case [*task, "retry", "attempts"] if task:
            _below(tree, "tasks", ".".join(task))["attempts"] = value
        case [*task, "resources", amount] if task:
            _below(tree, "tasks", ".".join(task), "resources")[amount] = value
        case [*task, field] if task and field in TASK_FIELDS:
            _below(tree, "tasks", ".".join(task))[field] = value
        case _:
            raise InvalidValueError(
                f"{place} is nothing that can vary",
                where="--vary",
                remedy="quota.NAME.AMOUNT, TASK.retry.attempts, TASK.concurrency, TASK.duration, TASK.failure, "
                "TASK.timeout, TASK.resources.AMOUNT, machines.NAME.count, arrivals.poisson, jobs or seed",
            )


def _below(tree: Tree, *path: str) -> Tree:
    for name in path:
        tree = tree.setdefault(name, {})
    return tree


def _pool(tree: Tree, name: str) -> Tree:
    for pool in tree.get("machines", ()):
        if isinstance(pool, dict) and pool.get("name", "machines") == name:
            return pool
    raise InvalidValueError(
        f"there are no machines {name}",
        where="--vary",
        remedy="name a pool of machines of the scenario: --scenarios FILE",
    )
