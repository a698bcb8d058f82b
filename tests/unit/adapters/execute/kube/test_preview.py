"""What pods take, before there is a job."""

from __future__ import annotations

from decimal import Decimal

import pytest

from datatask import CallerError, Resources
from datatask.adapters.execute.base.templates import Template
from datatask.adapters.execute.kube.preview import Unknown, requests_of, sketch

# --- templates without a job --------------------------------------------------------------------------

MANIFEST = """
kind: Pod
spec:
  containers:
    - name: main
      image: "{{ image }}"
      args: ["{{ job }}", {{ inp.title | json }}, {{ inp | yaml }}]
      resources: {requests: {cpu: CPU, memory: 1Gi}}
"""


def asked(cpu: str) -> Resources:
    """Return what the template's pods take."""
    scope = {"image": "x", "inp": Unknown()}
    return requests_of(sketch(Template(MANIFEST.replace("CPU", cpu), where="t"), scope, "t"), "t")


def test_what_pods_take_is_known_before_there_is_a_job() -> None:
    """Where the requests are the same for all."""
    assert asked("100m").cpu == Decimal("0.1")


@pytest.mark.parametrize("cpu", ["'{{ inp.cores }}'", "{{ inp.cores * 2 }}"])
def test_requests_that_depend_on_the_job_are_told(cpu: str) -> None:
    """With the remedy."""
    with pytest.raises(CallerError, match="depends on the job; pass job_resources="):
        asked(cpu)


def test_a_name_that_is_not_there_is_told_at_once() -> None:
    """Not only when the first job comes."""
    with pytest.raises(CallerError, match="'nothing' is undefined"):
        asked("{{ nothing }}")
