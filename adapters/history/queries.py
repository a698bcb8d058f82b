"""Rows with named columns, the form of answers about many jobs, runs or repositories.

A `Table` is a sequence of dicts, so `json.dumps(list(table))`, `pandas.DataFrame(table)` and `polars.DataFrame(table)`
take it as it is; a notebook shows it as a table, a terminal as aligned text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, overload

SHOWN_ROWS = 60


class Table(Sequence[dict[str, Any]]):
    """Rows as dicts, all with the same `columns`, in this order."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Take the columns' names, and rows of one value for each."""
        self.columns = tuple(columns)
        self._rows = [dict(zip(self.columns, row, strict=True)) for row in rows]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Table:
        if isinstance(index, slice):
            return Table(self.columns, (tuple(row.values()) for row in self._rows[index]))
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Table):
            return self.columns == other.columns and self._rows == other._rows
        return self._rows == other

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> list[Any]:
        """Return the values of one column; `KeyError` where there is none."""
        if name not in self.columns:
            raise KeyError(name)
        return [row[name] for row in self._rows]

    def __repr__(self) -> str:
        shown = [[_cell(value) for value in row.values()] for row in self._rows[:SHOWN_ROWS]]
        widths = [
            max([len(name), *(len(row[index]) for row in shown)]) for index, name in enumerate(self.columns)
        ]
        lines = [self.columns, *shown]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *self._rest()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>"
            for row in self._rows[:SHOWN_ROWS]
        )
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"

    def _rest(self) -> list[str]:
        more = len(self._rows) - SHOWN_ROWS
        return [f"… and {more} more rows"] if more > 0 else []


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
