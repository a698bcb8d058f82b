"""What travels into a pod and back: inputs, results, and what may not be asked for in there."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask import CallerError, FileRepository, LogBlobRepository, LogMetadataRepository
from datatask.adapters.execute.functions import detached
from datatask.adapters.execute.kube import worker
from datatask.engine.run_context import RunContext, ValueRef, current_run
from datatask.schema.events import ErrorInfo
from datatask.schema.messages import Write

IDENTITY = "f" * 32 + ".1.7"


class Values:
    """An engine's binding with these values of job `j`."""

    def __init__(self, values: dict[str, ValueRef], folder: Path) -> None:
        self._values = values
        self.blobs = detached.AwayBlobs(lambda: folder)

    def position(self, repository_id: str) -> int:
        return 7

    def contains(self, repository_id: str, job: str) -> bool:
        return job == "j" and repository_id in self._values

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        return self._values.get(repository_id)


def told(
    capfd: pytest.CaptureFixture[str], message: detached.Message, identity: str = IDENTITY
) -> tuple[int, bytes]:
    """Return the exit code, and what a worker wrote."""
    code = worker._told(message, identity)
    return code, capfd.readouterr().out.encode()


async def test_inputs_travel_and_are_what_they_were(tmp_path: Path) -> None:
    """Documents and bytes; a job that is not there is not there."""
    document, blob, absent = LogMetadataRepository("d"), LogBlobRepository("b"), LogMetadataRepository("n")
    binding: Any = Values({}, tmp_path)
    digest, size = binding.blobs.put_bytes(b"\x00\xff")
    no_value = msgspec.Raw(b"")
    binding._values = {
        "d": ValueRef(msgspec.Raw(b'{"a":1}'), None, None, 3),
        "b": ValueRef(no_value, digest, size, 4),
    }
    for leaf in (document, blob, absent):
        leaf.bind(leaf.name or "", binding)
    text = await worker.inputs_of({"x": document, "y": blob, "z": absent}, "j", "t[j]")
    inputs = worker.read_inputs(text)
    there = detached.AwayBinding(inputs, "j", detached.AwayBlobs(lambda: tmp_path), "a pod")
    value = await there.value("d", "j")
    assert value is not None
    assert (bytes(value.value), value.position) == (b'{"a":1}', 3)
    value = await there.value("b", "j")
    assert value is not None
    assert there.blobs.path(value.digest or "").read_bytes() == b"\x00\xff"
    assert (there.contains("d", "j"), there.contains("n", "j"), await there.value("n", "j")) == (
        True,
        False,
        None,
    )
    for ask in (
        lambda: there.contains("d", "other"),
        lambda: there.members("d"),
        lambda: there.contains("out", "j"),
    ):
        with pytest.raises(CallerError, match="a pod has the values of its own job, j"):
            ask()
    for change in (there.put("d", Write(repository="d", job="j")), there.delete("d", "j")):
        with pytest.raises(CallerError, match="within its run only"):
            await change


async def test_what_a_function_has_read_goes_with_what_it_writes(tmp_path: Path) -> None:
    """The engine learns how far the log was; files are compared in the pod, which may see them otherwise."""
    document, absent = LogMetadataRepository("d"), LogMetadataRepository("n")
    files = FileRepository(tmp_path / "files")
    await files.validate()
    (tmp_path / "files" / "j").write_text("before")
    engine: Any = Values({"d": ValueRef(msgspec.Raw(b'{"a":1}'), None, None, 3)}, tmp_path)
    for leaf in (document, absent):
        leaf.bind(leaf.name or "", engine)
    inputs = worker.read_inputs(await worker.inputs_of({"x": document, "z": absent}, "j", "t[j]"))
    there = detached.AwayBinding(inputs, "j", detached.AwayBlobs(lambda: tmp_path), "a pod")
    bound: tuple[tuple[Any, str], ...] = ((document, "d"), (absent, "n"), (files, "f"))
    for repository, name in bound:
        repository.unbind()
        repository.bind(name, there)
    context = RunContext(9, "t", "j")
    context.defers = False
    token = current_run.set(context)
    try:
        await document.dump("j", {"a": (await document.info("j"))["a"] + 1})
        assert not await absent.contains("j")
        await absent.dump("j", {})
        async with files.open("j", "r") as stream:
            old = await stream.read()
        async with files.open("j", "w") as stream:
            await stream.write(old + "after")
    finally:
        current_run.reset(token)
    assert (tmp_path / "files" / "j").read_text() == "beforeafter"
    message = detached.Message(
        writes=tuple(detached._travelling(one, there.blobs) for one in context.writes())
    )
    written = {one.repository: one for one in detached.writes_of(message)}
    assert (written["d"].over, written["n"].over) == (7, 7)
    assert written["f"].version is not None


async def test_inputs_that_are_too_large_are_refused(tmp_path: Path) -> None:
    """With the remedy."""
    blob = LogBlobRepository("b")
    binding: Any = Values({}, tmp_path)
    digest, size = binding.blobs.put_bytes(os.urandom(200_000))
    binding._values = {"b": ValueRef(msgspec.Raw(b""), digest, size, 4)}
    blob.bind("b", binding)
    with pytest.raises(CallerError, match=r"98304 can travel to a pod; keep large inputs in a store"):
        await worker.inputs_of({"b": blob}, "j", "t[j]")


def test_results_travel_through_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever was printed before; many lines where it is long; the frame is known to the byte."""
    written = detached.Written("out", "j", data=os.urandom(20_000))
    message = detached.Message(
        started_at=1, ended_at=2, writes=(written, detached.Written("d", "j", value='{"a":1}'))
    )
    code, trailer = told(capfd, message)
    assert (code, trailer.count(b"\n") > 6) == (0, True)
    found = worker.find_result(b"printed\nno newline at its end" + trailer, IDENTITY)
    assert found == (message, len(trailer))
    put, document = detached.writes_of(message)
    assert (put.data, put.size, bytes(document.value)) == (written.data, 20_000, b'{"a":1}')
    ending = detached.ending_of(message)
    assert (ending.outcome, ending.started_at, ending.ended_at) == ("succeeded", 1, 2)


def test_a_result_that_is_not_whole_or_not_this_runs_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    """Cut, changed, of another run."""
    error = ErrorInfo(type="ValueError", message="as told", traceback="Traceback …\n")
    code, trailer = told(capfd, detached.Message(error))
    assert code == 1
    assert worker.find_result(trailer, IDENTITY) is not None
    assert worker.find_result(trailer, IDENTITY + "0") is None
    assert worker.find_result(trailer[:-20], IDENTITY) is None
    assert worker.find_result(trailer.replace(b"eJ", b"eK", 1), IDENTITY) is None
    assert worker.find_result(b"", IDENTITY) is None


def test_a_result_that_is_too_large_is_a_failure_that_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is recorded."""
    message = detached.Message(writes=(detached.Written("out", "j", data=os.urandom(900_000)),))
    code, trailer = told(capfd, message)
    found = worker.find_result(trailer, IDENTITY)
    assert found is not None
    assert (code, found[0].writes, found[0].error.type if found[0].error else "") == (1, (), "TooLarge")


def test_a_pod_knows_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment that the engine gave it."""
    assert not worker.is_worker("t", "j")
    for name, value in (("INPUTS", base64.b64encode(b"x").decode()), ("TASK", "t"), ("JOB", "j")):
        monkeypatch.setenv(f"DATATASK_{name}", value)
    assert worker.is_worker("t", "j")
    assert not worker.is_worker("t", "other")


def test_blobs_of_a_run_are_files_by_their_digest(tmp_path: Path) -> None:
    """Put, adopted, copied."""
    blobs = detached.AwayBlobs(lambda: tmp_path)
    path = blobs.new()
    path.write_bytes(b"abc")
    digest, size = blobs.adopt(path)
    assert (size, blobs.path(digest).read_bytes()) == (3, b"abc")
    (tmp_path / "other").write_bytes(b"abc")
    assert blobs.put_file(tmp_path / "other") == (digest, 3)
    assert blobs.new() != blobs.new()
