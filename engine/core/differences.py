"""What differs between two definitions over one log, as it is found: jobs by task, each with its first position.

In come single findings, out go `Difference`s in a stable order. Nothing is folded or decided here (`against`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

What = Literal["ready", "blocked", "launched", "unknown", "only_in"]
Where = Literal["here", "there"]
"""`here`: as recorded; `there`: under the other definition."""

SAMPLE = 10

HEADINGS: dict[tuple[What, Where], str] = {
    ("ready", "there"): "ready under the other definition, and not as recorded",
    ("blocked", "there"): "ready as recorded, and not under the other definition",
    ("launched", "here"): "launched as recorded, where the other definition would not have",
    ("launched", "there"): "launched by the other definition, and not as recorded",
    ("unknown", "there"): "the other definition's own code would have had to answer",
}


@dataclass
class Difference:
    """One kind of difference for one task, or what exists in one definition only.

    `jobs` are all that differed at some batch boundary, each with the first position; `now` those that do at the end.
    """

    task: str | None
    what: What
    where: Where
    first_position: int
    explain: str
    repository: str | None = None
    jobs: dict[str, int] = field(default_factory=dict)
    sample: list[dict[str, Any]] = field(default_factory=list)
    now: set[str] = field(default_factory=set)


class Findings:
    """Differences by task, what and where."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, What, Where], Difference] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def tell(
        self, task: str, what: What, where: Where, job: str, position: int, why: Callable[[], str]
    ) -> Difference:
        """Take a job that differs; `why` is asked for the first few only."""
        known = self._found.get((task, what, where))
        if known is None:
            known = Difference(task, what, where, position, HEADINGS[what, where])
            self._found[task, what, where] = known
        if job not in known.jobs:
            known.jobs[job] = position
            if len(known.sample) < SAMPLE:
                known.sample.append({"job": job, "position": position, "explain": why()})
        return known

    def note(self, task: str, what: What, job: str, position: int, why: Callable[[], str] | None) -> None:
        """Take what is so at a batch boundary: a job differs (`why` says how), or (None) it does not."""
        known = self._found.get((task, what, "there"))
        if why is None:
            if known is not None:
                known.now.discard(job)
            return
        if known is None or job not in known.jobs:
            known = self.tell(task, what, "there", job, position, why)
        known.now.add(job)

    def ordered(self, tasks: Iterable[str]) -> list[Difference]:
        """Return what was found, by task in this order."""
        order = {name: number for number, name in enumerate(tasks)}
        return sorted(
            self._found.values(), key=lambda one: (order.get(one.task or "", -1), one.what, one.where)
        )
