"""Cells of arrays by job: read where the array has not grown to, written where it has to grow.

On their own, since leaves and groups of gathered jobs both stand on them.
"""

from __future__ import annotations

from array import array


def put_at(cells: array[int], index: int, value: int) -> None:
    """Set a cell, growing the array by doubling."""
    try:
        cells[index] = value
    except IndexError:
        grown = max(index + 1, 2 * len(cells), 64) - len(cells)
        cells.frombytes(bytes(grown * cells.itemsize))
        cells[index] = value


def get_at(cells: array[int], index: int) -> int:
    """Return a cell; 0 where the array has not grown to."""
    return cells[index] if index < len(cells) else 0
