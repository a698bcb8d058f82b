"""How a pod ended, in the engine's words: from its phase, its conditions and its containers' states.

In: a pod as last seen, and whether its object is gone. Out: a `Verdict`, or None while it is not over; and the `Trouble`
that keeps one from starting. Phases are not enough: a deadline and an eviction are told on the pod, an exit code and
OOMKilled on a container, a preemption in a condition; and a container that succeeded may say OOMKilled of a child.
"""

from __future__ import annotations

import re
import signal
from typing import NamedTuple

from datatask.adapters.execute.kube.pods import ContainerStatus, Pod, Terminated, nanoseconds
from datatask.schema.events import Outcome
from datatask.schema.units import SECOND

MESSAGE_MAX = 2000
NEVER_RAN = ("StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError")
"""Reasons of a terminated container whose command was never executed."""
CANNOT_START = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "CreateContainerConfigError",
        "CreateContainerError",
        "CreatePodSandboxError",
        "RunContainerError",
        "PreStartHookError",
        "PostStartHookError",
        "CrashLoopBackOff",
    }
)
"""Reasons of a waiting container that do not go away by waiting alone."""
BY_KUBELET = "TerminationByKubelet"
"""Reason of the condition DisruptionTarget of a pod that its node has ended, which nothing has deleted."""
OF_THE_NODE = re.compile("Shutdown|NodeShutdown|Terminated|NodeLost|Preempting|NodeAffinity|OutOf[a-z].*")
"""Reasons of a pod whose node was shut down or lost, or had no room for it after all."""


class Verdict(NamedTuple):
    """The outcome, the exit code where a container has one, the reason in a word, and in a sentence.

    `machine` is the reason in a word where the cluster or the node has ended it, else empty.
    """

    outcome: Outcome
    exit_code: int | None
    reason: str
    message: str
    machine: str = ""


class Trouble(NamedTuple):
    """Why a pod does not start: a reason in a word, the cluster's own text, and whether it has a node at least."""

    reason: str
    message: str
    scheduled: bool


SUCCEEDED = Verdict("succeeded", 0, "Completed", "")


def verdict(pod: Pod, *, gone: bool = False, stopped: bool | None = None) -> Verdict | None:
    """Return how the pod ended, or None while it is not over. `gone` says that its object is no longer there.

    What a container does after the deletion of its pod was asked for is no end of its own: such a run is `lost`. `stopped`
    says whether that was so, where its changes were seen; a pod that is seen first when it is over is judged by itself.
    """
    if not pod.is_over and not gone:
        return None
    natural = _natural(pod)
    if natural is not None and natural.outcome == "timed_out":
        return natural
    if stopped is None:
        stopped = killed_by_deletion(pod)
    if natural is not None and not stopped:
        return natural
    code = None if natural is None else natural.exit_code
    how = "" if natural is None else f"; after that: {natural.message or 'exit code 0'}"
    then = "while it ran" if _ever_ran(pod) else "before it ran"
    why = pod.condition("DisruptionTarget")
    if why is not None and why.status == "True":
        text = f"the cluster deleted the pod {then} ({why.reason}): {why.message}"
        return Verdict("lost", code, "Deleted", _cut(text), why.reason or "Deleted")
    return Verdict("lost", code, "Deleted", _cut(f"the pod was deleted by somebody {then}{how}"))


def containers_over(pod: Pod) -> bool:
    """Whether all main containers have succeeded and nobody has asked for the pod's deletion: its end is certain."""
    found = pod.status.container_statuses or []
    if not found or pod.metadata.deletion_timestamp or len(found) < len(pod.spec.containers or found):
        return False
    return containers_over_at_all(pod) and not any(
        one.state.terminated is not None and starts_again(pod, one.name, one.state.terminated)
        for one in found
    )


def starts_again(pod: Pod, name: str, ended: Terminated) -> bool:
    """Whether the kubelet will start a main container again that has ended: its own policy and rules go over its pod's."""
    container = next((one for one in pod.spec.containers or () if one.name == name), None)
    if container is None:
        return False
    for rule in container.restart_policy_rules or ():
        if (ended.exit_code in rule.exit_codes.values) is (rule.exit_codes.operator == "In"):
            return True  # both actions that there are start it again
    policy = container.restart_policy or pod.spec.restart_policy or "Never"
    return policy == "Always" or (policy == "OnFailure" and ended.exit_code != 0)


def deletion_asked_at(pod: Pod) -> int | None:
    """Return when somebody asked for the deletion, in UTC nanoseconds, to the second; None where nobody has."""
    at = nanoseconds(pod.metadata.deletion_timestamp)
    return None if at is None else at - (pod.metadata.deletion_grace_period_seconds or 0) * SECOND


def killed_by_deletion(pod: Pod) -> bool:
    """Whether a container was still running when the deletion was asked for, as far as the pod tells by itself."""
    asked = deletion_asked_at(pod)
    if asked is None:
        return False
    generation, observed = pod.metadata.generation, pod.status.observed_generation
    if not pod.metadata.deletion_grace_period_seconds and generation and observed:
        return (
            observed >= generation
        )  # the node's last deletion has rewritten the time; the end was told before or after
    finished = [nanoseconds(one.finished_at) for one in _ends(pod)]
    known = [at for at in finished if at is not None]
    return not known or max(known) >= asked


def images_of(pod: Pod) -> str:
    """Return the images of a pod's containers by the digests that the kubelet reported, `NAME=ID` each; empty where it did not."""
    names = {one.name: one.image for one in [*(pod.spec.init_containers or ()), *(pod.spec.containers or ())]}
    found = {
        names[one.name]: one.image_id
        for one in pod.statuses()
        if one.image_id and names.get(one.name) and not any(map(str.isspace, one.image_id))
    }
    return " ".join(f"{name}={digest}" for name, digest in sorted(found.items()))


def times(pod: Pod) -> tuple[int | None, int | None]:
    """Return when its main containers started and ended, by the node's clock, in UTC nanoseconds."""
    started, ended = [], []
    for one in pod.status.container_statuses or ():
        if one.state.running is not None:
            started.append(nanoseconds(one.state.running.started_at))
        elif one.state.terminated is not None:
            started.append(nanoseconds(one.state.terminated.started_at))
            ended.append(nanoseconds(one.state.terminated.finished_at))
    return (
        min((at for at in started if at is not None), default=None),
        max((at for at in ended if at is not None), default=None),
    )


def is_running(pod: Pod) -> bool:
    """Whether a main container has begun, be it that it waits to be started again."""
    return any(
        one.state.running is not None
        or one.restart_count > 0
        or (one.state.terminated is not None and _began(one.state.terminated))
        for one in pod.status.container_statuses or ()
    )


def node_is_silent(pod: Pod) -> bool:
    """Whether the control plane hears nothing of the pod's node: it makes the pod unready, and the containers stay ready.

    That is all it writes until it evicts (Kubernetes' node lifecycle controller, MarkPodsNotReady); a probe that fails
    or a readiness gate would give its reason.
    """
    ready, containers = pod.condition("Ready"), pod.condition("ContainersReady")
    if ready is None or containers is None:
        return False
    return ready.status == "False" and not ready.reason and containers.status == "True"


def trouble(pod: Pod) -> Trouble | None:
    """Return what keeps the pod from starting, if anything is told."""
    if pod.status.phase not in ("Pending", ""):
        return None
    for one in pod.statuses():
        waiting = one.state.waiting
        if waiting is not None and waiting.reason in CANNOT_START:
            return Trouble(
                waiting.reason, _cut(f"container {one.name}: {waiting.message or waiting.reason}"), True
            )
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        return Trouble(scheduled.reason or "Unschedulable", _cut(scheduled.message), False)
    return None


def _natural(pod: Pod) -> Verdict | None:
    """Return how it ended by itself; None where nothing tells of an end."""
    status = pod.status
    disrupted = pod.condition("DisruptionTarget")
    if status.phase == "Succeeded":
        by_node = disrupted is not None and (disrupted.status, disrupted.reason) == ("True", BY_KUBELET)
        return evicted(disrupted.message, 0) if by_node and disrupted is not None else SUCCEEDED
    by_container = _by_container(pod)
    code = _last_code(pod) if by_container is None else by_container.exit_code
    if status.reason == "DeadlineExceeded":
        return Verdict(
            "timed_out", code, status.reason, _cut(status.message or "its activeDeadlineSeconds are over")
        )
    if status.reason == "Evicted":
        return evicted(status.message, code)
    if disrupted is not None and disrupted.status == "True" and status.phase == "Failed":
        text = f"the cluster took its node away ({disrupted.reason}): {disrupted.message}"
        reason = disrupted.reason or "Disrupted"
        return Verdict("lost", code, reason, _cut(text), reason)
    if status.reason and status.phase == "Failed":
        text = f"{status.reason}: {status.message or 'no more is told'}"
        machine = status.reason if OF_THE_NODE.fullmatch(status.reason) else ""
        return Verdict("lost", code, status.reason, _cut(text), machine)
    if by_container is not None:
        return by_container
    if status.phase == "Failed":
        text = status.message or "the pod failed, and nothing tells why"
        return Verdict("lost", None, "Failed", _cut(text))
    if containers_over_at_all(pod):
        return SUCCEEDED
    return None


def evicted(message: str, code: int | None) -> Verdict:
    """Return the verdict on a pod that its node has evicted: its own doing where it took more than its limit."""
    own = "exceed" in message.lower() and "limit" in message.lower()
    outcome: Outcome = "failed" if own else "lost"
    return Verdict(outcome, code, "Evicted", _cut(f"evicted: {message.strip()}"), "" if own else "Evicted")


def _last_code(pod: Pod) -> int | None:
    """Return the exit code of the first main container, of its attempt before where it waits to be started again."""
    for one in pod.status.container_statuses or ():
        ended = one.state.terminated or one.last_state.terminated
        return None if ended is None or one.state.running is not None else ended.exit_code
    return None


def containers_over_at_all(pod: Pod) -> bool:
    """Whether all main containers have terminated with exit code 0, whoever deleted the pod."""
    found = pod.status.container_statuses or []
    return bool(found) and all(
        one.state.terminated is not None and one.state.terminated.exit_code == 0 for one in found
    )


def _by_container(pod: Pod) -> Verdict | None:
    """Return the verdict on the first container that failed, main ones first; how sidecars end says nothing."""
    several = len(pod.statuses()) > 1
    sidecars = {one.name for one in pod.spec.init_containers or () if one.restart_policy == "Always"}
    inits = [one for one in pod.status.init_container_statuses or () if one.name not in sidecars]
    for one in [*(pod.status.container_statuses or ()), *inits]:
        ended = one.state.terminated
        if ended is not None and ended.exit_code != 0:
            return _of_container(one, ended, f"container {one.name}: " if several else "")
    return None


def _of_container(one: ContainerStatus, ended: Terminated, who: str) -> Verdict:
    code = ended.exit_code
    words = _words(code)
    told = ended.message.strip()
    if ended.reason in NEVER_RAN:
        return Verdict(
            "refused", code, ended.reason, _cut(f"{who}its command could not be started: {told or words}")
        )
    if ended.reason == "ContainerStatusUnknown":
        return Verdict("lost", None, ended.reason, _cut(f"{who}{told or 'nobody knows how it ended'}"))
    if ended.reason == "OOMKilled":
        return Verdict("failed", code, "OOMKilled", _cut(f"{who}out of memory (OOMKilled, {words})"))
    plain = ended.reason in ("Error", "")
    reason = "ExitCode" if plain else ended.reason
    text = f"{who}{words}" if plain else f"{who}{words} ({ended.reason})"
    return Verdict("failed", code, reason, _cut(f"{text}: {told}" if told else text))


def _ends(pod: Pod) -> list[Terminated]:
    mains = pod.status.container_statuses or ()
    return [one.state.terminated for one in mains if one.state.terminated is not None]


def _ever_ran(pod: Pod) -> bool:
    return pod.status.phase == "Running" or is_running(pod)


def _began(ended: Terminated) -> bool:
    return (
        ended.reason not in (*NEVER_RAN, "ContainerStatusUnknown")
        and nanoseconds(ended.started_at) is not None
    )


def _words(code: int) -> str:
    if code > 128:
        try:
            return f"exit code {code}, as of {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"exit code {code}"


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_MAX else text[: MESSAGE_MAX - 1] + "…"
