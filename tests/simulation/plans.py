"""What a life is made of: drawn from a seed, written down whole, and made smaller when it fails.

A `Plan` is values only. Nothing else is drawn: what happens by chance inside a life depends on `chance(plan.seed, …)`,
a hash of what it is about, so that leaving a part out does not change the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal
from zlib import crc32

Kind = Literal["function", "process"]
Home = Literal["native", "mirror", "foreign"]


def chance(seed: int, *about: object) -> float:
    """Return a number in [0, 1) that is always the same for the same things."""
    return crc32(repr(about).encode(), seed & 0xFFFFFFFF) / 2**32


@dataclass(frozen=True)
class Stage:
    """One task: what it reads (0: the input, n: the output of stage n), where its output lives, how it behaves."""

    kind: Kind
    reads: int
    home: Home
    fails: float = 0.0
    attempts: int = 1
    timeout: float | None = None
    concurrency: int | None = None
    after_success: bool = False


@dataclass(frozen=True)
class Action:
    """What a person or the world does at a time (seconds after the beginning)."""

    at: float
    verb: str
    stage: int
    job: int


@dataclass(frozen=True)
class Faults:
    """How often, in shares of one, something goes wrong."""

    doubled: float = 0.0
    late: float = 0.0
    lost: float = 0.0
    silent: float = 0.0
    store_errors: float = 0.0
    listing_errors: float = 0.0
    echo_late: float = 0.0
    overflow: float = 0.0
    disk_full: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One life."""

    seed: int
    jobs: int
    stages: tuple[Stage, ...]
    cpus: int
    launches: int | None
    actions: tuple[Action, ...] = ()
    crashes: tuple[int, ...] = ()
    faults: Faults = field(default_factory=Faults)


VERBS = (
    "inject",
    "rm",
    "retry",
    "cancel",
    "pause",
    "resume",
    "undone",
    "drop",
    "lose",
    "kill",
    "quota",
    "launch",
)


def draw(seed: int) -> Plan:
    """Return the life of a seed: up to 30 runs in up to four stages."""
    random = Random(seed)
    count = random.choice((1, 1, 2, 2, 3, 4))
    stages = tuple(_stage(random, index) for index in range(count))
    jobs = random.randint(1, max(1, 30 // (count + 2)))
    rough = random.random() < 0.8

    def rate(most: float) -> float:
        return random.random() * most if rough and random.random() < 0.5 else 0.0

    faults = Faults(
        rate(0.5), rate(0.5), rate(0.3), rate(0.5), rate(0.4), rate(0.5), rate(0.5), rate(0.5), rate(0.01)
    )
    actions = tuple(
        Action(
            round(random.random() ** 2 * 20, 3),
            random.choice(VERBS),
            random.randrange(count),
            random.randrange(jobs + 1),
        )
        for _ in range(random.choice((0, 0, 1, 3, 6)))
    )
    crashes = tuple(int(random.random() ** 2 * 700) + 1 for _ in range(random.choice((0, 1, 1, 2, 4))))
    return Plan(
        seed, jobs, stages, random.randint(1, 4), random.choice((None, None, 3)), actions, crashes, faults
    )


def _stage(random: Random, index: int) -> Stage:
    return Stage(
        kind=random.choice(("function", "process", "process")),
        reads=random.randint(0, index),
        home=random.choice(("native", "native", "mirror", "foreign")),
        fails=random.choice((0.0, 0.0, 0.3)),
        attempts=random.choice((1, 1, 3)),
        timeout=random.choice((None, None, 1.5)),
        concurrency=random.choice((None, None, 2)),
        after_success=random.random() < 0.2,
    )


def smaller(plan: Plan) -> Iterator[Plan]:
    """Yield plans with a part less."""
    for index in range(len(plan.crashes)):
        yield replace(plan, crashes=plan.crashes[:index] + plan.crashes[index + 1 :])
    for index in range(len(plan.actions)):
        yield replace(plan, actions=plan.actions[:index] + plan.actions[index + 1 :])
    if len(plan.stages) > 1:
        yield replace(plan, stages=plan.stages[:-1])
    if plan.jobs > 1:
        yield replace(plan, jobs=plan.jobs // 2)
        yield replace(plan, jobs=plan.jobs - 1)
    for name in Faults.__dataclass_fields__:
        if getattr(plan.faults, name):
            yield replace(plan, faults=replace(plan.faults, **{name: 0.0}))
    plain: dict[str, Any] = {
        "fails": 0.0,
        "attempts": 1,
        "timeout": None,
        "concurrency": None,
        "after_success": False,
        "home": "native",
        "kind": "function",
    }
    for index, stage in enumerate(plan.stages):
        for name, value in plain.items():
            if getattr(stage, name) != value:
                changed = replace(stage, **{name: value})
                yield replace(plan, stages=(*plan.stages[:index], changed, *plan.stages[index + 1 :]))
    if plan.launches is not None:
        yield replace(plan, launches=None)
