"""How pods end, by every recording of a real cluster; and logs in parts, with cuts anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.execute.kube.lines import IN_MEMORY_BYTES, Lines
from datatask.adapters.execute.kube.pods import Pod, decode_event, decode_pod
from datatask.adapters.execute.kube.verdicts import (
    containers_over,
    deletion_asked_at,
    is_running,
    times,
    trouble,
    verdict,
)

RECORDINGS = Path(__file__).parents[1] / "kube" / "recordings"


def recorded(name: str) -> Pod:
    """Return the pod of an answer."""
    return msgspec.convert(json.loads((RECORDINGS / f"{name}.json").read_text())["response"]["json"], Pod)


def life() -> list[tuple[str, Pod]]:
    """Return the events of the recorded watch."""
    events = json.loads((RECORDINGS / "watch-whole-life-of-pods.json").read_text())["response"]["events"]
    return [(event["type"], msgspec.convert(event["object"], Pod)) for event in events]


def pod(phase: str, *states: dict[str, Any], spec: Any = None, meta: Any = None, **status: Any) -> Pod:
    """Return a pod whose containers c0, c1… have these states."""
    told = [{"name": f"c{index}", "state": state} for index, state in enumerate(states)]
    whole = {
        "metadata": meta or {},
        "spec": spec or {},
        "status": {"phase": phase, "containerStatuses": told, **status},
    }
    return msgspec.convert(whole, Pod)


def over(code: int, reason: str = "Error", at: str = "2026-11-23T02:00:10Z", **more: Any) -> dict[str, Any]:
    """Return the state of a container that is over."""
    return {
        "terminated": {
            "exitCode": code,
            "reason": reason,
            "startedAt": "2026-11-23T02:00:00Z",
            "finishedAt": at,
            **more,
        }
    }


RUNNING = {"running": {"startedAt": "2026-11-23T02:00:00Z"}}


@pytest.mark.parametrize(
    ("recording", "outcome", "code", "reason", "text"),
    [
        ("pod-get-succeeded", "succeeded", 0, "Completed", ""),
        ("pod-status-exit3", "failed", 3, "ExitCode", "exit code 3"),
        ("pod-status-oomkilled", "failed", 137, "OOMKilled", "out of memory (OOMKilled, exit code 137"),
        (
            "pod-status-badcommand",
            "refused",
            128,
            "StartError",
            "its command could not be started: failed to create",
        ),
        (
            "pod-status-deadline",
            "timed_out",
            137,
            "DeadlineExceeded",
            "Pod was active on the node longer than",
        ),
    ],
)
def test_recorded_ends(recording: str, outcome: str, code: int, reason: str, text: str) -> None:
    """Each becomes an outcome with a readable reason."""
    found = verdict(recorded(recording))
    assert found is not None
    assert (found.outcome, found.exit_code, found.reason) == (outcome, code, reason)
    assert text in found.message


@pytest.mark.parametrize(
    ("recording", "reason", "scheduled", "text"),
    [
        (
            "pod-status-imagepull",
            "ErrImagePull",
            True,
            'container main: failed to pull and unpack image "localhost/absent:1"',
        ),
        (
            "pod-status-configerror",
            "CreateContainerConfigError",
            True,
            'container main: configmap "absent" not found',
        ),
        (
            "pod-status-unschedulable",
            "Unschedulable",
            False,
            "0/1 nodes are available: 1 node(s) didn't match",
        ),
    ],
)
def test_recorded_pods_that_do_not_start(recording: str, reason: str, scheduled: bool, text: str) -> None:
    """They are not over, and say why they do not begin."""
    found = recorded(recording)
    assert verdict(found) is None
    assert not is_running(found)
    told = trouble(found)
    assert told is not None
    assert (told.reason, told.scheduled) == (reason, scheduled)
    assert told.message.startswith(text)


@pytest.mark.parametrize("recording", ["pod-create", "pod-get-running", "pod-get-terminating"])
def test_recorded_pods_that_are_not_over(recording: str) -> None:
    """Also one that is being deleted while it runs."""
    assert verdict(recorded(recording)) is None


ENDS = {
    "a": ("succeeded", 0),
    "gen-4dfrk": ("lost", 137),
    "p1": ("succeeded", 0),
    "p2": ("succeeded", 0),
    "p3": ("succeeded", 0),
    "exit3": ("failed", 3),
    "badcommand": ("refused", 128),
    "imagepull": ("lost", None),
    "deadline": ("timed_out", 137),
    "oomkilled": ("failed", 137),
    "configerror": ("lost", None),
    "unschedulable": ("lost", None),
    "del": ("lost", 137),
}


def test_every_life_of_the_recorded_watch_has_one_end() -> None:
    """The first verdict in a life is never taken back; who was deleted while running or waiting is lost."""
    found: dict[str, Any] = {}
    for kind, seen in life():
        told = verdict(seen, gone=kind == "DELETED")
        if seen.name in found:
            assert told is not None
            assert told.outcome == found[seen.name].outcome
        elif told is not None:
            found[seen.name] = told
    assert {name: (told.outcome, told.exit_code) for name, told in found.items()} == ENDS


def test_an_end_is_certain_when_all_containers_have_succeeded() -> None:
    """A second before the phase says so."""
    seen = [found for _, found in life() if found.name == "p1"]
    certain = [containers_over(found) for found in seen]
    assert certain.index(True) == [found.is_over for found in seen].index(True) - 1
    assert not containers_over(seen[-1])  # deleted by then: who knows when


def test_a_forced_deletion_leaves_nothing_but_running() -> None:
    """The object says Running when it goes."""
    found = verdict(pod("Running", RUNNING), gone=True)
    assert found is not None
    assert (found.outcome, found.message) == ("lost", "the pod was deleted by somebody while it ran")


@pytest.mark.parametrize(
    ("ended", "outcome"), [("2026-11-23T02:00:09Z", "succeeded"), ("2026-11-23T02:00:10Z", "lost")]
)
def test_a_process_that_ends_well_when_told_to_stop_has_not_done_its_work(ended: str, outcome: str) -> None:
    """What ended before the deletion was asked for has."""
    meta = {"deletionTimestamp": "2026-11-23T02:00:40Z", "deletionGracePeriodSeconds": 30}
    found = verdict(pod("Succeeded", over(0, "Completed", at=ended), meta=meta))
    assert found is not None
    assert found.outcome == outcome


def test_a_pod_that_the_cluster_deletes_says_for_what() -> None:
    """Preempted, drained: told by a condition; lost whatever the process made of it."""
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "room",
    }
    meta = {"deletionTimestamp": "2026-11-23T02:00:40Z", "deletionGracePeriodSeconds": 30}
    found = verdict(pod("Succeeded", over(0), meta=meta, conditions=[condition]))
    assert found is not None
    assert (found.outcome, found.message) == (
        "lost",
        "the cluster deleted the pod while it ran (PreemptionByScheduler): room",
    )
    assert found.machine == "PreemptionByScheduler"


def test_a_child_that_was_killed_for_memory_is_no_failure() -> None:
    """Exit code 0 with reason OOMKilled."""
    found = verdict(pod("Succeeded", over(0, "OOMKilled")))
    assert found is not None
    assert found.outcome == "succeeded"


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        ({"reason": "Evicted", "message": "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "}, "failed", "Evicted"),
        ({"reason": "Evicted", "message": "The node was low on resource: memory. "}, "lost", "Evicted"),
        ({"reason": "NodeLost", "message": "Node n which was running pod p is unresponsive"}, "lost", "NodeLost"),
        ({"reason": "OutOfcpu", "message": "Pod was rejected: Node didn't have enough resource: cpu"}, "lost", "OutOfcpu"),
        ({"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."}, "lost", "Terminated"),
        ({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "x"}]}, "lost", "PreemptionByScheduler"),
        ({}, "lost", "Failed"),
    ],
)  # fmt: skip
def test_what_the_cluster_did_is_lost_and_what_the_pod_did_is_failed(
    status: Any, outcome: str, reason: str
) -> None:
    """By the pod's reason, its message, its conditions."""
    found = verdict(pod("Failed", {"waiting": {"reason": "ContainerCreating"}}, **status))
    assert found is not None
    assert (found.outcome, found.reason) == (outcome, reason)
    assert found.machine == ("" if outcome == "failed" or reason == "Failed" else reason)


def test_the_first_container_that_failed_gives_code_and_name() -> None:
    """Main containers before init containers; its own last words are told."""
    several = pod("Failed", over(0), over(7, message="no input\n"), over(1))
    found = verdict(several)
    assert found is not None
    assert (found.exit_code, found.message) == (7, "container c1: exit code 7: no input")
    init = [{"name": "i", "state": over(2)}]
    found = verdict(pod("Failed", {"waiting": {"reason": "PodInitializing"}}, initContainerStatuses=init))
    assert found is not None
    assert (found.exit_code, found.message) == (2, "container i: exit code 2")


def test_signals_are_named_and_unknown_ends_are_lost() -> None:
    """139 may be a crash; a container that nobody could find is nobody's failure."""
    found = verdict(pod("Failed", over(139)))
    assert found is not None
    assert found.message == "exit code 139, as of SIGSEGV"
    found = verdict(pod("Failed", over(137, "ContainerStatusUnknown", message="could not be located")))
    assert found is not None
    assert found.outcome == "lost"
    assert verdict(pod("Failed", over(255))) is not None


def test_times_and_the_moment_of_deletion() -> None:
    """By the node's clock, by the server's."""
    began, ended = times(pod("Succeeded", over(0), over(0, at="2026-11-23T02:00:12Z")))
    assert began is not None
    assert ended is not None
    assert ended - began == 12_000_000_000
    assert deletion_asked_at(pod("Running", RUNNING)) is None
    asked = deletion_asked_at(recorded("pod-get-terminating"))
    assert asked is not None


def test_a_bookmark_is_a_pod_without_containers() -> None:
    """As recorded, with null for containers."""
    lines = json.loads((RECORDINGS / "watch-initial-events.json").read_text())["response"]["events"]
    event = decode_event(json.dumps(lines[-1]))
    assert (event.type, decode_pod(event.object).metadata.resource_version) == ("BOOKMARK", "546")


# --- logs ---------------------------------------------------------------------------------------------


class Container:
    """What a kubelet would answer about a container's log: lines with times, from a second on."""

    def __init__(self, lines: list[tuple[int, bytes]]) -> None:
        self.lines = [
            (f"2026-11-23T01:51:{tick // 1000:02}.{tick % 1000:03}000000Z", text) for tick, text in lines
        ]

    def answer(self, since: str) -> bytes:
        """Return all lines from a second on."""
        return b"".join(
            stamp.encode() + b" " + text + b"\n"
            for stamp, text in self.lines
            if not since or stamp >= since[:-1]
        )

    def whole(self) -> bytes:
        """Return what the container wrote."""
        return b"".join(text + b"\n" for _, text in self.lines)


texts = st.one_of(
    st.binary(max_size=8).map(lambda text: text.replace(b"\n", b"")), st.just(b"2026-01-01T00:00:00Z x")
)
steps = st.lists(st.tuples(st.sampled_from([0, 0, 1, 400, 1000, -1]), texts), max_size=25)


@given(steps=steps, cuts=st.lists(st.integers(0, 400), max_size=6), parts=st.integers(1, 40))
def test_a_log_has_no_gaps_and_no_repeats_wherever_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bytes]], cuts: list[int], parts: int
) -> None:
    """Times may stand still, and go back, though the server is asked by whole seconds."""
    now, timed = 5000, []
    for step, text in steps:
        now = max(0, now + step)
        timed.append((now, text))
    container = Container(timed)
    lines = Lines(tmp_path_factory.mktemp("log", numbered=True) / "log")
    for cut in [*cuts, None]:
        data = container.answer(lines.since)[:cut]
        lines.begin()
        for at in range(0, len(data), parts):
            lines.feed(data[at : at + parts])
        lines.cut()
    assert lines.content() == container.whole()
    lines.close()


def test_a_line_of_the_second_before_is_not_missed_where_the_stream_was_cut(tmp_path: Path) -> None:
    container = Container([(5000, b""), (4999, b"late")])
    lines = Lines(tmp_path / "log")
    for cut in (32, None):
        lines.begin()
        lines.feed(container.answer(lines.since)[:cut])
        lines.cut()
    content = lines.content()
    lines.close()
    assert content == container.whole()


def test_a_log_moves_into_a_file_when_it_grows_and_long_lines_are_not_held(tmp_path: Path) -> None:
    """The last line may lack its newline."""
    lines = Lines(tmp_path / "log")
    lines.begin()
    lines.feed(b"2026-11-23T01:51:14.085767642Z begin\n2026-11-23T01:51:14.085767643Z ")
    for _ in range(50):
        lines.feed(b"x" * 1000)
    assert lines.size > IN_MEMORY_BYTES
    lines.cut()  # taken back, to come again
    assert lines.read(0, 100) == b"begin\n"
    lines.begin()
    lines.feed(b"2026-11-23T01:51:14.085767642Z begin\n2026-11-23T01:51:14.085767643Z " + b"x" * 50_000)
    lines.finish()
    content = lines.content()
    assert isinstance(content, Path)
    assert content.read_bytes() == b"begin\n" + b"x" * 50_000
    assert lines.tail(3) == b"xxx"
    lines.take_back(6)
    assert content.read_bytes() == b"begin\n"
    lines.close()
    assert not content.exists()


def test_text_without_a_time_is_kept_as_it_is(tmp_path: Path) -> None:
    """What a kubelet says of itself in a log."""
    lines = Lines(tmp_path / "log")
    lines.begin()
    lines.feed(b"unable to retrieve container logs\n")
    lines.feed(b"failed")
    lines.finish()
    assert lines.content() == b"unable to retrieve container logs\nfailed"


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that could not be written comes again."""
    container = Container([(tick, b"y" * 1000) for tick in range(40)])
    lines = Lines(tmp_path / "log")
    lines.begin()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", _full)
        with pytest.raises(OSError, match="No space"):
            lines.feed(container.answer(""))
    lines.cut()
    data = container.answer(lines.since)
    lines.begin()
    lines.feed(data)
    lines.finish()
    assert lines.read(0, 1 << 20) == container.whole()


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
