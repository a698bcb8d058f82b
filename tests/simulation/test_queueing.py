"""Simulated waits agree with queueing theory: M/M/1, M/D/1 and M/M/c, the closer the more jobs there are.

A million jobs within 2 % of the mean where there is time for it (`tests.effort`), over four seeds that stay as they are. Lq and Wq by Erlang C and by Pollaczek and Khinchine
(Kleinrock, Queueing Systems I, chapters 3 and 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import factorial

import pytest

from datatask import simulate
from datatask.schema.definition import All, In, LinkDef, Not, PipelineDef, QuotaDef, RepositoryDef, TaskDef
from datatask.schema.units import SECOND
from datatask.simulation import Arrivals, Constant, Distribution, Exponential, Scenario, TaskScenario
from tests.effort import by_effort
from tests.unmeasured import unmeasured

pytestmark = pytest.mark.long

SEEDS = (1, 2, 3, 4)
MORE_SEEDS = tuple(range(1, 13))
"""A mean wait over one seed's million jobs is 1 % from theory as often as not: the deviation of four servers is that large."""
JOBS, TOLERANCE = by_effort(quick=(40_000, 0.1), thorough=(200_000, 0.05), soak=(1_000_000, 0.02))
MORE_JOBS = 1_000_000


def counter(servers: int) -> PipelineDef:
    """One task that so many jobs may be served by at once."""
    source, done = In(leaf="in"), In(leaf="done")
    task = TaskDef(
        name="serve",
        kind="test",
        ready=All(of=(source, Not(of=done))),
        done="done",
        done_shape="none",
        quota="servers",
        resources={"cpu": SECOND},
        links=(
            LinkDef(name="input", expr=source, is_input=True, required_for_start=True),
            LinkDef(name="done", expr=done, is_status=True, inhibits_start=True),
        ),
    )
    return PipelineDef(
        repositories=tuple(RepositoryDef(id=name, kind="test", medium="native") for name in ("in", "done")),
        tasks=(task,),
        quotas=(QuotaDef(name="servers", limits={"cpu": servers * SECOND}),),
    )


def mean_wait(servers: int, service: Distribution, load: float, jobs: int, seeds: Sequence[int]) -> float:
    """The mean wait in seconds over some seeds; a service takes one second on average."""
    scenarios = [
        Scenario(
            jobs=jobs,
            arrivals=Arrivals("poisson", per_second=load * servers),
            default=TaskScenario(duration=service),
            seed=seed,
        )
        for seed in seeds
    ]
    with unmeasured(2) as pool:
        waits = list(pool.map(partial(waited, counter(servers)), scenarios))
    return sum(waits) / len(waits)


def waited(definition: PipelineDef, scenario: Scenario) -> float:
    """The mean wait of one simulation."""
    result = simulate(definition, scenario, keep_runs=False)
    return result.summaries[0].tasks["serve"].wait_mean


def erlang_wait(servers: int, load: float) -> float:
    """The mean wait of M/M/c with services of one second."""
    offered = servers * load
    full = offered**servers / factorial(servers) / (1 - load)
    waiting = full / (sum(offered**busy / factorial(busy) for busy in range(servers)) + full)
    return waiting / (servers * (1 - load))


CASES = [
    pytest.param(1, Exponential(1.0), 1.0, id="M/M/1"),
    pytest.param(1, Constant(1.0), 0.5, id="M/D/1"),  # half the wait, since nothing varies
    pytest.param(4, Exponential(1.0), 1.0, id="M/M/4"),
]


@pytest.mark.scaled
@pytest.mark.parametrize("load", [0.5, 0.7])
@pytest.mark.parametrize(("servers", "service", "factor"), CASES)
def test_mean_waits_are_those_of_theory(
    servers: int, service: Distribution, factor: float, load: float
) -> None:
    wait = mean_wait(servers, service, load, JOBS // len(SEEDS), SEEDS)
    assert wait == pytest.approx(factor * erlang_wait(servers, load), rel=TOLERANCE)


@pytest.mark.soak
@pytest.mark.parametrize("load", [0.5, 0.7])
@pytest.mark.parametrize(("servers", "service", "factor"), CASES)
def test_mean_waits_are_those_of_theory_with_more_jobs(
    servers: int, service: Distribution, factor: float, load: float
) -> None:
    wait = mean_wait(servers, service, load, MORE_JOBS, MORE_SEEDS)
    assert wait == pytest.approx(factor * erlang_wait(servers, load), rel=0.01)
