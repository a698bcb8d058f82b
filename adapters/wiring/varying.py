"""What varies between scenarios: texts like `quota.cluster.cpu=8,16,32`, and the places in a scenario that they mean.

In: trees of scenarios (`scenarios`), and what a person wants varied. Out: a tree for every combination, by a name that
says what it has.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from datatask.adapters.wiring.scenarios import TASK_FIELDS, Tree
from datatask.schema.errors import CallerError

COMBINATIONS_MAX = 10_000


def varied(trees: Mapping[str, Tree], varying: Sequence[str]) -> dict[str, Tree]:
    """Return each tree with every combination of `PLACE=VALUE,…`, named by it."""
    axes = [axis(text) for text in varying]
    count = len(trees)
    for _, values in axes:
        count *= len(values)
    if count > COMBINATIONS_MAX:
        raise CallerError(
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
        raise CallerError(
            f"{text!r} does not say what varies",
            where=option,
            remedy="write PLACE=VALUE,VALUE such as quota.NAME.cpu=8,16",
        )
    if len(set(told)) != len(told):
        raise CallerError(f"{text!r} has a value twice", where=option, remedy="name each value once")
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
            raise CallerError(
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
    raise CallerError(
        f"there are no machines {name}",
        where="--vary",
        remedy="name a pool of machines of the scenario: --scenarios FILE",
    )
