"""Create, replace and patch: what the server adds, what may not change, and when a change is none.

In: a decoded object and the target. Out: the stored version. Deleting is next door.
"""

from __future__ import annotations

import datetime as dt
import random
from typing import Any

from tests.kube.fake.admitting import check_name
from tests.kube.fake.deleting import is_free
from tests.kube.fake.limits import with_range_defaults
from tests.kube.fake.refusals import (
    POD_IS_FIXED,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    not_found,
)
from tests.kube.fake.resources import Target
from tests.kube.fake.storing import Object, Store, new_uid

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
KEPT = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
)
CONTAINER_FIELDS: dict[str, Any] = {
    f"f:{name}": {}
    for name in ("command", "image", "imagePullPolicy", "name", "resources", "terminationMessagePath")
}
SPEC_FIELDS: dict[str, Any] = {
    "f:containers": {'k:{"name":"main"}': {".": {}, **CONTAINER_FIELDS}},
    "f:dnsPolicy": {},
    "f:enableServiceLinks": {},
    "f:restartPolicy": {},
    "f:schedulerName": {},
    "f:securityContext": {},
    "f:terminationGracePeriodSeconds": {},
}


def now(seconds: float = 0.0) -> str:
    """Return the time, or a later one, as objects tell it."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def begun(store: Store, target: Target, given: Any) -> Object:
    """Return a new object with name, namespace and identity, once its namespace is known to be there."""
    resource = target.resource
    if not isinstance(given, dict):
        why = (
            "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct"
        )
        raise bad_request(f"the object provided is unrecognized (must be of type {resource.kind}): {why}")
    metadata = given["metadata"] = dict(given.get("metadata") or {})
    if metadata.get("namespace", target.namespace) != target.namespace:
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if not metadata.get("name"):
        prefix = metadata.get("generateName")
        if not prefix:
            why = "Required value: name or generateName is required"
            raise invalid(resource.kind, "", [("FieldValueRequired", why, "metadata.name")])
        metadata["name"] = prefix[:58] + "".join(random.choices(SUFFIX, k=5))
    if target.namespace:
        _check_namespace(store, target, metadata["name"])
        metadata["namespace"] = target.namespace
    for name in ("resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        metadata.pop(name, None)
    metadata |= {"uid": new_uid(), "creationTimestamp": now()}
    given["kind"], given["apiVersion"] = resource.kind, resource.api_version
    return given


def _check_namespace(store: Store, target: Target, name: str) -> None:
    namespace = store.get("namespaces", "", target.namespace)
    if namespace is None:
        raise not_found("namespaces", target.namespace)
    if namespace["status"]["phase"] == "Terminating":
        why = f"unable to create new content in namespace {target.namespace} because it is being terminated"
        cause = {
            "reason": "NamespaceTerminating",
            "message": f"namespace {target.namespace} is being terminated",
            "field": "metadata.namespace",
        }
        raise forbidden(target.resource.plural, name, why, [cause])


def completed(target: Target, given: Object) -> Object:
    """Return what the server adds to an object that is no pod."""
    check_name(target.resource.kind, given["metadata"]["name"])
    match target.resource.plural:
        case "namespaces":
            labels = {"kubernetes.io/metadata.name": given["metadata"]["name"]}
            given["metadata"]["labels"] = {**(given["metadata"].get("labels") or {}), **labels}
            given |= {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        case "resourcequotas":
            given["status"] = {}
        case "limitranges":
            with_range_defaults(given)
    return given


def sign(pod: Object) -> None:
    """Add who manages which field: a third of an object's bytes."""
    pod["metadata"]["generation"] = 1
    pod["metadata"]["managedFields"] = [
        {
            "manager": "Python",
            "operation": "Update",
            "apiVersion": "v1",
            "time": pod["metadata"]["creationTimestamp"],
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": SPEC_FIELDS},
        }
    ]


def insert(store: Store, target: Target, given: Object) -> Object:
    """Store a new object; 409 where the name is taken."""
    plural, name = target.resource.plural, given["metadata"]["name"]
    if store.get(plural, target.namespace, name) is not None:
        raise already_exists(plural, name)
    return store.put(plural, given).object


def found(store: Store, target: Target) -> Object:
    """Return the object that is asked for; 404 where there is none."""
    given = store.get(target.resource.plural, target.namespace, target.name)
    if given is None:
        raise not_found(target.resource.plural, target.name)
    return given


def update(store: Store, target: Target, before: Object, after: Object, *, dry: bool = False) -> Object:
    """Store a new version of an object, or nothing where it says the same."""
    plural = target.resource.plural
    metadata = _metadata(target, before["metadata"], after.get("metadata") or {})
    if target.subresource == "status":
        after = {**before, "status": after.get("status") or {}, "metadata": metadata}
    else:
        after = {**after, "metadata": metadata}
        if "status" in before:
            after["status"] = before["status"]
    if plural == "pods" and after.get("spec") != before["spec"]:
        _check_fixed(before, after)
        metadata["generation"] = metadata.get("generation", 1) + 1
    if dry or after == before:
        return after
    if is_free(plural, after):
        return store.remove(plural, after).object  # the last finalizer went: DELETED, and no MODIFIED
    return store.put(plural, after).object


def _metadata(target: Target, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a new version; refuse what was meant for another object or version."""
    plural, name = target.resource.plural, target.name
    if new.get("uid", old["uid"]) != old["uid"]:
        why = f"Precondition failed: UID in precondition: {new['uid']}, UID in object meta: {old['uid']}"
        raise conflict(plural, name, why)
    if new.get("resourceVersion", old["resourceVersion"]) != old["resourceVersion"]:
        raise conflict(plural, name)
    if new.get("name", name) != name:
        raise bad_request("the name of the object does not match the name on the URL")
    result = {**new, "resourceVersion": old["resourceVersion"]}
    for key in KEPT:
        result.pop(key, None)
        if key in old:
            result[key] = old[key]
    return result


def _check_fixed(before: Object, after: Object) -> None:
    """Refuse what may not change in a pod."""
    if _fixed(before["spec"]) != _fixed(after.get("spec") or {}):
        name = before["metadata"]["name"]
        raise invalid("Pod", name, [("FieldValueForbidden", POD_IS_FIXED, "spec")])


def _fixed(spec: dict[str, Any]) -> dict[str, Any]:
    free = {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"}
    result = {key: value for key, value in spec.items() if key not in free}
    for part in ("containers", "initContainers"):
        if result.get(part):
            result[part] = [{**one, "image": ""} for one in result[part]]
    return result
