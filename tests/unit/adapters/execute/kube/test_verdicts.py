"""How pods end, by every recording of a real cluster."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from datatask.adapters.execute.kube.pods import Pod, Terminated, as_pod, decode_event, decode_pod
from datatask.adapters.execute.kube.verdicts import (
    containers_over,
    deletion_asked_at,
    is_running,
    starts_again,
    times,
    trouble,
    verdict,
)
from tests.kube.recorded import ENDS, answer, events

RULE = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
EXCEPT = {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 42]}}


def recorded(name: str) -> Pod:
    """Return the pod of an answer."""
    return msgspec.convert(answer(name)["json"], Pod)


def life() -> list[tuple[str, Pod]]:
    """Return the events of the recorded watch."""
    return [(event["type"], msgspec.convert(event["object"], Pod)) for event in events()]


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
    lines = answer("watch-initial-events")["events"]
    event = decode_event(json.dumps(lines[-1]))
    assert (event.type, decode_pod(event.object).metadata.resource_version) == ("BOOKMARK", "546")


@pytest.mark.parametrize(
    ("container", "code", "again"),
    [
        ({}, 1, False),
        ({"restartPolicy": "OnFailure"}, 1, True),
        ({"restartPolicy": "OnFailure"}, 0, False),
        ({"restartPolicy": "Always"}, 0, True),
        ({"restartPolicy": "Never", "restartPolicyRules": [RULE]}, 42, True),
        ({"restartPolicy": "Never", "restartPolicyRules": [RULE]}, 3, False),
        ({"restartPolicy": "Never", "restartPolicyRules": [EXCEPT]}, 42, False),
        ({"restartPolicy": "Never", "restartPolicyRules": [EXCEPT]}, 3, True),
    ],
)
def test_an_end_is_final_only_where_the_kubelet_starts_nothing_again(
    container: dict[str, Any], code: int, again: bool
) -> None:
    """By the container's own policy and rules; a success that is followed by another attempt settles nothing."""
    ended = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
    found = as_pod(
        {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", **container}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "main", "state": ended}]},
        }
    )
    assert starts_again(found, "main", Terminated(exit_code=code)) is again
    assert containers_over(found) is (code == 0 and not again)
    assert verdict(found) is None
