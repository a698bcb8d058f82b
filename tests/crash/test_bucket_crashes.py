"""Engines killed while they write to a bucket: nothing is lost or doubled, and no stray object or part is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datatask import History
from tests.crash.bucket_shop import content
from tests.crash.shop import inputs, lay_out
from tests.crash.test_crashes import told
from tests.effort import by_effort
from tests.object_stores import Service

pytestmark = pytest.mark.long

KILLS, JOBS = by_effort(quick=(4, 90), thorough=(200, 800), soak=(200, 800))


@pytest.mark.scaled
def test_kills_of_writing_engines_lose_and_double_nothing(
    object_store: Callable[[str], Service], tmp_path: Path
) -> None:
    server = object_store("moto")
    bucket, client = server.bucket(), server.client()
    lay_out(tmp_path, JOBS)
    (tmp_path / "bucket").write_text(f"{server.endpoint} {bucket}")
    shop = "make=__import__('tests.crash.bucket_shop').crash.bucket_shop.bucket_shop"
    assert told(f"kill_often(Path({str(tmp_path)!r}), {KILLS}, 1, (0.1, 0.8), {shop})") == "[]"
    told(f"try_again(Path({str(tmp_path)!r}), {shop})")  # what died with its engine too often
    jobs = range(inputs(tmp_path))
    assert sorted(server.keys(bucket)) == sorted(f"{part}/j{n}{end}" for n in jobs for part, end in PARTS)
    for number in jobs:
        held = client.get_object(Bucket=bucket, Key=f"copied/j{number}")["Body"].read()
        assert held == content(number)
        told_of = client.get_object(Bucket=bucket, Key=f"told/j{number}.yaml")["Body"].read()
        assert told_of == b"size: %d\n" % len(held)
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    with History(tmp_path / "log.db") as history:
        ended = [(run["task"], run["job"]) for run in history.runs(state="succeeded")]
        assert not history.state().open_runs
    assert sorted(ended) == sorted((task, f"j{n}") for task in ("copy", "tell") for n in jobs)


PARTS = (("copied", ""), ("told", ".yaml"))
