"""Whether a pipeline file names its log is read off the file, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask.adapters.cli.loading import names_log


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("pipeline = Pipeline([], Session(), log='x.db')", True),
        ("pipeline = datatask.Pipeline(\n    [], log\n=place())", True),
        ("def make():\n    return dt.Pipeline([], **options)", True),
        ("pipeline = Pipeline([], Session(), [])  # log='x.db'", False),
        ("other(log='x.db')\npipeline = Pipeline([2**3])", False),
        ("pipeline = Pipeline([], log='x.db'", False),
        ("log = '\0'", False),
    ],
)
def test_names_log(tmp_path: Path, source: str, names: bool) -> None:
    file = tmp_path / "pipeline.py"
    file.write_text(source)
    assert names_log(file) is names


def test_no_file_names_none(tmp_path: Path) -> None:
    assert not names_log(tmp_path / "pipeline.py")
    assert not names_log(tmp_path)
