"""A shop to be simulated."""

from __future__ import annotations

from datatask import (
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.simulation import (
    Constant,
    Machines,
    Scenario,
    TaskScenario,
    Uniform,
)


def no_manager() -> LocalLinuxManager:
    raise AssertionError("a simulation asks no manager")


def shop(cpus: int = 4) -> Pipeline:
    """Two tasks in a chain under one quota; their code must not run."""
    quota = ResourceManager(Resources.parse(cpus, 10, None), name="all")
    raw, half, whole = (LogMetadataRepository(name) for name in ("raw", "half", "whole"))
    tasks = []
    for name, source, target in (("cut", raw, half), ("glue", half, whole)):
        task = ProcessTask(
            name,
            no_manager,
            quota,
            Resources.parse(1, 1),
            LogMetadataRepository(f"{name}.pids"),
            "exit 1",
            done=LogMetadataRepository(f"{name}.done"),
        )
        task.link("inp", source, is_input=True)
        task.link("out", target, is_output=True)
        tasks.append(task)
    return Pipeline(tasks, Session(), log="memory:")


PLAIN = Scenario(jobs=40, default=TaskScenario(duration=Constant(2.0)))


POOL = Machines(
    "nodes",
    count=3,
    amounts={"cpu": 1},
    start=4.0,
    latency=0.25,
    speed=(1.0, 2.0, 0.5),
    mtbf=30.0,
    repair=Uniform(2.0, 6.0),
    preempted=40.0,
)
