"""A pod as the API server tells it, cut to what matters here: values decoded from JSON, everything else skipped.

In: the bytes of a pod, of a page of a list, or of a line of a watch. Out: structs of a few hundred bytes; thousands of
pods are kept at a time. Times stay text, as RFC 3339 has them, until somebody asks (`nanoseconds`).
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

SECOND = 1_000_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Value(msgspec.Struct, frozen=True, rename="camel", gc=False, omit_defaults=True):
    """A part of an API object; unknown fields are skipped."""


class Metadata(Value, frozen=True, rename="camel"):
    """Names and versions. `deletion_timestamp` is when the grace is over, not when deletion was asked for."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: list[str] | None = None


class Waiting(Value, frozen=True):
    """A container that has not started, or is to start again."""

    reason: str = ""
    message: str = ""


class Running(Value, frozen=True):
    """A container that runs."""

    started_at: str | None = None


class Terminated(Value, frozen=True):
    """A container that is over. `reason` alone says nothing: a run that succeeded may say OOMKilled."""

    exit_code: int = 0
    signal: int | None = None
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class ContainerState(Value, frozen=True):
    """At most one of the three is there."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(Value, frozen=True):
    """What the kubelet tells of a container."""

    name: str = ""
    image: str = ""
    state: ContainerState = ContainerState()
    restart_count: int = 0


class Condition(Value, frozen=True):
    """A condition of a pod, such as PodScheduled or DisruptionTarget."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class Status(Value, frozen=True):
    """How a pod is. `reason` is the pod's own: DeadlineExceeded, Evicted; those of containers are on the containers."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    start_time: str | None = None


class Container(Value, frozen=True):
    """What a container is asked to be; sidecars are init containers with `restart_policy` Always."""

    name: str = ""
    image: str = ""
    restart_policy: str = ""


class Spec(Value, frozen=True):
    """What a pod is asked to be."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    node_name: str = ""


class Pod(Value, frozen=True):
    """A pod at one version."""

    metadata: Metadata = Metadata()
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def name(self) -> str:
        """The pod's name in its namespace."""
        return self.metadata.name

    @property
    def uid(self) -> str:
        """What tells it from another pod of the same name."""
        return self.metadata.uid

    @property
    def is_over(self) -> bool:
        """Whether all that can happen to it but its deletion has happened."""
        return self.status.phase in ("Succeeded", "Failed")

    def label(self, name: str) -> str:
        """Return a label, or the empty string."""
        return (self.metadata.labels or {}).get(name, "")

    def annotation(self, name: str) -> str:
        """Return an annotation, or the empty string."""
        return (self.metadata.annotations or {}).get(name, "")

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of this type that is told, if any."""
        return next((found for found in self.status.conditions or () if found.type == kind), None)

    def statuses(self) -> list[ContainerStatus]:
        """Return what is told of its containers, init containers first."""
        return [*(self.status.init_container_statuses or ()), *(self.status.container_statuses or ())]


class ListMetadata(Value, frozen=True):
    """Where a list stands, and how to go on with it."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class PodList(Value, frozen=True):
    """A page of a list."""

    metadata: ListMetadata = ListMetadata()
    items: list[Pod] = []


class StatusCause(Value, frozen=True):
    """One of the reasons for a refusal."""

    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(Value, frozen=True):
    """What a refusal is about."""

    causes: list[StatusCause] | None = None
    retry_after_seconds: int | None = None


class ApiStatus(Value, frozen=True):
    """What the server says instead of an object."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: StatusDetails | None = None


class WatchEvent(Value, frozen=True):
    """One line of a watch; the object is a pod, or a status where the type is ERROR."""

    type: str
    object: msgspec.Raw


class PodEvent(Value, frozen=True):
    """What a component of the cluster tells about a pod."""

    type: str = ""
    reason: str = ""
    message: str = ""
    last_timestamp: str | None = None
    event_time: str | None = None


class PodEventList(Value, frozen=True):
    """Events of one pod."""

    items: list[PodEvent] = []


decode_pod = msgspec.json.Decoder(Pod).decode
decode_list = msgspec.json.Decoder(PodList).decode
decode_event = msgspec.json.Decoder(WatchEvent).decode
decode_status = msgspec.json.Decoder(ApiStatus).decode
decode_pod_events = msgspec.json.Decoder(PodEventList).decode


def nanoseconds(time: str | None) -> int | None:
    """Return an RFC 3339 time as UTC nanoseconds; None for none, for one of 1970 (never started), and for nonsense."""
    if not time:
        return None
    try:
        moment = dt.datetime.fromisoformat(time)
    except ValueError:
        return None
    if moment.tzinfo is None or moment.year < 1971:
        return None
    delta = moment - _EPOCH
    return ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1_000


def as_pod(value: Any) -> Pod:
    """Return a pod given as a Pod, as a mapping, or as kubernetes_asyncio's V1Pod (told by its metadata's name and uid)."""
    if isinstance(value, Pod):
        return value
    if isinstance(value, dict):
        return msgspec.convert(value, Pod)
    meta = value.metadata
    return Pod(
        metadata=Metadata(
            name=meta.name,
            namespace=meta.namespace or "",
            uid=meta.uid or "",
            labels=meta.labels,
            annotations=meta.annotations,
        )
    )
