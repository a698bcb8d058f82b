"""What a real cluster said, told to the runner again: in its order, and in every order that Kubernetes allows.

Order is promised for each pod, not between pods. Streams are cut anywhere, versions are forgotten, lists come in between;
the ends are the same, one for each run.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from datatask.adapters.execute.kube import watch
from datatask.schema.messages import Ended, Started
from tests.kube import recorded
from tests.kube.api.faults import Fault
from tests.kube.api.player import Player, onto, shuffled
from tests.kube.recorded import ENDS
from tests.kube.runner_kit import make_task, opened, spec
from tests.kube.scripted import Hand, scripted
from tests.run_kit import Facts, until

RUNS = {job: number for number, job in enumerate(ENDS, 1)}
NEVER_RAN = {"badcommand", "imagepull", "configerror", "unschedulable"}


async def played(chance: random.Random, *, mixed: bool, cuts: int = 0, finalizer: bool = True) -> Facts:
    """Let the runner start a pod for each recorded one, give them the recorded lives, and return what it told."""
    events = recorded.events()
    async with (
        scripted() as api,
        opened(make_task(api, logs=False, finalizer=finalizer)) as (runner, facts),
    ):
        for job, run in RUNS.items():
            runner.start(spec(run, job))
        await until(lambda: len(api.pods) == len(RUNS))
        whose = {pod["metadata"]["annotations"]["datatask.io/job"]: name for name, pod in api.pods.items()}
        adapt = onto(api.server, whose.get)
        player = Player(api.server, shuffled(events, chance) if mixed else events, adapt)
        await _play(api, player, chance, cuts)
        for run in RUNS.values():
            await facts.end_of(run)
            runner.forget(run)
        await until(lambda: not api.pods)
        return facts


async def _play(api: Hand, player: Player, chance: random.Random, cuts: int) -> None:
    """Play all; at some places the watch is cut: cleanly, within an event, or by a history that is forgotten."""
    places = set(chance.sample(range(len(player.events)), cuts))
    while player.step():
        if player.played in places:
            how = chance.choice(("clean", "torn", "forgotten"))
            if how == "forgotten":
                api.forget_history()
            else:
                api.faults.append(Fault("watch", events=chance.randint(0, 3), torn=how == "torn"))
                api.end_watches()
            if chance.random() < 0.5:
                api.faults.append(Fault("list", code=500, message="etcdserver: leader changed"))
        if chance.random() < 0.2:
            await asyncio.sleep(0.002)


def ends_of(facts: Facts) -> dict[str, tuple[str, int | None]]:
    """Return how each job ended; it must have ended once."""
    ends = {}
    for job, run in RUNS.items():
        (ended,) = facts.of(run, Ended)
        ends[job] = (ended.ending.outcome, ended.ending.exit_code)
        assert len(facts.of(run, Started)) <= 1
    return ends


async def test_as_it_was_recorded() -> None:
    """Every end, and a start for each that ran; nothing is left."""
    facts = await played(random.Random(0), mixed=False)
    assert ends_of(facts) == ENDS
    assert {job for job, run in RUNS.items() if not facts.of(run, Started)} == NEVER_RAN
    node = facts.of(RUNS["p1"], Started)[0].where
    assert node == "127.0.0.1"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a watch that was cut begin anew soon."""
    monkeypatch.setattr(watch, "BACKOFF", (0.02, 0.1))


@pytest.mark.parametrize("seed", range(8))
async def test_in_any_order_between_pods(seed: int) -> None:
    """The same ends, whether or not a finalizer holds the pods."""
    assert ends_of(await played(random.Random(seed), mixed=True, finalizer=seed % 2 == 0)) == ENDS


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("seed", range(4))
async def test_in_any_order_with_cuts_anywhere(seed: int) -> None:
    """Pods are held by a finalizer, so that no end is missed."""
    assert ends_of(await played(random.Random(seed), mixed=True, cuts=6)) == ENDS


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("seed", range(6))
async def test_with_cuts_and_without_a_finalizer(seed: int) -> None:
    """What a list shows for the first time when it is over is judged as if it had been seen; who is never seen is lost."""
    ends = ends_of(await played(random.Random(100 + seed), mixed=True, cuts=6, finalizer=False))
    assert {job: end for job, end in ends.items() if end[0] != "lost"}.items() <= ENDS.items()
    lost = {job for job, end in ends.items() if end[0] == "lost"}
    assert {job for job, end in ENDS.items() if end[0] == "lost"} <= lost


async def alone(name: str, *, stopped: bool) -> Facts:
    """Let the runner start one pod, give it the life of a recorded watch, and return what it told.

    A pod that was deleted in the end lives on here, and is ended by hand.
    """
    events = [
        event for event in recorded.events(name) if not event["object"]["metadata"].get("deletionTimestamp")
    ]
    async with scripted() as api, opened(make_task(api, logs=False)) as (runner, facts):
        runner.start(spec(1, "j"))
        own = (await api.pod("j"))["metadata"]["name"]
        await Player(api.server, events, onto(api.server, lambda _: own)).play(0.005)
        if stopped:
            api.end(own, 7)
        await facts.end_of(1)
    return facts


@pytest.mark.parametrize(
    ("name", "outcome", "code"),
    [
        ("sidecar-watch", "succeeded", 0),
        ("sidecar-fail-watch", "failed", 5),
        ("sidecar-crashing-watch", "succeeded", 0),
    ],
)
async def test_a_pod_with_a_sidecar_ends_as_its_main_container(name: str, outcome: str, code: int) -> None:
    """Whatever the sidecar does, before and after."""
    facts = await alone(name, stopped=False)
    (ended,) = facts.of(1, Ended)
    assert (ended.ending.outcome, ended.ending.exit_code) == (outcome, code)
    assert len(facts.of(1, Started)) == 1


@pytest.mark.parametrize("name", ["resize-watch", "resize-deferred-watch"])
async def test_changes_that_say_nothing_new_are_told_to_nobody(name: str) -> None:
    """A resize makes many versions of a pod: it has started once and ended once."""
    facts = await alone(name, stopped=True)
    assert [type(fact) for fact in facts.all] == [Started, Ended]
    assert facts.all[-1].ending.exit_code == 7  # type: ignore[union-attr]
