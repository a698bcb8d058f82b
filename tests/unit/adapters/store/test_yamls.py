"""Repositories of YAML files: documents come back as they were, and what is wrong is named."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.yamls import YamlMetadataFileRepository
from datatask.schema.errors import CallerError


async def test_yaml_documents_come_back_as_they_were(tmp_path: Path) -> None:
    repository = YamlMetadataFileRepository(tmp_path)
    document: dict[str, Any] = {
        "z": 1,
        "a": [1.5, None, True, "é"],
        "at": dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        "bytes": b"\x00\xff",
    }
    await repository.dump("foo", document)
    assert await repository.info("foo") == document
    assert list(await repository.info("foo")) == list(document)
    assert await repository.info_all() == {"foo": document}
    assert (repository.is_blob(), repository.is_metadata()) == (True, True)
    async with repository.open("foo", "w") as stream:
        await stream.write("x: 1\n")
    assert await repository.info("foo") == {"x": 1}
    assert (tmp_path / "foo.yaml").exists()
    with pytest.raises(FileNotFoundError):
        await repository.info("absent")


async def test_bad_yaml_is_named_with_file_and_line(tmp_path: Path) -> None:
    repository = YamlMetadataFileRepository(filename=tmp_path)
    for name, text in {
        "syntax": "a: 1\nb: [1,\n",
        "tag": "!!python/object:os.system x",
        "char": "a: \x01",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(CallerError, match="not YAML") as told:
            await repository.info(name)
        assert name in told.value.where
    with pytest.raises(CallerError, match="line 3"):
        await repository.info("syntax")


async def test_what_yaml_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    repository = YamlMetadataFileRepository(tmp_path)
    with pytest.raises(CallerError, match="cannot be written as YAML"):
        await repository.dump("foo", {"x": object()})
    assert os.listdir(tmp_path) == []
