"""Whatever life a pipeline has, its log verifies clean; whatever is changed in it is found at or before its batch."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import datatask
from datatask.schema.definition import PipelineDef
from tests.property.logs import write_log
from tests.property.test_state import families, lives
from tests.property.world import Action, World

COLUMNS = (
    "at",
    "kind",
    "version",
    "actor",
    "cause",
    "task",
    "repository",
    "job",
    "run",
    "payload",
    "salt",
    "chain",
)


def written(folder: str, family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> Path:
    world = World(*family)
    for action in life:
        world.act(action)
    path = Path(folder) / "log.db"
    write_log(path, world.batches)
    return path


@settings(max_examples=settings().max_examples // 2)
@given(families(), lives)
def test_random_lives_are_clean(family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = datatask.verify(written(folder, family, life))
    assert found.ok, found


@settings(max_examples=settings().max_examples // 4)
@given(families(), lives, st.integers(0, 1 << 30))
def test_random_damage_is_found(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], seed: int
) -> None:
    """One value of one row, a deleted row, or a deleted batch in the middle: never clean, and never behind it."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, family, life)
        good = path.read_bytes()
        for _ in range(10):
            last = damage(path, chance)
            found = datatask.replay(path, verify=True)
            assert found.broken_at is not None
            assert found.broken_at <= last, found
            path.write_bytes(good)


def damage(path: Path, chance: random.Random) -> int:
    """Change something; return the end of the batch that was changed."""
    with closing(sqlite3.connect(path)) as connection:
        ends = [
            row[0]
            for row in connection.execute("SELECT position FROM log WHERE chain IS NOT NULL ORDER BY 1")
        ]
        position = chance.randrange(1, ends[-1])
        end = min(one for one in ends if one >= position)
        kind = chance.choice(("row", "batch", "value", "value", "value"))
        if kind == "row":
            connection.execute("DELETE FROM log WHERE position = ?", (position,))
        elif kind == "batch" and end != ends[-1]:
            first = max([one for one in ends if one < position], default=0) + 1
            connection.execute("DELETE FROM log WHERE position BETWEEN ? AND ?", (first, end))
        else:
            column = chance.choice(COLUMNS)
            ((value,),) = connection.execute(f"SELECT {column} FROM log WHERE position = ?", (position,))
            new = {int: lambda: value + 1, str: lambda: value[:-1] + " }", bytes: lambda: value[::-1]}.get(
                type(value), lambda: b"x" * 32 if column == "chain" else "{}" if column == "payload" else 1
            )()
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(f"UPDATE log SET {column} = ? WHERE position = ?", (new, position))
        connection.commit()
        return int(end)
