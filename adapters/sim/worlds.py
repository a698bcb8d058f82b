"""Where simulated runs run: `start` and `stop` in, things that come at a time out.

`Plain` has unlimited capacity: after a latency a run begins, after its duration it ends.
`machines` has worlds with less. A world tells the simulator what comes by `push`, and begins a run that need not
wait by `begin`; it draws from the profile's samplers, in the order of the starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from datatask.adapters.sim.model import ENDED, STARTED, Profile, SimRun


class Simulator(Protocol):
    """The part of a simulator that a world calls."""

    now: int

    def name(self, job: int) -> str:
        """Return a job's name."""

    def push(self, at: int, what: int, about: object) -> None:
        """Let something come at a time: a run begins or ends, or the world is called."""

    def begin(self, run: SimRun) -> None:
        """Tell that a run begins now."""


class World(Protocol):
    """Where runs go."""

    def open(self, simulator: Simulator, profiles: tuple[Profile, ...]) -> None:
        """Begin: what comes by itself is pushed from here on."""

    def start(self, run: SimRun) -> None:
        """Take a run that was launched."""

    def resume(self, run: SimRun) -> None:
        """Take a run that was going when the simulation began; `started_at` is set."""

    def stop(self, run: SimRun, fate: int) -> None:
        """Let a run end now, with this fate."""

    def ended(self, run: SimRun) -> None:
        """A run is over; its amounts are free."""

    def busy(self, now: int) -> dict[str, tuple[float, float]]:
        """Return, by pool of machines, the machine-nanoseconds that were in use and those that there were."""

    def stuck(self) -> tuple[str, ...]:
        """Return, a line each, what can never begin."""


def draw(profile: Profile, run: SimRun, simulator: Simulator) -> None:
    """Decide how a run will go."""
    if profile.fate_of is not None:
        run.fate = profile.fate_of(simulator.name(run.job), run.attempt)
    elif profile.fate is not None:
        run.fate = profile.fate()
    if profile.duration_of is not None:
        run.duration = profile.duration_of(simulator.name(run.job), run.attempt, run.fate)
    elif profile.durations:
        run.duration = profile.durations[run.fate]()
    else:
        run.duration = profile.duration()
    if profile.fill_of is not None:
        run.fill = profile.fill_of(simulator.name(run.job))
    elif profile.fill is not None:
        run.fill = profile.fill()


TRIES, TRIES_BY_JOB = 1000, 50
"""Draws before a duration longer than the time so far is given up: fewer where it depends on the job and hardly varies."""


def draw_rest(profile: Profile, run: SimRun, simulator: Simulator) -> None:
    """Decide how a run goes on that has been going for a while: as those go that take longer than that.

    One that outlives all of them ends at once.
    """
    elapsed = simulator.now - run.started_at
    for _ in range(TRIES if profile.duration_of is None else TRIES_BY_JOB):
        draw(profile, run, simulator)
        if run.duration > elapsed:
            break
    run.duration = max(0, run.duration - elapsed)


def latency_left(latency: Callable[[], int], run: SimRun, simulator: Simulator) -> int:
    """Return the latency that is left; a run launched a while ago is as those that took longer than that."""
    elapsed = simulator.now - run.decided_at
    if not elapsed:
        return latency()
    return max(0, next((drawn for _ in range(TRIES) if (drawn := latency()) > elapsed), elapsed) - elapsed)


class Plain:
    """Unlimited capacity."""

    def open(self, simulator: Simulator, profiles: tuple[Profile, ...]) -> None:
        self._simulator, self._profiles = simulator, profiles

    def start(self, run: SimRun) -> None:
        simulator, profile = self._simulator, self._profiles[run.task]
        draw(profile, run, simulator)
        if profile.latency is None:
            simulator.begin(run)
            simulator.push(simulator.now + run.duration, ENDED, run)
            return
        at = simulator.now + latency_left(profile.latency, run, simulator)
        simulator.push(at, STARTED, run)
        simulator.push(at + run.duration, ENDED, run)

    def resume(self, run: SimRun) -> None:
        draw_rest(self._profiles[run.task], run, self._simulator)
        self._simulator.push(self._simulator.now + run.duration, ENDED, run)

    def stop(self, run: SimRun, fate: int) -> None:
        run.fate = fate
        self._simulator.push(self._simulator.now, ENDED, run)

    def ended(self, run: SimRun) -> None:
        """Nothing was taken."""

    def busy(self, now: int) -> dict[str, tuple[float, float]]:
        return {}

    def stuck(self) -> tuple[str, ...]:
        return ()
