"""What an engine has just written or read, so that it need not be read from the log, and checked, again.

In: the events that it appends, and values that it has read and found sound. Out: a value by its position, and the last changes of
keys. What is kept is bounded by its bytes; the oldest goes first. A value that is not here is read from the log: it costs a
query, and its whole batch is hashed, which is several times what keeping it costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from datatask.schema import events as e

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
