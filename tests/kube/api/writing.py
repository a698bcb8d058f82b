"""Writes: in come creates, replaces and patches, out go stored objects, or the server's refusals, in the server's order."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from tests.kube.api import decoding, patching, resizing, validation
from tests.kube.api.admission import Admission, complete_limit_range
from tests.kube.api.deleting import NAMESPACES, PODS, finish, namespace_of
from tests.kube.api.kinds import Kind
from tests.kube.api.requests import Asked
from tests.kube.api.statuses import Refusal, cause, invalid, modified, not_found
from tests.kube.api.storage import Storage, now

Object = dict[str, Any]
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
IMMUTABLE = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


class Writer:
    """Stores what is sent. `owners` are the managers of labels and annotations, by uid and path."""

    def __init__(self, storage: Storage, admission: Admission) -> None:
        self.storage = storage
        self.admission = admission
        self.owners: dict[str, dict[str, str]] = defaultdict(dict)
        self.room: dict[str, Any] | None = None
        """What the node has, which bounds resizes; None without a node."""

    def create(self, asked: Asked, kind: Kind, data: bytes) -> tuple[Object, list[str]]:
        """Return the new object and what the server warns of, such as fields that nobody knows."""
        found = decoding.read_object(data, kind, asked.request.content_type)
        found, unknown = self._known(asked, kind, found)
        metadata = found["metadata"] = {
            key: value
            for key, value in found["metadata"].items()
            if key not in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generation")
        }
        if kind.is_namespaced:
            if metadata.setdefault("namespace", asked.namespace) != asked.namespace:
                message = (
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
                raise Refusal(400, message)
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"][:58] + "".join(random.choices(_LETTERS, k=5))
        name = metadata.get("name", "")
        if kind.is_namespaced:
            self.admission.namespace(kind.plural, name, asked.namespace)
        if kind == NAMESPACES:
            fresh = namespace_of(name)
            fresh["metadata"] = {
                **metadata,
                "labels": {**(metadata.get("labels") or {}), **fresh["metadata"]["labels"]},
            }
            found = fresh
        self._complete(kind, found)
        validation.check(found, kind)
        if kind == PODS:
            self.admission.pod(found, asked.namespace)
            found["status"] = {"phase": "Pending", "qosClass": validation.quality(found)}
            unknown = [*unknown, *self.admission.warnings(found, asked.namespace)]
        if (there := self.storage.find(kind, asked.namespace, name)) is not None:
            ends = "object is being deleted: " if there["metadata"].get("deletionTimestamp") else ""
            raise Refusal(
                409,
                f'{ends}{kind.plural} "{name}" already exists',
                "AlreadyExists",
                details={"name": name, "kind": kind.plural},
            )
        if asked.is_dry:
            return {**found, "metadata": {**metadata, "uid": "dry", "creationTimestamp": now()}}, unknown
        made = self.storage.create(kind, found)
        self._own(made, {}, asked)
        return made, unknown

    def _complete(self, kind: Kind, found: Object) -> None:
        if kind == PODS:
            validation.default_pod(found)
            found["metadata"]["generation"] = 1
        elif kind.plural == "limitranges":
            complete_limit_range(found)

    def _known(self, asked: Asked, kind: Kind, found: Object) -> tuple[Object, list[str]]:
        kept, unknown = decoding.known(found, kind)
        how = asked.query.get("fieldValidation", "Warn")
        if unknown and how == "Strict":
            told = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise decoding.cannot_be_handled(kind, f"strict decoding error: {told}")
        decoding.check_quantities(kept, kind)
        return kept, [f'unknown field "{path}"' for path in unknown] if how == "Warn" else []

    def replace(self, asked: Asked, kind: Kind, data: bytes) -> Object:
        """Return the object as it is now."""
        before = self.storage.get(kind, asked.namespace, asked.name)
        found, _ = self._known(asked, kind, decoding.read_object(data, kind, asked.request.content_type))
        if found["metadata"].get("name", asked.name) != asked.name:
            message = (
                f"the name of the object ({found['metadata']['name']}) does not match the name on the URL"
            )
            raise Refusal(400, f"{message} ({asked.name})")
        return self._store(asked, kind, before, found)

    def patch(self, asked: Asked, kind: Kind, data: bytes) -> Object:
        """Return the object as it is now."""
        how = asked.request.content_type
        if how not in (patching.JSON, patching.MERGE, patching.STRATEGIC, patching.APPLY):
            raise Refusal(415, "415: Unsupported Media Type", details={})
        patch = decoding.read_body(data, how)
        before = self.storage.find(kind, asked.namespace, asked.name)
        if before is None:
            if how != patching.APPLY:
                raise not_found(kind.plural, asked.name)
            return self.create(asked, kind, data)[0]
        if asked.part == "resize":
            found = (
                patching.strategic(before, patch)
                if how == patching.STRATEGIC
                else patching.merge(before, patch)
            )
            made = resizing.resized(before, found, self.room)
            return before if asked.is_dry else self.storage.update(kind, made)
        if how == patching.JSON:
            found = patching.json_patch(before, patch)
        elif how == patching.MERGE:
            found = patching.merge(before, patch)
        else:
            if how == patching.APPLY and not asked.is_set("force"):
                told = {
                    "metadata": {key: patch["metadata"].get(key) or {} for key in ("labels", "annotations")}
                }
                owners = self.owners[before["metadata"]["uid"]]
                patching.check_owners(before, told, owners, self._manager(asked))
            found = patching.strategic(before, patch)
        found, _ = self._known(asked, kind, found)
        return self._store(asked, kind, before, found)

    def _store(self, asked: Asked, kind: Kind, before: Object, found: Object) -> Object:
        """Store a new version, unless somebody was faster, or it changes what must not change."""
        name, old, new = asked.name, before["metadata"], dict(found["metadata"])
        if new.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise modified(kind.plural, name)
        if new.get("uid") not in (None, "", old["uid"]):
            message = f'Operation cannot be fulfilled on {kind.plural} "{name}": Precondition failed: UID in precondition: '
            message += f"{new['uid']}, UID in object meta: {old['uid']}"
            raise Refusal(409, message, details={"name": name, "kind": kind.plural})
        for key in (
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ):
            if key in old:
                new[key] = old[key]
            else:
                new.pop(key, None)
        if asked.part == "status":
            found = {
                **before,
                "metadata": old,
                "status": {**(before.get("status") or {}), **(found.get("status") or {})},
            }
        else:
            found = {**found, "metadata": new}
            if "status" in before:
                found["status"] = before["status"]
            self._complete(kind, found)
            found["metadata"]["generation"] = old.get("generation", 1)
            if kind != PODS:
                del found["metadata"]["generation"]
            self._may_change(kind, name, before, found)
            validation.check(found, kind)
        same = {
            **found,
            "metadata": {**found["metadata"], "resourceVersion": old["resourceVersion"]},
        } == before
        if asked.is_dry or same:
            return before if same else found
        stored = self.storage.update(kind, found)
        self._own(stored, before, asked)
        return finish(self.storage, kind, stored)

    def _may_change(self, kind: Kind, name: str, before: Object, found: Object) -> None:
        if kind != PODS:
            return
        if _fixed(before["spec"]) != _fixed(found["spec"]):
            raise invalid("Pod", name, [cause("FieldValueForbidden", IMMUTABLE, "spec")])
        held = set(before["metadata"].get("finalizers") or ())
        added = set(found["metadata"].get("finalizers") or ()) - held
        if before["metadata"].get("deletionTimestamp") and added:
            why = f'Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{"{min(added)}"}}'
            raise invalid("Pod", name, [cause("FieldValueForbidden", why, "metadata.finalizers")])

    def _manager(self, asked: Asked) -> str:
        agent = asked.request.headers.get("User-Agent", "unknown")
        return asked.query.get("fieldManager") or agent.partition("/")[0]

    def _own(self, found: Object, before: Object, asked: Asked) -> None:
        """Remember who set labels and annotations."""

        def told(one: Object) -> Object:
            metadata = one.get("metadata") or {}
            return patching.leaves(
                {"metadata": {key: metadata.get(key) or {} for key in ("labels", "annotations")}}
            )

        new, old = told(found), told(before)
        if new == old:
            return
        owners = self.owners[found["metadata"]["uid"]]
        for path, value in new.items():
            if old.get(path) != value and value != {}:
                owners[path] = self._manager(asked)


def _fixed(spec: Object) -> Object:
    """Return what a pod's spec must keep."""
    kept = {key: value for key, value in spec.items() if key not in _MUTABLE}
    for part in ("containers", "initContainers"):
        kept[part] = [{k: v for k, v in one.items() if k != "image"} for one in spec.get(part) or ()]
    return kept
