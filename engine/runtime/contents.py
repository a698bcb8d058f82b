"""The contents of values: those that this engine has just written or read, and the way of large ones into the blobs.

In: the events that it appends, values that it has read and found sound, and writes with bytes or files. Out: a value by
its position, the last changes of keys, and writes whose bytes the log can name. What is kept is bounded by its bytes; the
oldest goes first. A value that is not here is read from the log: it costs a query, and its whole batch is hashed, which
is several times what keeping it costs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import msgspec

from datatask.engine.core.state import State
from datatask.engine.ports import EventLog
from datatask.schema import events as e
from datatask.schema.messages import Write

BYTES_MAX = 24 * 1024 * 1024
ENTRY_BYTES = 320
"""What an entry takes besides its content: 75,000 small values are kept."""
BARE_MAX = 4096


class AtHand:
    """Values by position (`values`, only to be read), and changes that have none."""

    def __init__(self) -> None:
        self.values: OrderedDict[int, e.ValuePut] = OrderedDict()
        self._bare: OrderedDict[int, e.ValuePut | e.ValueDeleted] = OrderedDict()
        self._bytes = 0

    def append(self, first: int, events: Sequence[e.Event]) -> None:
        """Keep what a batch changes."""
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
        """Keep a value that was read and found sound."""
        if position not in self.values:
            self.append(position, (put,))

    def forget(self, positions: Iterable[int]) -> None:
        """Keep these no longer: the log has been changed there."""
        for position in positions:
            self._bare.pop(position, None)
            put = self.values.pop(position, None)
            if put is not None:
                self._drop(put)

    def change(self, position: int) -> e.Event | None:
        """Return one of the last changes; what is told of a conflict is better with it."""
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
        medium = self._state.leaves[write.repository].definition.medium
        if medium == "native":
            return write.source is not None or write.data is not None
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
