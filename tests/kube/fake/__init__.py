"""A Kubernetes cluster for tests: an API server that speaks real HTTP on loopback, and two kubelets.

In: requests as kubernetes_asyncio sends them. Out: what a v1.36 cluster answered to the same, by tests/kube/recordings.

    async with FakeCluster() as cluster:                      # the API server, and nobody to run pods
    async with FakeCluster(kubelet="toy") as cluster:         # containers are local processes
    async with FakeCluster(kubelet="null", ...) as cluster:   # pods run and end by the clock, for measuring
        manager = PodManager("app", "default", cluster.kubeconfig)

`python -m tests.kube.server --kubelet null` is the same in a process of its own and prints its URL.

- `cluster.py`: FakeCluster, the door; its attributes are a test's hands on the cluster
- `server.py`: from an HTTP request to an answer; `resources.py` what is served, `identities.py` who may ask
- `storing.py`: objects, versions, history; `listing.py`, `watching.py`, `selectors.py`: reading them
- `writing.py`: create, replace, patch, delete; `patches.py`; `deleting.py` grace, finalizers, evictions, namespaces
- `admitting.py`: defaults and validation of pods; `limits.py` quotas and limit ranges; `quantities.py`
- `refusals.py`: bodies of errors; `faults.py`: errors on demand, by verb, resource and count
- `logs.py`, `executing.py`: what containers say, and commands in them
- `nodes.py`, `kubelet.py`, `containers.py`, `statuses.py`: the toy kubelet; `null.py`: the one for measuring
- `player.py`: recorded watch streams, told again, in their order or another that Kubernetes allows

kmock 0.8 (PyPI) was tried first. It is alive, but it passed 2 of the 29 checks that the real server passes: it has no
selectors, resourceVersion, 410, grace, paging or PUT, and takes the `watch=True` of kubernetes_asyncio for a list. So this.
"""

from tests.kube.fake.cluster import FakeCluster

__all__ = ["FakeCluster"]
