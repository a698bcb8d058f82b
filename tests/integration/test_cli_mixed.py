"""All verbs that change something, fifty at once, while `run` opens and closes the log: each is done whole or refused in one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from datatask import History
from tests.integration.cli_kit import PIPELINE, Project

AT_ONCE = 50
ALONE = PIPELINE.replace("[double, shout]", "[double]")
"""The pipeline without its second task, whose members are lost with it."""
LOSSES = (
    "--accept-loss",
    "blobs",
    "--accept-loss",
    "shouted",
    "--accept-loss",
    "files",
    "--accept-loss",
    "shout",
)


def verb(number: int) -> list[str]:
    """Return the words of one of them."""
    job = f"j{number}"
    kinds = [
        ["inject", "double.numbers", job],
        ["inject", "double.numbers", job],
        ["retry", "double", "a"],
        ["cancel", "double", "b"],
        ["rm", "double.numbers", f"gone{number}"],
        ["pause", "shout"],
        ["resume", "shout"],
        ["launch", "double", "c"],
        ["run", "--timeout", "100"],
        ["-p", "alone.py", "run", *LOSSES, "--timeout", "100"],
    ]
    return kinds[number % len(kinds)]


@pytest.mark.slow
def test_fifty_at_once_are_each_done_or_refused(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "alone.py").write_text(ALONE)
    project.put(a=1, b=2, c=3, **{f"gone{number}": number for number in range(AT_ONCE)})
    project.ok("run")
    words = [verb(number) for number in range(AT_ONCE)]
    started = []
    for one in words:
        with subprocess.Popen(["echo", '{"n": 1}'], stdout=subprocess.PIPE) as given:
            started.append(project.spawn(*one, stdin=given.stdout))
    ended = [
        (one, process.communicate(timeout=400), process.returncode)
        for one, process in zip(words, started, strict=True)
    ]
    for one, (_, err), code in ended:
        told = err.decode()
        assert "Traceback" not in told, (one, told)
        assert "internal error" not in told, (one, told)
        if one[0] == "run" and code == 6:
            continue  # what it waits for was paused or removed by another command
        assert code in (0, 2, 3, 4, 5), (one, code, told)
        if code:
            assert told.splitlines()[-1].startswith("datatask: "), (one, told)
    put = {one[2] for one, _, code in ended if one[0] == "inject" and not code}
    removed = {one[2] for one, _, code in ended if one[0] == "rm" and not code}
    assert len(put) == len(words) // 5
    assert len(removed) == len(words) // 10
    with History(project.log) as history:
        members = set(history.state().members("numbers"))
    assert put <= members
    assert not removed & members
    project.ok("resume", "shout")
    project.ok("run")
    found = project.ok("status", "--json").json
    assert found["tasks"]["double"]["ready"] == found["tasks"]["double"]["live"] == 0, json.dumps(found)
    project.ok("verify")
