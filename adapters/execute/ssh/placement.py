"""The placement of runs on hosts: each goes to the one with the most room left, by its own quota.

In: hosts with quotas, what runs take. Out: a target for each run; one that fits nowhere now waits, in order, until
another one has ended. A run that no host could ever take is refused. What is taken is a view over the runs that are
open here, found ones included; there is no counter to drift.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from decimal import Decimal

from datatask.adapters.execute.base.machines import Recipe
from datatask.adapters.execute.ssh.connections import SSHHost
from datatask.adapters.execute.ssh.target import Target
from datatask.adapters.spools import Spool
from datatask.schema.errors import CallerError
from datatask.schema.resources import Resources

NOTHING = Resources(Decimal(0), Decimal(0), 0)


class Hosts:
    """A manager's targets, and which run is where."""

    def __init__(self, targets: list[Target]) -> None:
        self.targets = targets
        self.spool = Spool()
        self._taken: dict[str, tuple[Target, Resources]] = {}
        self._waiting: OrderedDict[str, tuple[Resources, asyncio.Future[Target]]] = OrderedDict()
        self._users = 0
        self._keys: dict[str, str] = {}

    @property
    def hosts(self) -> tuple[SSHHost, ...]:
        """The targets as their manager names them, with quotas and options."""
        return tuple(target.host for target in self.targets)

    async def attach(self, recipe: Recipe) -> None:
        """One more user of all targets."""
        attached: list[Target] = []
        try:
            for target in self.targets:
                await target.attach()
                attached.append(target)
            if recipe.environ is not None or recipe.enforce:
                for spent, amounts in enumerate((recipe.resources, *recipe.later)):
                    key = self._keys.setdefault(f"{recipe.task} {spent}", str(len(self._keys)))
                    memory = int(amounts.mem) if recipe.enforce and amounts is not None else 0
                    grouped = recipe.enforce is True and amounts is not None
                    cpu = float(amounts.cpu) if grouped and amounts is not None else None
                    for target in self.targets:
                        target.variables(key, recipe.environ, memory, cpu)
        except BaseException:
            for target in attached:
                await target.detach()
            raise
        self._users += 1

    def variables(self, recipe: Recipe, spent: int) -> str:
        """Return the name of the agent's function that sets the environment of an attempt."""
        key = self._keys.get(f"{recipe.task} {min(spent, len(recipe.later))}")
        return "true" if key is None else f"variables_{key}"

    async def detach(self) -> None:
        """One user less."""
        self._users -= 1
        for target in self.targets:
            await target.detach()
        if self._users == 0:
            self._taken.clear()
            self.spool.close()

    def own(self, identity: str, url: str) -> None:
        """Say whose runs these are."""
        for target in self.targets:
            target.own(identity, url)

    def others_up(self, target: Target) -> bool:
        """Whether another host answers."""
        return any(other.is_up for other in self.targets if other is not target)

    # --- room -------------------------------------------------------------------------------------

    async def place(self, identity: str, resources: Resources | None) -> Target:
        """Return a host with room for the run, as soon as there is one; it is taken from then on."""
        wanted = resources or NOTHING
        if not any(_fits(wanted, target.host.quota) for target in self.targets):
            limits = "; ".join(f"{target.label}: {target.host.quota}" for target in self.targets)
            raise CallerError(
                f"no host can ever take {wanted}", where=limits, remedy="raise a quota or lower job_resources"
            )
        target = None if self._waiting else self._best(wanted)
        if target is None:
            future: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
            self._waiting[identity] = wanted, future
            try:
                return await future
            except asyncio.CancelledError:
                self._waiting.pop(identity, None)
                self.release(identity)
                raise
        self._taken[identity] = target, wanted
        return target

    def occupy(self, identity: str, target: Target, resources: Resources | None) -> None:
        """Count a run that was found on a host."""
        self._taken.setdefault(identity, (target, resources or NOTHING))

    def release(self, identity: str) -> None:
        """The run is over: its room goes to those that wait."""
        if self._taken.pop(identity, None) is None:
            return
        for waiting, (wanted, future) in list(self._waiting.items()):
            target = self._best(wanted)
            if target is not None:
                del self._waiting[waiting]
                self._taken[waiting] = target, wanted
                if not future.done():
                    future.set_result(target)

    def used(self, target: Target) -> Resources:
        """Return what the open runs on a host take."""
        total = NOTHING
        for taken, resources in self._taken.values():
            if taken is target:
                total = total + resources
        return total

    def _best(self, wanted: Resources) -> Target | None:
        """Return the host that has the largest share free afterwards; one that answers goes before one that does not."""
        if len(self.targets) == 1 and self.targets[0].host.quota is None:
            return self.targets[0]
        best: tuple[tuple[bool, float, int], Target] | None = None
        for target in self.targets:
            used = self.used(target) + wanted
            if not _fits(used, target.host.quota):
                continue
            runs = sum(1 for taken, _ in self._taken.values() if taken is target)
            rank = (target.is_up, _free(used, target.host.quota), -runs)
            if best is None or rank > best[0]:
                best = rank, target
        return None if best is None else best[1]


def _fits(used: Resources, quota: Resources | None) -> bool:
    if quota is None:
        return True
    custom = all(used.custom[name] <= quota.custom.get(name, 0) for name in used.custom)
    return used.cpu <= quota.cpu and used.mem <= quota.mem and custom


def _free(used: Resources, quota: Resources | None) -> float:
    """Return the share that is free in the scarcest dimension."""
    if quota is None:
        return 1.0
    shares = [(used.cpu, quota.cpu), (used.mem, quota.mem)]
    shares += [(Decimal(used.custom.get(name, 0)), Decimal(limit)) for name, limit in quota.custom.items()]
    return min((float(1 - taken / limit) for taken, limit in shares if limit), default=1.0)
