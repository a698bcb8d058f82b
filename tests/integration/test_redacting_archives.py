"""What was archived is redacted in the archive too."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import datatask
from datatask.adapters.history.maintenance import redact
from datatask.adapters.log.locate import archives_path
from datatask.schema.codec import payload_digest
from tests.integration.cli_kit import Project
from tests.integration.redacting_kit import PIPELINE, SECRET, WHO, copied, found_in, inject, leaked


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A log in which a secret stands in a value, its copy, a blob, an error, and a reason."""
    return leaked(tmp_path_factory.mktemp("original"))


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    return copied(original, tmp_path)


@pytest.fixture
def archived(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The secret is in an archive, and, where it is of a present value, also in what was carried over the cut."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.folder / "cache"))
    project.ok("log-archive", "--before", "-0s")
    return project


def unpacked(project: Project) -> bytes:
    """Return what stands in the archives."""
    return b"".join(gzip.decompress(path.read_bytes()) for path in archives_path(project.log).iterdir())


def test_what_was_archived_is_redacted_in_the_archive_too(archived: Project) -> None:
    project = archived
    positions = [
        event["position"]
        for event in map(json.loads, project.ok("log", "--json", "--with-archives").lines)
        if SECRET in json.dumps(event["data"]) or (event["kind"], event["job"]) == ("ValuePut", "big")
    ]
    status = project.ok("status", "--json", "--at", "20", "--with-archives").json["tasks"]
    assert SECRET.encode() in unpacked(project)
    shape = project.ok("redact", *map(str, positions), "--reason", "a leak", "--json").json
    assert (shape["count"], len(shape["archives"]), shape["elsewhere"]) == (len(positions), 1, [])
    assert len(shape["blobs"]) == 1
    assert SECRET.encode() not in unpacked(project)
    assert found_in(project.folder) == []
    found = datatask.verify(project.log)
    assert found.ok, found
    assert project.ok("--with-archives", "verify").code == 0
    assert project.ok("status", "--json", "--at", "20", "--with-archives").json["tasks"] == status
    assert "was redacted" in project.call("cat", "copy.words", "bad").err
    again = project.ok("redact", *map(str, positions), "--json").json
    assert (again["count"], again["before"], again["archives"]) == (0, positions, [])
    inject(project, later={"word": "fine"})
    project.call("run")
    project.ok("log-archive", "--before", "-0s")
    assert datatask.verify(project.log).ok, "what is carried on is known to be redacted"
    project.ok("--with-archives", "verify")
    assert "1-" in project.ok("verify").out


def test_an_archive_that_is_elsewhere_is_told_of_and_redacted_when_it_is_back(archived: Project) -> None:
    project = archived
    asked = "SELECT position FROM values_now WHERE repository = 'words' AND job = 'bad'"
    ((position,),) = project.ok("query", asked, "--json").json["rows"]
    folder = archives_path(project.log)
    folder.rename(project.folder / "elsewhere")
    result = project.ok("redact", str(position))
    assert f"position {position} also lives in an archive that is not here" in result.err
    assert datatask.verify(project.log).ok
    here = {row[0] for row in project.ok("query", "SELECT position FROM events", "--json").json["rows"]}
    gone = min(set(range(1, max(here))) - here)
    refused = project.call("redact", str(gone))
    assert (refused.code, "in an archive that is not here" in refused.err) == (2, True), refused
    (project.folder / "elsewhere").rename(folder)
    with project.engine():
        refused = project.call("redact", str(position))
        assert (refused.code, "stop the engine" in refused.err) == (4, True), refused
    assert project.ok("redact", str(position), "--json").json["archives"]
    assert datatask.verify(project.log).ok


def test_what_the_state_at_the_cut_tells_stays_until_the_next_one(tmp_path: Path) -> None:
    """A filter that failed right before the cut: what it said is in the state that the log stands on."""
    text = PIPELINE.replace(
        'copy.link("words", words, is_input=True)',
        "async def picky(job):\n"
        "    if not __import__('os').path.exists('fine'):\n"
        f"        raise ValueError('{SECRET}')\n"
        "    return True\n\n"
        "copy.link('words', datatask.MapRepository(words, lambda value: value, filt=picky, name='some'), is_input=True)",
    )
    project = Project(tmp_path, text)
    project.ok("inject", "words", "good", "--reason", "first", stdin=b"word: plain")
    project.call("run", "--timeout", "1")
    asked = ("log", "--kind", "Evaluated", "--last", "1", "--json")
    position = str(json.loads(project.ok(*asked).out)["position"])
    project.ok("log-archive", "--before", position)
    refused = project.call("redact", position)
    assert (refused.code, "archive again" in refused.err) == (2, True), refused
    (tmp_path / "fine").touch()
    project.ok("inject", "words", "good", stdin=b"word: anew")
    project.call("run", "--timeout", "20")
    project.ok("log-archive", "--before", "-0s")
    project.ok("redact", position)
    assert datatask.verify(project.log).ok


@pytest.mark.parametrize("how", ["said", "left", "told twice"])
def test_a_payload_taken_out_of_an_archive_without_saying_so_is_found(archived: Project, how: str) -> None:
    """Also where the archive is whole in itself, and the event that tells of its file was archived since."""
    project = archived
    (first,) = archives_path(project.log).iterdir()
    if how != "said":
        positions = [
            row[0]
            for row in project.ok(
                "query", "SELECT position FROM values_now WHERE job = 'bad'", "--json"
            ).json["rows"]
        ]
        project.ok("redact", *map(str, positions))
    project.call("run", "--failures-ok")
    project.ok("log-archive", "--before", "-0s")
    lines = [json.loads(line) for line in gzip.decompress(first.read_bytes()).splitlines()]
    at = next(
        n
        for n, row in enumerate(lines[1:-1], 1)
        if row[2] == "ValuePut" and (row[13] is None) == (how != "left")
    )
    row = lines[at]
    if how == "left":
        row[11] = row[11].replace("$redacted", "$forgotten")
    else:
        row[13] = payload_digest(row[11].encode(), row[12])
        row[11], row[12] = '{"value":1}', None
    body = b"".join(msgspec.json.encode(line) + b"\n" for line in lines[:-1])
    tail = msgspec.json.encode({"rows": len(lines) - 2, "sha256": hashlib.sha256(body).hexdigest()}) + b"\n"
    first.write_bytes(gzip.compress(body + tail))
    found = datatask.verify(project.log)
    assert [one.position for one in found.divergences][-1:] == [row[0]] or first.name in str(
        found.divergences
    ), found
    assert not found.ok


@pytest.mark.parametrize("step", ["committed", "archives", "settled"])
def test_killed_at_any_step_what_was_archived_is_redacted_when_it_is_repeated(
    archived: Project, step: str
) -> None:
    project = archived
    events = [json.loads(line) for line in project.ok("log", "--json", "--with-archives").lines]
    positions = [
        event["position"]
        for event in events
        if SECRET in json.dumps(event["data"]) or (event["kind"], event["job"]) == ("ValuePut", "big")
    ]
    code = (
        "import os, sys\n"
        "from datatask.adapters.history.maintenance import redact\n"
        f"redact({str(project.log)!r}, {positions}, actor='a@b: c', step=lambda s: s != {step!r} or os._exit(9))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 9, ended
    assert datatask.verify(project.log).ok
    assert set(redact(project.log, positions, actor=WHO).before) == set(positions)
    assert SECRET.encode() not in unpacked(project)
    assert found_in(project.log.parent) == []
    assert datatask.verify(project.log).ok
