"""What is written for people belongs to whom it did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datatask.adapters.history.export.files import write_marked, written
from datatask.adapters.store.staged import belonging


@pytest.mark.machine("root")
def test_what_people_have_written_for_them_belongs_to_whom_it_did(tmp_path: Path) -> None:
    os.chown(tmp_path, -1, 4242)
    tmp_path.chmod(0o2775)
    path = tmp_path / "report"
    write_marked(path, "# 1", mark="#", what="report")
    (tmp_path / "made").touch()
    assert belonging(path) == belonging(tmp_path / "made")
    os.chown(path, -1, 4243)
    path.chmod(0o604)
    before = belonging(path)
    write_marked(path, "# 2", mark="#", what="report")
    with written(path) as file:
        file.write(b"3")
    assert (belonging(path), path.read_text()) == (before, "3")
