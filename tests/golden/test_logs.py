"""Logs that earlier versions wrote are read as they were then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.golden.answers import ANSWERS, plain, questions
from tests.golden.histories import FOLDER

LOGS = sorted(path for path in FOLDER.iterdir() if path.is_dir())


@pytest.mark.parametrize("log", LOGS, ids=lambda path: path.name)
def test_a_golden_log_answers_as_it_did(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / log.name  # a reader may leave checkpoints beside a log
    shutil.copytree(log, folder)
    expected: dict[str, Any] = json.loads((log / ANSWERS).read_text())
    given = {name: plain(answer) for name, answer in questions(folder)}
    assert expected.keys() <= given.keys()
    for name, answer in expected.items():
        told = without_later_fields(given[name], answer) if name == "log" else given[name]
        assert without_places(told) == without_places(answer), name


def without_later_fields(events: list[dict[str, Any]], then: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out the fields that a kind of event has got since: they have their defaults in a log of then."""
    return [
        event | {"data": {key: value for key, value in event["data"].items() if key in old["data"]}}
        for event, old in zip(events, then, strict=True)
    ]


def without_places(answer: Any) -> Any:
    """Leave out where the log lies."""
    if isinstance(answer, dict):
        return {key: without_places(value) for key, value in answer.items() if key != "url"}
    return [without_places(value) for value in answer] if isinstance(answer, list) else answer
