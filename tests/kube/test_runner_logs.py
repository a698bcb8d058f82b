"""The pod runner keeps logs: whole, of all containers, through cuts, deletions and too few streams."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from aiohttp import web

from datatask.adapters.execute.kube import logs
from datatask.adapters.execute.kube.manifests import Result
from datatask.adapters.execute.kube.runner import KubeRunner
from datatask.schema.events import Ending, ErrorInfo
from datatask.schema.messages import Ended, Noticed, RunSpec, Started, Write
from tests.kube.api.faults import Fault
from tests.kube.runner_kit import TEMPLATE, make_task, ready, running, text
from tests.kube.scripted import scripted, terminated
from tests.run_kit import opened as opened_runner
from tests.run_kit import until


async def test_a_log_is_kept_although_its_pod_is_deleted_right_after_its_end() -> None:
    """Also where it had not been read at all until then."""
    async with ready() as (api, runner, facts):
        held = asyncio.Event()

        async def late(request: web.Request, what: str) -> None:
            if what == "get pods/log":
                await held.wait()

        api.rules.append(late)
        name = await running(api, runner, facts, 1)
        api.say(name, b"all of it")
        api.end(name, at="2026-01-01T00:00:00Z")
        api.delete(name, 0)
        await asyncio.sleep(0.1)
        held.set()
        ended = await facts.end_of(1)
    assert (ended.ending.outcome, text(ended)) == ("succeeded", b"all of it\n")


async def test_a_log_that_is_cut_goes_on_without_gaps_or_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end in the middle of lines, over and over."""
    monkeypatch.setattr(logs, "PAUSE_SECONDS", 0.1)
    async with ready() as (api, runner, facts):
        cuts = [Fault("get", "pods/log", most_bytes=150 * at) for at in range(1, 7)]
        api.faults.extend(cuts)
        name = await running(api, runner, facts, 1)
        for index in range(40):
            api.say(name, b"line %d" % index)
            await asyncio.sleep(0.01)
        await until(lambda: sum(cut.seen for cut in cuts) >= 4, 15)
        api.end(name)
        ended = await facts.end_of(1)
    assert text(ended) == b"".join(b"line %d\n" % index for index in range(40))


async def test_the_logs_of_all_containers_are_kept_under_their_names() -> None:
    """Init containers first."""
    template = (
        TEMPLATE + "    - name: side\n      image: x\n      resources: {requests: {cpu: 1, memory: 1}}\n"
    )
    async with ready(template) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.say(name, b"a\nb", "main")
        api.say(name, b"c", "side")
        api.end(name)
        ended = await facts.end_of(1)
    assert text(ended) == b"==> main <==\na\nb\n==> side <==\nc\n"


async def test_a_log_that_cannot_be_had_does_not_hold_up_the_end_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is missing is said, and such a run is no success: it is run again."""
    monkeypatch.setattr(logs, "LATE_SECONDS", 0.3)
    async with ready() as (api, runner, facts):
        refused = Fault("get", "pods/log", times=None, code=500, message="dial tcp: connection refused")
        api.faults.append(refused)
        name = await running(api, runner, facts, 1)
        api.end(name)
        ended = await facts.end_of(1)
    told = "the log of main is not complete: dial tcp: connection refused"
    assert (ended.ending.outcome, ended.ending.error and ended.ending.error.message) == ("lost", told)
    assert facts.of(1, Noticed)[-1].message.endswith(f": {told}")
    assert isinstance(ended.writes[0], Write)


async def test_more_pods_than_streams_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All logs are whole."""
    monkeypatch.setattr(logs, "STREAMS", 2)
    monkeypatch.setattr(logs, "TURN_SECONDS", 0.1)
    async with ready() as (api, runner, facts):
        names = {run: await running(api, runner, facts, run) for run in range(1, 7)}
        for index in range(5):
            for run, name in names.items():
                api.say(name, b"%d of %d" % (index, run))
            await asyncio.sleep(0.1)
        for name in names.values():
            api.end(name)
        for run in names:
            whole = b"".join(b"%d of %d\n" % (index, run) for index in range(5))
            assert text(await facts.end_of(run)) == whole


SYMLINKS = 'failed to try resolving symlinks in path "/var/log/pods/rec_x07/main/0.log": lstat: no such file or directory'


@pytest.mark.parametrize("words", ["", SYMLINKS])
async def test_the_kubelets_own_words_are_no_output(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come with status 200 in place of a log that is gone: a success without its log is none, and says why."""
    monkeypatch.setattr(logs, "GONE_SECONDS", 0.3)
    async with ready() as (api, runner, facts):
        refused = Fault("get", "pods/log", times=None, code=500, message="dial tcp: connection refused")
        api.faults.append(refused)  # nothing is read before it is gone
        name = await running(api, runner, facts, 1)
        api.say(name, b"said and lost")
        api.end(name)
        api.lose_log(name, words)
        api.faults.clear()
        ended = await facts.end_of(1)
    assert (ended.ending.outcome, text(ended)) == ("lost", b"")
    assert "the log of main is not complete: " + (words or "unable to retrieve") in str(ended.ending.error)


async def test_a_log_that_was_followed_to_its_end_is_whole_although_it_is_gone_then() -> None:
    """So is it with most pods that are deleted while they run; the last line may lack its newline."""
    async with ready(stopped_pods="accept") as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.say(name, b"hello")
        await until(lambda: api.counts["get pods/log"])
        api.kept(api.pods[name], "main").write(b"bye")
        api.delete(name, 5)
        followed = api.counts["get pods/log"]
        api.kept(api.pods[name], "main").end()
        await until(lambda: api.counts["get pods/log"] > followed)
        api.lose_log(name)
        await asyncio.sleep(0.7)
        api.end(name)
        ended = await facts.end_of(1)
    assert (ended.ending.outcome, text(ended)) == ("succeeded", b"hello\nbye")


@pytest.mark.parametrize("seen", [True, False])
async def test_the_logs_of_all_attempts_are_kept(seen: bool) -> None:
    """In their order; what was said last before a restart is read as the previous attempt's."""
    async with ready() as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        for attempt in (1, 2):
            api.say(name, b"attempt %d" % attempt)
            api.restart(name, 42, seen=seen)
            reads = api.counts["get pods/log"]
            await until(lambda reads=reads: api.counts["get pods/log"] > reads + 1)
            await asyncio.sleep(0.2)
        api.say(name, b"attempt 3")
        api.end(name)
        ended = await facts.end_of(1)
        assert len(facts.of(1, Started)) == 1
    heads = [b"==> main, attempt %d <==\nattempt %d\n" % (number, number) for number in (1, 2, 3)]
    assert (ended.ending.outcome, text(ended)) == ("succeeded", b"".join(heads))


async def test_a_container_that_ended_and_starts_again_is_not_the_end() -> None:
    """Not with code 0 either; nor does a pod that is deleted then count as one that had ended by itself."""
    template = TEMPLATE.replace("name: main", "name: main\n      restartPolicy: Always")
    async with ready(template) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        api.change(name, "Running", terminated(0))
        await asyncio.sleep(0.2)
        assert facts.of(1, Ended) == []
        api.delete(name, 5)
        api.end(name)
        assert (await facts.end_of(1)).ending.outcome == "lost"


@pytest.mark.parametrize(("last", "wanted"), [("result two", "two"), ("nothing", "NoResult")])
async def test_a_functions_result_is_that_of_the_last_attempt(last: str, wanted: str) -> None:
    """One that an earlier attempt wrote is taken off its log, and counts for nothing."""

    def result(_spec: RunSpec, end: bytes) -> tuple[Result, int] | None:
        _before, found, word = end.rpartition(b"result ")
        error = ErrorInfo(type=word.decode().strip(), message="")
        return (Result(Ending(outcome="failed", error=error)), len(found + word)) if found else None

    async with scripted() as api:
        task = make_task(api)
        runner = KubeRunner(task.podman.shared, dataclasses.replace(task.recipe(), result=result))
        async with opened_runner(runner) as facts:
            name = await running(api, runner, facts, 1)
            api.say(name, b"result one")
            api.restart(name, 1)
            api.say(name, last.encode())
            api.end(name)
            ended = await facts.end_of(1)
    assert ended.ending.error is not None
    assert (ended.ending.outcome, ended.ending.error.type) == ("failed", wanted)
    assert b"result" not in (text(ended) or b"")
