"""Pod manifests: from the text of a rendered template to the object that is sent to the API server.

In: YAML of one Pod, and the task's `Recipe`: what to keep of a pod, and how long to wait for its start. Out: a mapping with
the run's name, labels and annotations, restartPolicy Never, and the finalizer that keeps the pod until its end and logs are
collected. What cannot be a pod is refused here, by name; everything else is for the server to judge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.pods import Pod
from datatask.engine.api.repositories import BlobRepository
from datatask.schema.errors import InvalidValueError
from datatask.schema.events import Ending
from datatask.schema.messages import RunSpec, Write
from datatask.schema.resources import Resources
from datatask.schema.units import SECOND

StoppedPods = Literal["retry", "accept"]
"""What becomes of a run whose pod was told to stop, by others than us, and ended well within its grace."""


@dataclass(frozen=True)
class Result:
    """What a function in a pod brought back: its ending where it tells one, and what it wrote."""

    ending: Ending | None
    writes: tuple[Write, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How to make the pods of one task. Times are nanoseconds; None waits for ever."""

    task: str
    manifest: Callable[[RunSpec], Awaitable[Manifest]]
    logs: BlobRepository | None
    start_within: int | None = 300 * SECOND
    schedule_within: int | None = 3600 * SECOND
    env: Callable[[RunSpec], Awaitable[Mapping[str, str]]] | None = None
    result: Callable[[RunSpec, bytes], tuple[Result, int] | None] | None = None
    """Takes the end of a container's log; returns what the function brought back, and how many bytes of it said so."""
    finished: Callable[[RunSpec, Ending], tuple[Write, ...]] | None = None
    handle_timeout: Callable[[Any], Awaitable[None]] | None = None
    stopped_pods: StoppedPods = "retry"
    takes: Callable[[Pod, RunSpec], Resources] | None = None
    """Returns what a run's pod takes of the task's quota; None without a quota."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Recipe({self.task!r})"


Manifest = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_manifest(text: str, where: str) -> Manifest:
    """Return the one Pod that the text says; `CallerError` names what is wrong and where."""
    try:
        documents = [one for one in yaml.load_all(text, Loader=_LOADER) if one is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidValueError(
            f"the manifest is no YAML{line}: {problem}",
            where=where,
            remedy="write values through the filter `yaml`",
        ) from error
    if len(documents) != 1:
        raise InvalidValueError(
            f"the template makes {len(documents)} documents", where=where, remedy="make one Pod"
        )
    manifest = documents[0]
    if not isinstance(manifest, dict) or manifest.get("kind") != "Pod":
        kind = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise InvalidValueError(
            f"the template makes a {kind}, not a Pod", where=where, remedy="write `kind: Pod`"
        )
    if not _has_text_keys(manifest):
        raise InvalidValueError(
            f"keys of the manifest are no text: {', '.join(_odd_keys(text))}",
            where=where,
            remedy='put them in quotes, such as "on":',
        )
    _check(manifest, where)
    return manifest


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _has_text_keys(inner) for key, inner in value.items())
    return not isinstance(value, list) or all(map(_has_text_keys, value))


def _odd_keys(text: str) -> Iterator[str]:
    """Yield what the YAML has as keys that are no text, as written, each with its line and its type."""
    nodes, seen = [node for node in yaml.compose_all(text, Loader=_LOADER) if node is not None], set[int]()
    while nodes:
        node = nodes.pop(0)
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes[:0] = node.value
        elif isinstance(node, yaml.MappingNode):
            nodes[:0] = [value for _, value in node.value]
            for key, _ in node.value:
                kind = key.tag.rpartition(":")[2]
                if kind not in ("str", "merge", "value"):
                    yield f"`{key.value}` in line {key.start_mark.line + 1} ({kind})"


def _check(manifest: Manifest, where: str) -> None:
    spec = manifest.get("spec")
    if not isinstance(spec, dict):
        raise InvalidValueError("the pod has no spec", where=where)
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers:
        raise InvalidValueError("the pod has no spec.containers", where=where)
    for part in ("containers", "initContainers"):
        for container in spec.get(part) or ():
            if not isinstance(container, dict) or not isinstance(container.get("name"), str):
                raise InvalidValueError(f"one of spec.{part} has no name", where=where)
    metadata = manifest.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise InvalidValueError("the pod's metadata is no mapping", where=where)
    for part in ("labels", "annotations"):
        if not isinstance(metadata.get(part) or {}, dict):
            raise InvalidValueError(f"metadata.{part} is no mapping", where=where)


def stamp(
    manifest: Manifest,
    *,
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    finalizer: bool,
    env: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the manifest as a run's pod: ours goes over the user's, `env` into each container that does not set it."""
    spec = dict(manifest["spec"])
    spec["restartPolicy"] = "Never"
    for part in ("initContainers", "containers"):
        if env and spec.get(part):
            spec[part] = [_with_env(container, env) for container in spec[part]]
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "generateName"}
    metadata |= {
        "name": name,
        "namespace": namespace,
        "labels": {**(metadata.get("labels") or {}), **labels},
        "annotations": {**(metadata.get("annotations") or {}), **annotations},
    }
    if finalizer:
        kept = [one for one in metadata.get("finalizers") or () if one != pods.FINALIZER]
        metadata["finalizers"] = [*kept, pods.FINALIZER]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _with_env(container: Manifest, env: Mapping[str, str]) -> Manifest:
    own = list(container.get("env") or ())
    taken = {one.get("name") for one in own if isinstance(one, dict)}
    return {**container, "env": [*({"name": k, "value": v} for k, v in env.items() if k not in taken), *own]}
