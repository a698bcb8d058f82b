"""Which executors name a Dask cluster, and which."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from datatask import ExecutorTask, InvalidValueError, LogMetadataRepository
from datatask.adapters.execute.functions.dask.places import is_dask, place_of


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("dask://host:8786", "tcp://host:8786"),
        ("dask://10.0.0.1:80/", "tcp://10.0.0.1:80"),
        ("dask://[::1]:8786", "tcp://[::1]:8786"),
    ],
)
def test_an_address_is_that_of_a_scheduler(url: str, address: str) -> None:
    assert is_dask(url)
    assert place_of(url).address == address


@pytest.mark.parametrize("other", ["tcp://host:1", 7, None, ThreadPoolExecutor, lambda: None])
def test_anything_else_is_no_dask_cluster(other: object) -> None:
    assert not is_dask(other)


@pytest.mark.parametrize("resources", [{"GPU": "1"}, {1: 1}, ["GPU"]])
def test_resources_are_amounts_by_name(resources: Any) -> None:
    with pytest.raises(InvalidValueError, match="resources="):
        ExecutorTask("t", "dask://h:1", LogMetadataRepository("d"), resources=resources)


def test_only_dask_has_resources() -> None:
    with pytest.raises(InvalidValueError, match="only Dask's workers"):
        ExecutorTask("t", ThreadPoolExecutor, LogMetadataRepository("d"), resources={"GPU": 1})
