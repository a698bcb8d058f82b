"""Wrong and swapped arguments are refused by the constructor that gets them: one line with name, value and remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import datatask
from datatask import (
    STDOUT,
    CallerError,
    DatataskError,
    FileRepository,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    ResourceManager,
    Resources,
    Retry,
    Session,
)

META, BLOB = LogMetadataRepository("meta"), LogBlobRepository("blob")
SAMPLES: dict[str, Any] = {
    "text": "name",
    "path": Path("/data"),
    "flag": True,
    "number": 3,
    "function": lambda job: True,
    "repository": META,
    "blob": BLOB,
    "dict": {},
    "list": [],
    "session": Session(),
    "quota": ResourceManager(Resources.parse("1", "1Gi")),
    "amounts": Resources.parse("1", "1Gi"),
    "retry": Retry(),
    "manager": LocalLinuxManager("app", "/tmp/app"),
    "executor": ThreadPoolExecutor,
    "stdout": STDOUT,
    "bytes": b"x",
    "stranger": object(),
}
TEXT, PATH, FLAG, REPOSITORY = {"text"}, {"text", "path"}, {"flag", "number"}, {"repository", "blob"}
FUNCTION = {"function", "executor"}  # a class can be called, too
COMMON = {"name": TEXT, "was": TEXT, "record": set[str]()}
POLICY: dict[str, set[str]] = {
    **{"disabled": FLAG, "repeat": FLAG, "was": TEXT, "ready": REPOSITORY, "retry": {"retry"}},
    **{"timeout": {"number"}, "grace": {"number"}, "concurrency": FLAG},
}


class Case(NamedTuple):
    """What a constructor takes: enough to be made, and for each argument which samples are right."""

    of: Callable[..., Any]
    made_with: dict[str, Any]
    right: dict[str, set[str]]


FOLDER = {"basedir": PATH, "extension": TEXT, "case_insensitive": FLAG, **COMMON}
BUCKET = {
    **{"url": set[str](), "suffix": TEXT, "mimetype": TEXT, "poll_seconds": {"number"}},
    **{"endpoint": set[str](), "incluster_endpoint": set[str](), **COMMON},
}
CLIENT = {
    **{"client": FUNCTION, "bucket": TEXT, "prefix": TEXT, "suffix": TEXT, "mimetype": TEXT},
    **{"poll_seconds": {"number"}, "name": TEXT, "was": TEXT},
}
TASK = {"name": "task", "done": META}
CASES = [
    Case(FileRepository, {"basedir": "/data"}, FOLDER),
    Case(datatask.DirectoryRepository, {"basedir": "/data"}, {**FOLDER, "discard_empty": FLAG}),
    Case(
        datatask.YamlMetadataFileRepository,
        {"filename": "/data"},
        {"filename": PATH, "extension": TEXT, "case_insensitive": FLAG, **COMMON},
    ),
    *(
        Case(kind, {"url": "s3://bucket/p"}, BUCKET)
        for kind in (datatask.BucketRepository, datatask.YamlMetadataBucketRepository)
    ),
    Case(
        datatask.S3BucketRepository,
        {"client": dict, "bucket": "bucket"},
        {**CLIENT, "incluster_endpoint": set[str]()},
    ),
    Case(datatask.YamlMetadataS3Repository, {"client": dict, "bucket": "bucket", "prefix": "p/"}, CLIENT),
    Case(
        datatask.DockerRepository,
        {"registry": dict, "domain": "localhost:5000", "repository": "image"},
        {**{"registry": FUNCTION, "domain": TEXT, "repository": TEXT, "poll_seconds": {"number"}}, **COMMON},
    ),
    Case(
        datatask.MongoMetadataRepository,
        {"collection": dict, "subcollection": "sub"},
        {"collection": FUNCTION, "subcollection": TEXT, "poll_seconds": {"number"}, **COMMON},
    ),
    Case(LogMetadataRepository, {}, {"name": TEXT, "was": TEXT}),
    Case(LogBlobRepository, {}, {"name": TEXT, "was": TEXT}),
    Case(datatask.InProcessMetadataRepository, {}, {"data": {"dict"}, **COMMON}),
    Case(datatask.InProcessBlobRepository, {}, {"data": {"dict"}, **COMMON}),
    Case(
        datatask.BlockingRepository,
        {"source": META, "unless": META},
        {"source": REPOSITORY, "unless": REPOSITORY, "enumerate_unless": FLAG},
    ),
    Case(
        datatask.MapRepository,
        {"base": META, "func": str},
        {
            "base": REPOSITORY,
            "func": FUNCTION,
            "filt": FUNCTION,
            "allow_deletes": FLAG,
            "name": TEXT,
            "was": TEXT,
        },
    ),
    Case(
        datatask.RelatedItemRepository,
        {"base_repository": META, "translator_repository": META},
        {
            **{"base_repository": REPOSITORY, "translator_repository": REPOSITORY, "allow_deletes": FLAG},
            **{"prefetch_lookup": FLAG, "name": TEXT, "was": TEXT},
        },
    ),
    Case(datatask.AggregateAndRepository, {"a": META}, {"a": REPOSITORY, "wanted": REPOSITORY}),
    Case(datatask.AggregateOrRepository, {"a": META}, {"a": REPOSITORY, "owner": REPOSITORY}),
    Case(
        datatask.Link,
        {"repo": META},
        {
            name: REPOSITORY if name == "repo" else FLAG
            for name in inspect.signature(datatask.Link).parameters
        },
    ),
    Case(
        InProcessSyncTask,
        TASK,
        {"name": TEXT, "done": REPOSITORY, "func": FUNCTION, **POLICY},
    ),
    Case(
        datatask.ExecutorTask,
        {**TASK, "executor": ThreadPoolExecutor},
        {"name": TEXT, "done": REPOSITORY, "func": FUNCTION, "executor": FUNCTION, **POLICY},
    ),
    Case(
        datatask.ProcessTask,
        {
            **{"name": "task", "manager": LocalLinuxManager("app", "/tmp/app"), "resource_manager": None},
            **{"job_resources": SAMPLES["amounts"], "pids": META, "template": "echo"},
        },
        {
            **{"name": TEXT, "manager": {"manager", *FUNCTION}, "resource_manager": {"quota"}},
            **{"job_resources": {"amounts"}, "pids": REPOSITORY, "template": PATH, "window": {"number"}},
            **{"environ": {"dict"}, "done": REPOSITORY, "stdin": REPOSITORY, "stdout": REPOSITORY},
            **{"stderr": {*REPOSITORY, "stdout"}, "enforce": {"flag"}, **POLICY},
        },
    ),
    Case(
        datatask.Gathered,
        {"of": META, "count": 1},
        {
            **{"of": REPOSITORY, "which": set(), "expected": REPOSITORY, "share": set(), "count": {"number"}},
            **{
                "by": {*TEXT, *FUNCTION, *REPOSITORY},
                "late": set(),
                "values": REPOSITORY,
                "job": TEXT,
                "name": TEXT,
                "was": TEXT,
            },
        },
    ),
    Case(
        datatask.Pipeline,
        {"tasks": [], "session": Session()},
        {
            **{"tasks": {"list", "dict"}, "session": {"session"}, "resources": {"list", "dict"}},
            **{"priority": FUNCTION, "name": TEXT},
        },
    ),
    Case(
        ResourceManager,
        {"quota": SAMPLES["amounts"]},
        {"quota": {"amounts"}, "name": TEXT, "window": {"number"}, "starvation_after": {"number"}},
    ),
    Case(LocalLinuxManager, {"app": "app"}, {"app": TEXT, "local_path": PATH}),
]


def wrong() -> list[Any]:
    """Each argument of each constructor, with each sample that is wrong there."""
    return [
        pytest.param(case, name, sample, id=f"{case.of.__name__}-{name}-{sample}")
        for case in CASES
        for name, right in case.right.items()
        for sample in SAMPLES
        if sample not in right
    ]


@pytest.mark.parametrize(("case", "name", "sample"), wrong())
def test_a_wrong_argument_is_refused_by_name(case: Case, name: str, sample: str) -> None:
    case.of(**case.made_with)
    with pytest.raises(DatataskError) as caught:
        case.of(**{**case.made_with, name: SAMPLES[sample]})
    error = caught.value
    assert isinstance(error, CallerError)
    assert "\n" not in str(error)
    words = (name, "executor") if name == "func" else (name, name.rstrip("s"), *NAMED.get(name, ()))
    assert any(word in str(error) for word in words), error


NAMED = {
    "record": ("record",),
    "registry": ("url",),
    "environ": ("environment",),
    "app": ("app",),
    "name": ("name",),
}


@pytest.mark.parametrize(
    "of", [FileRepository, datatask.DirectoryRepository, datatask.YamlMetadataFileRepository]
)
@pytest.mark.parametrize("folder", [Path("/data/in"), "/data/in"])
def test_a_folder_in_place_of_the_extension_is_refused_with_the_remedy(of: Any, folder: Any) -> None:
    """As in `FileRepository("name", folder)`."""
    with pytest.raises(CallerError, match=r"extension is .*/data/in") as caught:
        of("name", folder)
    assert caught.value.where == of.__name__
    assert f"{of.__name__}(folder, '.txt', name='…')" in caught.value.remedy


def test_every_public_constructor_of_repositories_tasks_and_quotas_is_tried() -> None:
    """Abstract ones are through their subclasses; SSH and Kubernetes have tests of their own."""
    kinds = (datatask.Repository, datatask.Task, datatask.Pipeline, ResourceManager)
    elsewhere = {"ViewRepository", "FileRepositoryBase"}
    public = {
        name
        for name in datatask.__all__
        if inspect.isclass(kind := getattr(datatask, name))
        and issubclass(kind, kinds)
        and not inspect.isabstract(kind)
        and "Kube" not in name
    }
    assert public - elsewhere <= {case.of.__name__ for case in CASES}
