"""The manifest of a task before there is a job: its template is checked, and the resources of its pods are counted.

In: a template's text and its scope. Out: the manifest, with a mark in place of each value of the job, and `Resources` (see
`amounts`). Where a request is missing, or depends on the job, that is an error.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2

from datatask.adapters.execute.base.templates import Lazy, Template, as_yaml
from datatask.adapters.execute.kube.amounts import resources_of
from datatask.adapters.execute.kube.manifests import Manifest, parse_manifest
from datatask.schema.errors import CallerError, NotPossibleError
from datatask.schema.resources import Resources

MARK = "of-the-job"


class Unknown:
    """Stands for a value that only a job has."""

    def __str__(self) -> str:
        return MARK

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: object) -> Unknown:
        return self

    def __call__(self, *_: object, **__: object) -> Unknown:
        return self

    def __iter__(self) -> Iterator[Unknown]:
        yield self


def _as_yaml(value: object) -> str:
    return MARK if isinstance(value, Unknown) else as_yaml(value)


_jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
_jinja.filters |= {"sh": str, "json": lambda value: json.dumps(value, default=str), "yaml": _as_yaml}


def sketch(template: Template, scope: Mapping[str, Any], where: str) -> Manifest | None:
    """Return the manifest with marks; None where the template cannot be rendered without a job."""
    template.compile()
    known = {name: Unknown() if _is_later(value) else value for name, value in scope.items()}
    try:
        text = _jinja.from_string(template.text()).render(known | {"job": Unknown()})
    except jinja2.UndefinedError as error:
        raise CallerError(f"the template uses what there is not: {error.message}", where=where) from error
    except Exception:
        return None  # it computes with a job's values
    return parse_manifest(text, where)


def requests_of(manifest: Manifest | None, where: str) -> Resources:
    """Return what each pod of the task takes; `CallerError` where it says nothing, or something else for each job."""
    remedy = "pass job_resources=, the most that one pod of the task takes"
    if manifest is None:
        raise NotPossibleError("what its pods take depends on the job", where=where, remedy=remedy)
    try:
        return resources_of(manifest, where)
    except CallerError as error:
        if MARK in error.what:
            raise NotPossibleError(
                "what its pods take depends on the job", where=where, remedy=remedy
            ) from error
        raise


def _is_later(value: object) -> bool:
    return isinstance(value, Lazy) or inspect.isawaitable(value)
