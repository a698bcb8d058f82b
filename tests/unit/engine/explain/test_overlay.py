"""An overlay shows what is below until it is changed, and changes nothing below."""

from __future__ import annotations

import dataclasses
from array import array
from collections import deque
from typing import Any

import pytest

from datatask.engine.core.tasks import FifoQueue
from datatask.engine.explain.overlay import Overlay, OverlayDict, OverlayList, OverlayQueue
from tests.unit.core_kit import Desk, pipeline, task


def test_an_overlay_shares_nothing_that_folding_changes() -> None:
    """A new container in the state, a task or a leaf needs its line in `Overlay`; what-ifs make no requests."""
    desk = Desk(pipeline(task("t0", "a"), task("t1", "a")))
    desk.put("a", "x")
    overlay = Overlay(desk.state)
    assert _shared(vars(desk.state), vars(overlay.state)) == {"requests"}
    for own, made in ((desk.state.tasks, overlay.state.tasks), (desk.state.leaves, overlay.state.leaves)):
        for name, part in own.items():
            fields = [field.name for field in dataclasses.fields(part)]
            both = ({field: getattr(one, field) for field in fields} for one in (part, made[name]))
            assert _shared(*both) == set()


def _shared(own: dict[str, Any], made: dict[str, Any]) -> set[str]:
    kinds = (dict, list, set, deque, array)
    return {name for name, value in own.items() if isinstance(value, kinds) and made[name] is value}


def test_overlays_show_what_is_below_until_it_is_changed() -> None:
    """Containers over others: what is deleted is gone, what is put comes back, and a reset forgets it all."""
    below = {"a": [1], "b": [2]}
    over = OverlayDict(below, list)
    over["a"].append(5)
    del over["b"]
    over["c"] = [3]
    assert (dict(over.items()), len(over), "b" in over) == ({"a": [1, 5], "c": [3]}, 2, False)
    with pytest.raises(KeyError):
        del over["b"]
    over.setdefault("b", [9])
    assert (over.pop("b"), over.pop("b", None), over.get("b", 0)) == ([9], None, 0)
    over.reset()
    assert (dict(over.items()), below) == ({"a": [1], "b": [2]}, {"a": [1], "b": [2]})
    names = OverlayList(["x"])
    names.append("y")
    names[0], names[1] = "z", "w"
    assert (len(names), names[0], names[1]) == (2, "z", "w")
    names.reset()
    assert (len(names), names[0]) == (1, "x")
    line = FifoQueue()
    for job in (1, 2, 3):
        line.push(job, 0.0, job)
    queue = OverlayQueue(line)
    assert queue.discard(2)
    assert not queue.discard(2)
    queue.push(2, 5.0, 2)
    assert [entry[2] for entry in queue.entries()] == [2, 1, 3]
    assert (len(queue), queue.priority(2), queue.position(3)) == (3, 5.0, 3)
