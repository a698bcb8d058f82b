"""Pods as the API server sends them, cut to the fields that matter here; and the name and labels of a run's pod.

In: the bytes of a pod, of a page of a list, or of a line of a watch. Out: structs of a few hundred bytes, for thousands are
kept at a time; times stay text (RFC 3339) until `nanoseconds` converts them. A pod's name is a DNS-1123 label, readable at
its front and unique by a digest at its end: the same run has the same name for ever, so a create is repeated without
harm. Labels list the pods of an application; annotations hold the ids in full.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from typing import Any

import msgspec

from datatask.schema import units

Quantities = dict[str, str | int | float]


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
    generation: int = 0
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


class Amounts(Value, frozen=True):
    """Quantities by resource."""

    requests: Quantities | None = None
    limits: Quantities | None = None


class ContainerStatus(Value, frozen=True):
    """What the kubelet tells of a container; `allocated_resources` are granted, `resources` in force."""

    name: str = ""
    image: str = ""
    image_id: str = msgspec.field(name="imageID", default="")
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()
    restart_count: int = 0
    allocated_resources: Quantities | None = None
    resources: Amounts | None = None


class Condition(Value, frozen=True):
    """A condition of a pod, such as PodScheduled or DisruptionTarget."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class Status(Value, frozen=True):
    """How a pod is. `reason` is the pod's own: DeadlineExceeded, Evicted; those of containers are on the containers."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    start_time: str | None = None
    observed_generation: int = 0
    allocated_resources: Quantities | None = None
    resources: Amounts | None = None


class ExitCodes(Value, frozen=True):
    """Which exit codes are meant; `operator` is In or NotIn."""

    operator: str = ""
    values: list[int] = []


class RestartRule(Value, frozen=True):
    """That a container is started again (Restart), or all of them are (RestartAllContainers), after some exit codes."""

    action: str = ""
    exit_codes: ExitCodes = ExitCodes()


class Container(Value, frozen=True):
    """What a container is asked to be; sidecars are init containers with `restart_policy` Always."""

    name: str = ""
    image: str = ""
    restart_policy: str = ""
    restart_policy_rules: list[RestartRule] | None = None
    resources: Amounts | None = None


class Spec(Value, frozen=True):
    """What a pod is asked to be."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    restart_policy: str = ""
    node_name: str = ""
    resources: Amounts | None = None
    overhead: Quantities | None = None


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


class EventMetadata(Value, frozen=True):
    """When an event was recorded first."""

    creation_timestamp: str | None = None


class EventSubject(Value, frozen=True):
    """Which object an event is about."""

    uid: str = ""


class PodEvent(Value, frozen=True):
    """What a component of the cluster tells about a pod: the kubelet with `last_timestamp`, the scheduler with `event_time`."""

    type: str = ""
    reason: str = ""
    message: str = ""
    metadata: EventMetadata = EventMetadata()
    involved_object: EventSubject = EventSubject()
    last_timestamp: str | None = None
    event_time: str | None = None

    @property
    def at(self) -> int:
        """When it happened last, in UTC nanoseconds; 0 where nothing tells."""
        told = self.event_time or self.last_timestamp or self.metadata.creation_timestamp
        return nanoseconds(told) or 0


class PodEventList(Value, frozen=True):
    """A page of events."""

    metadata: ListMetadata = ListMetadata()
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
    return units.nanoseconds(moment)


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


LENGTH_MAX = 63
DIGEST_LENGTH = 16
DOMAIN = "datatask.io"
APP, LOG = f"{DOMAIN}/app", f"{DOMAIN}/log"
TASK, JOB, RUN, HOME = f"{DOMAIN}/task", f"{DOMAIN}/job", f"{DOMAIN}/run", f"{DOMAIN}/log-url"
TOMBSTONE = f"{DOMAIN}/tombstone"
"""Marks a pod by which an earlier version kept a name; it never runs, and is removed wherever it is met."""
FINALIZER = f"{DOMAIN}/collect"
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_OTHER = re.compile(r"[^a-z0-9]+", re.ASCII)


def digest(*parts: str) -> str:
    """Return 16 characters of a-z2-7 that stand for these texts, 80 bits of SHA-256."""
    whole = hashlib.sha256("\0".join(parts).encode()).digest()
    return base64.b32encode(whole[:10]).decode().lower()


def pod_name(app: str, task: str, job: str, identity: str) -> str:
    """Return the name of a run's pod, at most 63 characters: `survey-resize-cat-q3jz…`."""
    room = LENGTH_MAX - DIGEST_LENGTH - 1
    parts = [_slug(part) for part in (app, task, job)]
    parts = [part[: room // 3 - 1].strip("-") for part in parts] if len("-".join(parts)) > room else parts
    front = "-".join(part for part in parts if part).strip("-")
    return f"{front or 'run'}-{digest(app, task, job, identity)}"


def label_value(text: str) -> str:
    """Return a text as a label's value: itself where it may be one, else its digest."""
    return text if _LABEL.fullmatch(text) else digest(text)


def labels(app: str, task: str, job: str, identity: str) -> dict[str, str]:
    """Return the labels of a run's pod: `app`, `task`, `job` as pydatatask writes them, and those that we select by."""
    log = identity.partition(".")[0]
    return {
        "app": label_value(app),
        "task": label_value(task),
        "job": label_value(job),
        APP: label_value(app),
        LOG: label_value(log),
    }


def told(app: str, task: str, job: str, identity: str, log_url: str = "") -> dict[str, str]:
    """Return the annotations of a run's pod: the true ids, and the place of the log that decided it."""
    ids = {APP: app, TASK: task, JOB: job, RUN: identity}
    return ids | ({HOME: log_url} if log_url else {})


def selector(app: str) -> str:
    """Return the label selector of all pods of an application."""
    return f"{APP}={label_value(app)}"


def identity_of(pod: Pod) -> str:
    """Return the identity of the run whose pod it is; the empty string for a pod of no run, as tombstones are."""
    return "" if pod.annotation(TOMBSTONE) else pod.annotation(RUN)


def _slug(text: str) -> str:
    return _OTHER.sub("-", text.lower()).strip("-")


def is_dns_label(text: str) -> bool:
    """Whether a text is a DNS-1123 label, as namespaces' names are."""
    return re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text, re.ASCII) is not None
