"""One Dask scheduler, as all tasks that name it share it: what is handed over to it, held there, found again, let go of.

In: runs to submit, adopt and let go of. Out: what became of them, to the runs' runners (`Hears`). A run is a Dask task whose key has
the run's identity in it. In the same message as the task the scheduler gets a hold on its key, in the name of a client that is
never connected and so never leaves: this is what publishing a dataset does, without its two gaps (decision 0026). The hold goes when the
run's end is durable. A connection that was lost is made again for as long as it takes; then all open runs are looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ClassVar, TypeVar

from datatask.adapters.execute.functions.dask import worker
from datatask.adapters.execute.functions.dask.holds import Holds
from datatask.adapters.execute.functions.dask.places import Place, place_of
from datatask.adapters.execute.functions.dask.runs import DaskRun, Hears
from datatask.engine.ports import Earlier
from datatask.engine.runtime.services import Service, current
from datatask.schema.messages import RunSpec

logger = logging.getLogger("datatask.task")
T = TypeVar("T")

CONNECT_SECONDS, LOOK_SECONDS, PAUSE_SECONDS = 5.0, 0.2, 1.0
BATCH_SECONDS, GATHER_SECONDS = 0.003, 0.02
CLOSE_SECONDS = 5.0
_IDENTITY = re.compile(r"-([0-9a-f-]+)\.(\d+)\.(\d+)$")


class Cluster:
    """The connection to one scheduler; `attach` and `detach` count its users."""

    _clusters: ClassVar[dict[str, Cluster]] = {}

    def __init__(self, place: Place) -> None:
        self.place = place
        self.scheduler = ""
        self.suspects: set[tuple[str, str]] = set()
        self._client: Any = None
        self._stream: Any = None
        self._connected = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._looking = asyncio.Lock()
        self._users = 0
        self._runs: dict[str, DaskRun] = {}
        self._batch: list[DaskRun] = []
        self._flushing: asyncio.TimerHandle | None = None
        self._alone: DaskRun | None = None
        self._suspected: deque[DaskRun] = deque()
        self._wanted: dict[str, asyncio.Future[bytes | None]] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._holds = Holds()
        self._tasks: set[asyncio.Task[None]] = set()
        self._topics: set[str] = set()

    @classmethod
    def of(cls, executor: Any) -> Cluster:
        """Return the one of this place."""
        place = place_of(executor)
        found = cls._clusters.get(place.address)
        if found is None or found._loop is not asyncio.get_running_loop():
            found = cls._clusters[place.address] = cls(place)
        return found

    async def attach(self) -> None:
        """One more user; the first one has the connection made."""
        self._users += 1
        if self._users == 1:
            self._services = current()
            self._tasks.add(self._services.keep(f"the connection to {self.place.address}", self._serve))
            self._tasks.add(
                self._services.keep(f"the letting go at {self.place.address}", self._let_go_for_ever)
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), CONNECT_SECONDS)

    async def detach(self) -> None:
        """One user less; the last one closes the connection, once what was to be let go is."""
        self._users -= 1
        if self._users:
            return
        Cluster._clusters.pop(self.place.address, None)
        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._holds.let_go(self._client), CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Run a coroutine in the background."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._services.mind(task, what)
        return task

    # --- the connection ---------------------------------------------------------------------------

    async def _serve(self, service: Service) -> None:
        from distributed import Client

        why = ""
        while True:
            try:
                self._client = Client(
                    self.place.address,
                    security=self.place.security,
                    asynchronous=True,
                    set_as_default=False,
                    timeout=CONNECT_SECONDS,
                    name="datatask",
                )
                await self._client
                self._stream = self._client.scheduler_comm
                info = await self._client.scheduler.identity()
                self.scheduler = str(info["id"])
                for topic in self._topics:
                    self._listen(topic)
                self._connected.set()
                await self._look(list(self._runs.values()))
                self._flush_soon()
                if why:
                    logger.warning("%s answers again", self.place.address)
                service.works()
                while self._is_up():
                    await asyncio.sleep(LOOK_SECONDS)
                error: Exception | None = None
            except Exception as caught:
                error = caught
            if not why:
                logger.warning(
                    "the Dask scheduler at %s does not answer; it is tried again and again",
                    self.place.address,
                )
            why = f"the Dask scheduler at {self.place.address} does not answer" + (
                f": {error}" if error else ""
            )
            await self._disconnect()
            for run in list(self._runs.values()):
                run.hears.on_silence(run, why)
            await asyncio.sleep(PAUSE_SECONDS)

    def _is_up(self) -> bool:
        """Whether the client is on the stream that it had: by itself it makes another one, and sends there what it was given meanwhile."""
        client = self._client
        return client is not None and client.status == "running" and client.scheduler_comm is self._stream

    async def _disconnect(self) -> None:
        self._connected.clear()
        client, self._client = self._client, None
        for run in self._runs.values():
            self._unwatch(run)
        if client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client._close(fast=True), CLOSE_SECONDS)

    async def _reached(self) -> Any:
        await self._connected.wait()
        return self._client

    def _listen(self, topic: str) -> None:
        self._client.subscribe_topic(topic, self._on_event)

    def _on_event(self, event: Any) -> None:
        told = event[1]
        run = self._runs.get(told["key"])
        if run is not None and not run.begun and not run.ended:
            run.worker, run.address = told["name"], told["address"]
            run.begun = run.claimed = True
            run.hears.on_begun(run)

    # --- handing over -----------------------------------------------------------------------------

    def submit(self, run: DaskRun) -> None:
        """Hand a run over, with others of this moment; a suspect one when no other suspect is there."""
        self._know(run)
        if (run.spec.task, run.spec.job) in self.suspects:
            if self._alone is not None:
                self._suspected.append(run)
                return
            self._alone = run
        self._batch.append(run)
        self._flush_soon()

    def _know(self, run: DaskRun) -> None:
        self._runs[run.key] = run
        topic = f"datatask-{run.spec.identity.partition('.')[0]}"
        if topic not in self._topics:
            self._topics.add(topic)
            if self._connected.is_set():
                self._listen(topic)

    def withdraw(self, run: DaskRun) -> bool:
        """Take back a run that is not handed over yet; whether that was so."""
        for waiting in (self._batch, self._suspected):
            if run in waiting:
                waiting.remove(run)
                return True
        return False

    def _flush_soon(self) -> None:
        if self._flushing is None and self._batch:
            self._flushing = self._loop.call_later(BATCH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        if not (self._connected.is_set() and self._is_up()):
            return
        runs, self._batch = self._batch, []
        groups: dict[tuple[tuple[str, float], ...], list[DaskRun]] = {}
        for run in runs:
            groups.setdefault(tuple(sorted((run.resources or {}).items())), []).append(run)
        for resources, group in groups.items():
            self._hand_over(group, dict(resources))

    def _hand_over(self, runs: list[DaskRun], resources: dict[str, float]) -> None:
        keys = [run.key for run in runs]
        try:
            futures = self._client.map(
                pickle.loads,
                [run.parcel for run in runs],
                key=keys,
                pure=False,
                retries=0,
                resources=resources or None,
            )
            self._holds.hold(self._client, runs)  # in the same message, as nothing was awaited
        except Exception as error:
            for run in runs:
                self.spawn(run.hears.on_failed(run, error), "a run that could not be sent to Dask")
            return
        for run, future in zip(runs, futures, strict=True):
            run.parcel = b""
            run.scheduler = self.scheduler
            self._watch(run, future)

    def _watch(self, run: DaskRun, future: Any) -> None:
        run.future = future
        run.watch = self.spawn(self._watched(run, future), "the end of a run in Dask")

    def _unwatch(self, run: DaskRun) -> None:
        if run.watch is not None:
            run.watch.cancel()
        run.watch = run.future = None

    async def _watched(self, run: DaskRun, future: Any) -> None:
        try:
            error = await future.exception()
            if error is not None:
                raise error
            data = await self._gathered(run.key)
            reply = worker.decoded(await future.result() if data is None else data)
        except Exception as error:
            if getattr(error, "reason", "") != "scheduler-connection-lost" and self._connected.is_set():
                await run.hears.on_failed(run, error)
        else:
            run.claimed = True
            run.hears.on_returned(run, reply)

    async def _gathered(self, key: str) -> bytes | None:
        """Return a result, fetched with all others of the moment; None where it is not there (any more)."""
        wanted: asyncio.Future[bytes | None] = self._loop.create_future()
        self._wanted[key] = wanted
        if len(self._wanted) == 1 and (self._gathering is None or self._gathering.done()):
            self._gathering = self.spawn(self._gather(), "the fetching of results from Dask")
        return await wanted

    async def _gather(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            found: dict[str, bytes] = {}
            with contextlib.suppress(OSError, AttributeError):  # a connection that is lost meanwhile
                client = await self._reached()
                left = set(wanted)
                answer = await client.scheduler.gather(keys=list(left))
                if answer["status"] != "OK":
                    left -= set(answer["keys"])
                    answer = await client.scheduler.gather(keys=list(left)) if left else {}
                found = answer.get("data", {})
            for key, waiting in wanted.items():
                if not waiting.done():
                    waiting.set_result(found.get(key))
            await asyncio.sleep(GATHER_SECONDS)

    # --- finding again ----------------------------------------------------------------------------

    async def adopt(self, runs: list[DaskRun]) -> None:
        """Look for runs of an earlier engine; where the scheduler does not answer now, once it does."""
        for run in runs:
            self._know(run)
        why = f"the Dask scheduler at {self.place.address} does not answer"
        try:
            if self._connected.is_set():
                await self._look(runs)
                return
        except Exception as error:
            why += f": {error}"
            self.spawn(self._ask(lambda client: self._look(runs)), "the adopting of runs in Dask")
        for run in runs:
            run.hears.on_silence(run, why)

    async def _look(self, runs: list[DaskRun]) -> None:
        """Watch those runs that the scheduler knows; of the others those that were handed over are missing."""
        async with self._looking:
            await self._look_for(runs)

    async def _look_for(self, runs: list[DaskRun]) -> None:
        waiting = {run.key for run in (*self._batch, *self._suspected)}
        runs = [run for run in runs if not run.ended and run.watch is None and run.key not in waiting]
        if not runs:
            return
        known = await self._client.who_has()
        self._rename(runs, known)
        here = [run for run in runs if run.key in known]
        await self._find_workers(here)
        from distributed import Future

        for run in here:
            self._watch(run, Future(run.key, self._client))
        keys = [run.key for run in here]
        self._client._send_to_scheduler(
            {"op": "client-desires-keys", "keys": keys, "client": self._client.id}
        )
        self._holds.hold(self._client, here)
        for run in here:
            run.scheduler = self.scheduler
            run.hears.on_found(run)
        for run in runs:
            if run.key not in known:
                self.spawn(run.hears.on_missing(run), "a run that Dask has forgotten")

    def _rename(self, runs: list[DaskRun], known: Iterable[Any]) -> None:
        """Find runs whose task had another name when they were handed over: their identity is the same."""
        named = {run.spec.identity: run for run in runs if run.key not in known}
        for key in known if named else ():
            found = _IDENTITY.search(key) if isinstance(key, str) else None
            if found is not None and (run := named.get(key[found.start() + 1 :])) is not None:
                self._runs[key] = self._runs.pop(run.key)
                run.key = key

    async def _find_workers(self, runs: list[DaskRun]) -> None:
        """Find out which runs have begun, and where."""
        named = {run.key: run for run in runs}
        at = {
            address: [key for key in keys if key in named]
            for address, keys in (await self._client.processing()).items()
        }
        at = {address: keys for address, keys in at.items() if keys}
        if not at:
            return
        every = [key for keys in at.values() for key in keys]
        begun = await self._client.run(worker.begun, every, workers=list(at), on_error="ignore")
        for address, (name, keys) in begun.items():
            for key in keys:
                run = named[key]
                run.worker, run.address = name, address
                run.begun = run.claimed = True

    def sweep(self, task: str, earlier: Earlier, hears: Hears) -> None:
        """Let go of what earlier engines have left of a task, or of tasks that are gone; what is open has been adopted."""
        self.spawn(
            self._sweep(task, earlier, hears), "the sweeping of what earlier engines have left in Dask"
        )

    async def _sweep(self, task: str, earlier: Earlier, hears: Hears) -> None:
        known = set(await self._ask(lambda client: client.who_has()))
        for key in known | await self._ask(self._holds.locked):
            found = _IDENTITY.search(key) if isinstance(key, str) and key not in self._runs else None
            if found is None or found[1] != earlier.log or int(found[2]) >= earlier.epoch:
                continue
            whose, run = key[: found.start()], int(found[3])
            if (whose == task or whose not in earlier.others) and earlier.is_over(run):
                spec = RunSpec(run, key[found.start() + 1 :], whose, "", 0, 0, {})
                left = DaskRun(spec, hears, None)
                left.scheduler = self.scheduler
                if not await self.bar(left):
                    left.barred = key not in known
                self._holds.gone.append(left)

    # --- asking -----------------------------------------------------------------------------------

    async def _ask(self, what: Callable[[Any], Awaitable[T]]) -> T:
        """Ask the scheduler something, once more where the connection is lost meanwhile, for as long as it takes."""
        while True:
            client = await self._reached()
            try:
                return await what(client)
            except Exception as error:
                if client is self._client and client.status == "running" and not isinstance(error, OSError):
                    raise
                logger.debug("%s: %s", self.place.address, error)
            await asyncio.sleep(LOOK_SECONDS)

    async def bar(self, run: DaskRun) -> bool:
        """Keep a run from being begun; False when it has been."""
        if run.begun:
            return False
        try:
            asked = worker.claimed(run.key)
            barred = bool(await self._ask(lambda client: client.scheduler.multi_lock_acquire(**asked)))
        except AssertionError:
            barred = False
        run.claimed = True
        run.barred = barred
        return barred

    async def tell(self, run: DaskRun, what: Callable[[str], None]) -> None:
        """Have the run's worker do something about it."""
        if not run.address:
            await self._ask(lambda client: self._find_workers([run]))
        if run.address:
            to = [run.address]
            await self._ask(lambda client: client.run(what, run.key, workers=to, on_error="ignore"))

    async def lacking(self) -> str:
        """Return which workers have no datatask, in words; empty when all have."""
        from importlib.metadata import version

        told = await self._ask(lambda client: client.run(version, "datatask-engine", on_error="return"))
        without = sorted(address for address, what in told.items() if isinstance(what, Exception))
        return (
            f"{len(without)} of {len(told)} workers: {', '.join(without[:3])}{', …' if without[3:] else ''}"
            if without
            else ""
        )

    # --- letting go -------------------------------------------------------------------------------

    def over(self, run: DaskRun) -> None:
        """A run has ended: the next suspect may be handed over."""
        self._unwatch(run)
        self.withdraw(run)
        if self._alone is run:
            self._alone = None
            if self._suspected:
                self._alone = self._suspected.popleft()
                self._batch.append(self._alone)
                self._flush_soon()

    def forget(self, run: DaskRun) -> None:
        """The run's end is durable: nothing of it is to stay."""
        self._runs.pop(run.key, None)
        self._holds.gone.append(run)

    async def _let_go_for_ever(self, service: Service) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._holds.gone and self._connected.is_set() and self._is_up():
                gone = self._holds.gone
                try:
                    await self._holds.let_go(self._client)
                except (OSError, AttributeError):  # the connection is lost: once more on the next one
                    self._holds.gone += gone
            service.works()
