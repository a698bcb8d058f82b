"""Volumes: in comes a pod, out goes what the node says of the first one that it cannot mount."""

from __future__ import annotations

from typing import Any

from tests.kube.api.kinds import BY_PATH
from tests.kube.api.storage import Storage

Object = dict[str, Any]


def missing(storage: Storage, pod: Object) -> str:
    """Return why a volume cannot be mounted, empty where all can."""
    for volume in pod["spec"].get("volumes") or ():
        if why := _why(storage, pod["metadata"]["namespace"], volume):
            return f'MountVolume.SetUp failed for volume "{volume["name"]}" : {why}'
    return ""


def _why(storage: Storage, namespace: str, volume: Object) -> str:
    for part, key, plural in (("secret", "secretName", "secrets"), ("configMap", "name", "configmaps")):
        told = volume.get(part)
        if told is None or told.get("optional"):
            continue
        found = storage.find(BY_PATH["", "v1", plural], namespace, told[key])
        if found is None:
            return f'{part.lower()} "{told[key]}" not found'
        for item in told.get("items") or ():
            if item["key"] not in (found.get("data") or {}):
                return f"references non-existent {part.lower()} key: {item['key']}"
    host = volume.get("hostPath") or {}
    if host.get("type") == "Directory" and "absent" in host["path"]:
        return f"hostPath type check failed: {host['path']} is not a directory"
    return ""


def unclaimed(storage: Storage, pod: Object) -> str:
    """Return the name of a claim that a pod names and that is not there."""
    for volume in pod["spec"].get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        kind = BY_PATH["", "v1", "persistentvolumeclaims"]
        if name and storage.find(kind, pod["metadata"]["namespace"], name) is None:
            return str(name)
    return ""
