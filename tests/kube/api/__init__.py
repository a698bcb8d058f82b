"""A Kubernetes API server for tests, with kubelets: in comes HTTP, out goes what a v1.36 cluster answers, word for word.

`storage` keeps objects and their history; `server` speaks HTTP (`serve` starts it); `kubelet` runs containers as local
processes, `null_kubelet` only says so; `player` plays recorded watch streams; `faults` refuse, delay and cut.
kmock 0.8 is not used: it has no selectors, resourceVersion, 410, grace, paging or PUT, and takes `watch=True` for a list.
"""

from tests.kube.api.faults import Fault
from tests.kube.api.server import Server, serve

__all__ = ["Fault", "Server", "serve"]
