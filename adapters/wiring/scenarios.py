"""Scenarios as people write them: a YAML file of named ones, and what varies between them.

In: the path of a file (docs/simulation.md shows one), and texts like `quota.cluster.cpu=8,16,32`. Out: a tree for each
scenario and each combination of what varies, and `Scenario` values of trees (`documents` reads what they hold). What is
misspelt, missing or of the wrong kind is refused in one line that names the place.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from datatask.adapters.sim.distributions import durations_from_csv
from datatask.adapters.sim.scenario import Machines, Scenario, TaskScenario
from datatask.adapters.wiring.documents import DISTRIBUTIONS, SCENARIO, TASK, Table, fields_of, read
from datatask.adapters.yaml_text import load_yaml
from datatask.schema.errors import CallerError, InvalidValueError

Tree = dict[str, Any]
_NAMED = dict[str, dict[str, dict[str, Any] | None]]


def scenarios_from_yaml(path: str | Path) -> list[Scenario]:
    """Return the scenarios of a file, in its order; `CallerError` names what is wrong and where."""
    file = Path(path)
    return [scenario_of(tree, name, file.parent) for name, tree in load_scenarios(file).items()]


def load_scenarios(path: Path) -> dict[str, Tree]:
    """Return the tree of each scenario of a file by name, with what all of them share."""
    try:
        document = load_yaml(path.read_bytes(), str(path), typed=True)
    except OSError as error:
        raise CallerError(
            f"the scenarios cannot be read: {error.strerror}", where=str(path), remedy="check the path"
        ) from None
    base = dict(read({} if document is None else document, dict[str, Any], path.name))
    if "scenarios" not in base:
        return {path.stem: base}
    named = base.pop("scenarios")
    found = read({"scenarios": named}, _NAMED, path.name)["scenarios"]
    if not named:
        raise InvalidValueError(
            "no scenario is named", where=f"{path.name}: scenarios", remedy="name at least one"
        )
    return {name: merged(base, over or {}) for name, over in found.items()}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Return a tree with the values of another one in place of, or beside, its own."""
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
    return any(set(tree) & {*DISTRIBUTIONS, "empirical", "table", "jobs"} for tree in trees)


# --- from trees to values ---------------------------------------------------------------------------


def scenario_of(tree: Mapping[str, Any], name: str, folder: Path = Path()) -> Scenario:
    """Return the scenario that a tree describes: what a task does not say, `default` does; tables are in `folder`."""
    usual = tree.get("default")
    tasks = tree.get("tasks")
    if isinstance(usual, Mapping) and isinstance(tasks, Mapping):
        own = {
            task: merged(usual, said) if isinstance(said, Mapping) else said for task, said in tasks.items()
        }
        tree = {**tree, "tasks": own}
    where = f"scenario {name}"
    given = fields_of(read(tree, SCENARIO, where))
    if "tasks" in given:
        given["tasks"] = {task: _task(task, said, folder) for task, said in given["tasks"].items()}
    if "default" in given:
        given["default"] = _task("default", given["default"], folder)
    if "machines" in given:
        given["machines"] = tuple(Machines(**fields_of(pool)) for pool in given["machines"])
    try:
        return Scenario(name=name, **given)
    except CallerError as error:
        raise InvalidValueError(error.what, where=error.where or where, remedy=error.remedy) from None


def _task(name: str, said: Struct, folder: Path) -> TaskScenario:
    given = fields_of(said)
    retry = fields_of(given.pop("retry")) if "retry" in given else {}
    if isinstance(given.get("duration"), Table):
        given["duration"] = _durations_of(name, folder / given["duration"].path)
    return TaskScenario(**{**retry, **given})


def _durations_of(task: str, path: Path) -> dict[str, float]:
    """Return the seconds by job of one task from a table, which need not name the task."""
    found = durations_from_csv(path)
    if task in found or "" in found:
        return {**found.get("", {}), **found.get(task, {})}
    raise InvalidValueError(
        f"the table has no durations of {task}", where=str(path), remedy="it has those of " + ", ".join(found)
    )


# --- what varies ------------------------------------------------------------------------------------

TASK_FIELDS = TASK.__struct_fields__
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
            fields_of = ", ".join(
                f"{place}={value}" for (place, _), value in zip(axes, combination, strict=True)
            )
            label = (
                fields_of
                if len(trees) == 1 and fields_of
                else ", ".join(part for part in (name, fields_of) if part)
            )
            found[label] = changed
    return found


def axis(text: str, option: str = "--vary") -> tuple[str, list[Any]]:
    """Return the place and the values of `PLACE=VALUE,…`; `CallerError` names the option."""
    place, equals, values = text.partition("=")
    fields_of = [value.strip() for value in values.split(",")]
    if not equals or not place.strip() or not all(fields_of):
        raise InvalidValueError(
            f"{text!r} does not say what varies",
            where=option,
            remedy="write PLACE=VALUE,VALUE such as quota.NAME.cpu=8,16",
        )
    if len(set(fields_of)) != len(fields_of):
        raise InvalidValueError(f"{text!r} has a value twice", where=option, remedy="name each value once")
    return place.strip(), [_scalar(value) for value in fields_of]


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
