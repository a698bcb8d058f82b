"""Rules of objects: in comes what was read, out go defaults filled in, and one refusal that names every cause."""

from __future__ import annotations

import re
from typing import Any

from tests.kube.api import amounts, quantities
from tests.kube.api.kinds import Kind
from tests.kube.api.statuses import cause, invalid

Object = dict[str, Any]
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{SUBDOMAIN.pattern}')"
)
LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
NAME_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
TOLERATIONS = [
    {
        "key": f"node.kubernetes.io/{why}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 300,
    }
    for why in ("not-ready", "unreachable")
]
ANNOTATIONS_BYTES = 256 * 1024


def bad(field: str, value: Any, rule: str) -> dict[str, str]:
    """Return the cause: a value breaks a rule."""
    shown = f'"{value}"' if isinstance(value, str) else value
    return cause("FieldValueInvalid", f"Invalid value: {shown}: {rule}", field)


def missing(field: str) -> dict[str, str]:
    """Return the cause: nothing is there."""
    return cause("FieldValueRequired", "Required value", field)


def check_metadata(metadata: Object, kind: Kind) -> list[dict[str, str]]:
    """Return what is wrong with name, labels and annotations."""
    causes, name = [], metadata.get("name", "")
    if not name:
        causes.append(
            cause("FieldValueRequired", "Required value: name or generateName is required", "metadata.name")
        )
    elif len(name) > 253:
        causes.append(bad("metadata.name", name, "must be no more than 253 characters"))
    elif not SUBDOMAIN.fullmatch(name):
        causes.append(bad("metadata.name", name, SUBDOMAIN_RULE))
    for key, value in (metadata.get("labels") or {}).items():
        causes += _check_key("metadata.labels", key)
        if len(value) > 63:
            causes.append(bad("metadata.labels", value, "must be no more than 63 bytes"))
        elif not VALUE.fullmatch(value):
            causes.append(bad("metadata.labels", value, VALUE_RULE))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        causes += _check_key("metadata.annotations", key)
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATIONS_BYTES:
        message = f"Too long: may not be more than {ANNOTATIONS_BYTES} bytes"
        causes.append(cause("FieldValueTooLong", message, "metadata.annotations"))
    for at, one in enumerate(metadata.get("finalizers") or ()):
        if "/" not in one and kind.plural != "namespaces":
            causes.append(
                bad(
                    f"metadata.finalizers[{at}]",
                    one,
                    "name is neither a standard finalizer name nor is it fully qualified",
                )
            )
    return causes


def _check_key(field: str, key: str) -> list[dict[str, str]]:
    prefix, _, name = key.rpartition("/")
    if (
        (prefix and not SUBDOMAIN.fullmatch(prefix))
        or not name
        or len(name) > 63
        or not VALUE.fullmatch(name)
    ):
        return [bad(field, key, NAME_RULE)]
    return []


def check_pod(pod: Object) -> list[dict[str, str]]:
    """Return what is wrong with a pod's spec."""
    spec, causes = pod.get("spec") or {}, []
    if not spec.get("containers"):
        causes.append(missing("spec.containers"))
    seen: set[str] = set()
    for part in ("initContainers", "containers"):
        for at, container in enumerate(spec.get(part) or ()):
            causes += _check_container(container, f"spec.{part}[{at}]", seen)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2147483647:
        causes.append(
            bad("spec.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
        )
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and grace < 0:
        causes.append(bad("spec.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0"))
    policy = spec.get("restartPolicy", "Always")
    if policy not in ("Always", "Never", "OnFailure"):
        message = f'Unsupported value: "{policy}": supported values: "Always", "Never", "OnFailure"'
        causes.append(cause("FieldValueNotSupported", message, "spec.restartPolicy"))
    return causes


def _check_container(container: Object, path: str, seen: set[str]) -> list[dict[str, str]]:
    causes, name = [], container.get("name", "")
    if not name:
        causes.append(missing(f"{path}.name"))
    elif len(name) > 63 or not LABEL.fullmatch(name):
        causes.append(bad(f"{path}.name", name, LABEL_RULE))
    elif name in seen:
        causes.append(cause("FieldValueDuplicate", f'Duplicate value: "{name}"', f"{path}.name"))
    seen.add(name)
    if not container.get("image"):
        causes.append(missing(f"{path}.image"))
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for which, told in (("limits", limits), ("requests", requests)):
        for resource, value in told.items():
            if quantities.parse(value) < 0:
                causes.append(
                    bad(
                        f"{path}.resources.{which}[{resource}]",
                        str(value),
                        "must be greater than or equal to 0",
                    )
                )
    for resource, value in requests.items():
        if resource in limits and quantities.parse(value) > quantities.parse(limits[resource]):
            rule = f"must be less than or equal to {resource} limit of {limits[resource]}"
            causes.append(bad(f"{path}.resources.requests", str(value), rule))
    return causes


def default_pod(pod: Object) -> None:
    """Fill in what a pod does not say."""
    spec = pod["spec"] = {**(pod.get("spec") or {})}
    for part in ("containers", "initContainers"):
        if spec.get(part):
            spec[part] = [_default_container(container) for container in spec[part]]
    if spec.get("resources"):
        spec["resources"] = as_text(spec["resources"])
        amounts.complete(spec)
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    defaults: Object = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": account,
        "serviceAccount": account,
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }
    for key, value in defaults.items():
        if spec.get(key) is None:
            spec[key] = value
    told = [one.get("key") for one in spec.get("tolerations") or ()]
    spec["tolerations"] = [
        *(spec.get("tolerations") or ()),
        *(one for one in TOLERATIONS if one["key"] not in told),
    ]


def _default_container(container: Object) -> Object:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = tag in ("", "latest") and "@" not in image
    defaults = {
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "Always" if latest else "IfNotPresent",
    }
    made = {**defaults, **container}
    resources = made["resources"] = as_text(made["resources"])
    if resources.get("limits"):  # what is limited and not requested is requested as it is limited
        made["resources"] = {
            **resources,
            "requests": {**resources["limits"], **(resources.get("requests") or {})},
        }
    return made


def as_text(resources: Object) -> Object:
    """Return amounts as the server has them: always text."""
    return {
        key: {name: str(value) for name, value in told.items()} if isinstance(told, dict) else told
        for key, told in resources.items()
    }


def quality(pod: Object) -> str:
    """Return a pod's class of service."""
    told = [container.get("resources") or {} for container in pod["spec"].get("containers") or ()]
    if pod["spec"].get("resources"):
        told = [pod["spec"]["resources"]]
    if not any(one.get("limits") or one.get("requests") for one in told):
        return "BestEffort"
    for one in told:
        limits = one.get("limits") or {}
        same = limits == (one.get("requests") or limits)
        if not same or not {"cpu", "memory"} <= limits.keys():
            return "Burstable"
    return "Guaranteed"


def check(found: Object, kind: Kind) -> None:
    """Refuse an object that breaks rules."""
    causes = check_metadata(found["metadata"], kind)
    if kind.plural == "pods":
        causes += check_pod(found)
    if causes:
        raise invalid(kind.name, found["metadata"].get("name", ""), causes)
