"""Runs are started once the contents of their inputs are the recorded ones; recent contents of values.

In: `StartRun` effects whose batch is durable. Out: `Runner.start`, at once where each input is in memory or lives elsewhere,
else after values and blobs in the log were read and checked, many runs at a time. A run with a damaged input is refused
with an error that names it. A stop that arrives meanwhile is made after the start. `Contents` keeps values lately
written or read, bounded by bytes, the oldest dropped first: reading one from the log hashes its whole batch.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from datatask.engine.core.effects import Effect
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.state import State
from datatask.engine.ports import EventLog, Reuse, Runner
from datatask.schema import events as e
from datatask.schema.errors import DatataskError, LogDamagedError
from datatask.schema.messages import Ended, RunSpec, Write

Refuse = Callable[[RunSpec, DatataskError], None]


class Starter:
    """The runs of one engine on their way to their runners.

    `behind` are the runs that are not started yet, each with what is to be done to it then.
    """

    def __init__(
        self,
        log: EventLog,
        state: State,
        runners: Mapping[str, Runner],
        *,
        at_hand: AtHand,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        perform: Callable[[Effect], None],
        refuse: Refuse,
        sink: Callable[[Ended], None],
    ) -> None:
        self._log, self._state, self._runners, self._at_hand = log, state, runners, at_hand
        self._spawn, self._perform, self._refuse, self._sink = spawn, perform, refuse, sink
        self.reuse: Reuse | None = None
        self._native: dict[str, tuple[object, frozenset[str]]] = {}
        self._unread: list[RunSpec] = []
        self.behind: dict[int, list[Effect]] = {}
        self._damage: DatataskError | None = None
        self.closed = False

    def start(self, spec: RunSpec) -> None:
        """Start the run now, or with the next `flush` where an input has to be read first."""
        if self._damage is None and not self._may_be_spared(spec) and self._is_at_hand(spec):
            self._runners[spec.task].start(spec)
        else:
            self._unread.append(spec)
            self.behind[spec.run] = []

    def _may_be_spared(self, spec: RunSpec) -> bool:
        return self.reuse is not None and self.reuse.may(spec.task)

    def waits(self, run: int, effect: Effect) -> bool:
        """Whether the run is not started yet; then the effect follows its start."""
        behind = self.behind.get(run)
        if behind is None:
            return False
        behind.append(effect)
        return True

    def flush(self) -> None:
        """Read and check the inputs of the runs that wait for it."""
        if self._unread:
            specs, self._unread = self._unread, []
            self._spawn(self._check_and_start(specs))

    def _is_at_hand(self, spec: RunSpec) -> bool:
        values = self._at_hand.values
        for name, position in spec.inputs.items():
            put = values.get(position)
            if (put is None or put.digest is not None) and name in self._native_inputs(spec.task):
                return False
        return True

    def _native_inputs(self, task: str) -> frozenset[str]:
        """Return the names of the inputs whose values live in the log, as `LaunchDecided.inputs` names them."""
        definition = self._state.tasks[task].definition
        known = self._native.get(task)
        if known is None or known[0] is not definition:
            found = set()
            for link in definition.links:
                for leaf in leaves_of(link.expr) if link.is_input else ():
                    if _home(self._state.leaves[leaf]).definition.medium == "native":
                        found |= {link.name, f"{link.name}.{leaf}"}
            known = self._native[task] = definition, frozenset(found)
        return known[1]

    async def _check_and_start(self, specs: list[RunSpec]) -> None:
        inputs = {
            spec.run: [spec.inputs[name] for name in self._native_inputs(spec.task) if name in spec.inputs]
            for spec in specs
        }
        try:
            puts = await self._read({position for positions in inputs.values() for position in positions})
        except DatataskError:
            puts = None  # whose input it is, is looked for below
        for spec in specs:
            # On a damaged log no other run is started either, and looking for more would take a hash of a batch each.
            error = self._damage or await self._fault(inputs[spec.run], puts)
            if isinstance(error, LogDamagedError):
                self._damage = error
            if error is None and self.reuse is not None and self.reuse.may(spec.task):
                self._spawn(self._look_and_go_on(spec, self.reuse))
            else:
                self._go_on(spec, error)

    async def _look_and_go_on(self, spec: RunSpec, reuse: Reuse) -> None:
        found = await reuse.look(spec)
        if found is None:
            self._go_on(spec, None)
        elif self.behind.pop(spec.run, None) is not None and not self.closed:
            self._sink(found)

    async def _read(self, positions: set[int]) -> dict[int, e.ValuePut]:
        values = self._at_hand.values
        puts = {position: put for position in positions if (put := values.get(position)) is not None}
        missing = sorted(positions - puts.keys())
        for position, event in zip(missing, await self._log.fetch(missing) if missing else (), strict=True):
            if isinstance(event, e.ValuePut):
                puts[position] = event
                self._at_hand.add(position, event)
        return puts

    async def _fault(
        self, positions: list[int], puts: Mapping[int, e.ValuePut] | None
    ) -> DatataskError | None:
        """Return what is wrong with one run's inputs, or None."""
        try:
            found = await self._read(set(positions)) if puts is None else puts
        except DatataskError as error:
            return error
        for put in (found[position] for position in positions if position in found):
            if put.digest is not None and not put.value:
                try:
                    await asyncio.to_thread(self._log.blobs.intact, put.digest)
                except DatataskError as error:
                    return _of(put, error)
        return None

    def _go_on(self, spec: RunSpec, error: DatataskError | None) -> None:
        behind = self.behind.pop(spec.run)
        if self.closed:  # the next engine finds it decided and not started
            return
        if error is not None:
            self._refuse(spec, error)
            return
        self._runners[spec.task].start(spec)
        for effect in behind:
            self._perform(effect)


def _home(leaf: LeafState) -> LeafState:
    """Return the leaf that holds the values which a derived one shows."""
    while leaf.derived is not None and leaf.derived.base_leaf is not None:
        leaf = leaf.derived.base_leaf
    return leaf


def _of(put: e.ValuePut, error: DatataskError) -> DatataskError:
    """Return the error about a value's blob with the value's name."""
    return type(error)(
        f"the value of {put.repository} {put.job}: {error.what}", where=error.where, remedy=error.remedy
    )


BYTES_MAX = 24 * 1024 * 1024
ENTRY_BYTES = 320
"""The size of an entry besides its content; 75,000 small values fit."""
BARE_MAX = 4096


class AtHand:
    """Values by position (`values`, only to be read), and changes that have none."""

    def __init__(self) -> None:
        self.values: OrderedDict[int, e.ValuePut] = OrderedDict()
        self._bare: OrderedDict[int, e.ValuePut | e.ValueDeleted] = OrderedDict()
        self._bytes = 0

    def append(self, first: int, events: Sequence[e.Event]) -> None:
        """Cache the changes of a batch."""
        values = self.values
        for position, event in enumerate(events, first):
            if type(event) is e.ValuePut:
                if event.value or event.digest is not None:
                    values[position] = event
                    self._bytes += ENTRY_BYTES + len(event.value)
                else:
                    self._bare[position] = event
            elif type(event) is e.ValueDeleted:
                self._bare[position] = event
        while self._bytes > BYTES_MAX:
            self._drop(values.popitem(last=False)[1])
        while len(self._bare) > BARE_MAX:
            self._bare.popitem(last=False)

    def add(self, position: int, put: e.ValuePut) -> None:
        """Cache a value that was read and verified."""
        if position not in self.values:
            self.append(position, (put,))

    def forget(self, positions: Iterable[int]) -> None:
        """Drop these positions: the log has been changed there."""
        for position in positions:
            self._bare.pop(position, None)
            put = self.values.pop(position, None)
            if put is not None:
                self._drop(put)

    def change(self, position: int) -> e.Event | None:
        """Return one of the last changes, for the message of a conflict."""
        return self.values.get(position) or self._bare.get(position)

    def _drop(self, put: e.ValuePut) -> None:
        self._bytes -= ENTRY_BYTES + len(put.value)


class Contents:
    """The contents of one engine's values; `at_hand` are those that need not be read."""

    def __init__(self, log: EventLog, state: State) -> None:
        self._log = log
        self._state = state
        self.at_hand = AtHand()

    async def put_at(self, position: int) -> e.ValuePut:
        """Return what was put at a durable position; `LogDamagedError` where it is not what was written."""
        put = self.at_hand.values.get(position)
        if put is None:
            (event,) = await self._log.fetch([position])
            assert isinstance(event, e.ValuePut)
            put = event
            self.at_hand.add(position, put)
        return put

    def is_unstored(self, write: Write) -> bool:
        """Whether the content must be taken first: into the log's blobs, or from a file into this process."""
        if write.source is None and write.data is None:
            return False
        medium = self._state.leaves[write.repository].definition.medium
        if medium == "native":
            return True
        if medium == "foreign" and write.over is not None:
            return write.data is not None  # so that the intent names it, and recovery can do it again
        return medium == "mirror" and write.source is not None

    async def stored(self, write: Write) -> Write:
        """Return the write with its content among the log's blobs, named by digest; or, in-process, as bytes."""
        blobs = self._log.blobs
        if self._state.leaves[write.repository].definition.medium == "mirror":
            assert write.source is not None, "only files are taken into this process"
            data = await asyncio.to_thread(write.source.read_bytes)
            return msgspec.structs.replace(write, source=None, data=data, size=len(data))
        if write.source is not None:
            digest, size = await asyncio.to_thread(blobs.put_file, write.source)
        else:
            digest, size = await asyncio.to_thread(blobs.put_bytes, write.data or b"")
        return msgspec.structs.replace(write, source=None, data=None, digest=digest, size=size)
