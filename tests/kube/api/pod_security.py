"""The restricted pod security standard: in comes a pod, out goes what it violates, in the server's words."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
LABEL = "pod-security.kubernetes.io"


def violations(pod: Object) -> str:
    """Return what a pod violates, empty for a pod that the standard accepts."""
    spec = pod["spec"]
    own = spec.get("securityContext") or {}
    contexts = {
        one["name"]: one.get("securityContext") or {}
        for part in ("initContainers", "containers")
        for one in spec.get(part) or ()
    }

    def told(names: list[str]) -> str:
        quoted = ", ".join(f'"{name}"' for name in names)
        return f"containers {quoted}" if len(names) > 1 else f"container {quoted}"

    found = []
    if names := [name for name, one in contexts.items() if one.get("allowPrivilegeEscalation") is not False]:
        rule = "must set securityContext.allowPrivilegeEscalation=false"
        found.append(f"allowPrivilegeEscalation != false ({told(names)} {rule})")
    if names := [
        name
        for name, one in contexts.items()
        if "ALL" not in ((one.get("capabilities") or {}).get("drop") or ())
    ]:
        rule = 'must set securityContext.capabilities.drop=["ALL"]'
        found.append(f"unrestricted capabilities ({told(names)} {rule})")
    if not own.get("runAsNonRoot"):
        if names := [name for name, one in contexts.items() if not one.get("runAsNonRoot")]:
            rule = "must set securityContext.runAsNonRoot=true"
            found.append(f"runAsNonRoot != true (pod or {told(names)} {rule})")
    fine = ("RuntimeDefault", "Localhost")
    if (own.get("seccompProfile") or {}).get("type") not in fine:
        if names := [
            name
            for name, one in contexts.items()
            if (one.get("seccompProfile") or {}).get("type") not in fine
        ]:
            rule = 'must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost"'
            found.append(f"seccompProfile (pod or {told(names)} {rule})")
    return f'violate PodSecurity "restricted:latest": {", ".join(found)}' if found else ""
