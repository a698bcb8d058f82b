"""What a run's pod is called, and what is written on it so that it is found again.

In: application, task, job and a run's identity. Out: a DNS-1123 label, readable at its front and unique by a digest at
its end; labels, by which pods are listed; annotations, which hold the true ids. The same run has the same name for
ever, so a create that may or may not have arrived is repeated without harm.
"""

from __future__ import annotations

import base64
import hashlib
import re

from datatask.adapters.execute.kube.pods import Pod

LENGTH_MAX = 63
DIGEST_LENGTH = 16
DOMAIN = "datatask.io"
APP, LOG = f"{DOMAIN}/app", f"{DOMAIN}/log"
TASK, JOB, RUN, HOME = f"{DOMAIN}/task", f"{DOMAIN}/job", f"{DOMAIN}/run", f"{DOMAIN}/log-url"
TOMBSTONE = f"{DOMAIN}/tombstone"
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
    """Return the identity of the run whose pod it is; the empty string for a pod that is none of ours."""
    return pod.annotation(RUN)


def _slug(text: str) -> str:
    return _OTHER.sub("-", text.lower()).strip("-")


def is_dns_label(text: str) -> bool:
    """Whether a text is a DNS-1123 label, as namespaces' names are."""
    return re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text, re.ASCII) is not None
