"""OpenLineage: what is exported validates against the published schemas, and tells the story of the runs."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from datatask.adapters.history.export.openlineage import EVENT_TYPES, FACETS
from datatask.adapters.history.history import History
from datatask.schema.events import Ending
from tests.integration.cli_kit import Project
from tests.integration.test_cli_lineage import ACROSS

SCHEMAS = Path(__file__).parents[1] / "schemas" / "openlineage"
CORE = json.loads((SCHEMAS / "OpenLineage.json").read_text())
FACET_SCHEMAS = {
    "parent": "ParentRunFacet",
    "nominalTime": "NominalTimeRunFacet",
    "errorMessage": "ErrorMessageRunFacet",
    "processing_engine": "ProcessingEngineRunFacet",
    "jobType": "JobTypeJobFacet",
    "dataSource": "DatasourceDatasetFacet",
    "version": "DatasetVersionDatasetFacet",
}


def _core(uri: str) -> Resource[Any]:
    """Facets refer to the core by older numbers: each is answered with the one that is here."""
    assert uri.startswith("https://openlineage.io/spec/")
    assert uri.endswith("/OpenLineage.json")
    return Resource.from_contents(CORE)


REGISTRY: Registry[Any] = Registry(retrieve=_core)  # type: ignore[call-arg]  # made by attrs


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(
        schema, registry=REGISTRY, format_checker=FormatChecker(["uuid", "uri", "date-time"])
    )


EVENT = _validator(CORE)
BY_FACET = {
    facet: _validator(json.loads((SCHEMAS / f"{name}.json").read_text()))
    for facet, name in FACET_SCHEMAS.items()
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("openlineage"), ACROSS)
    project.ok("inject", "double.numbers", "one", stdin=b"n: 1")
    project.ok("inject", "double.numbers", "two", stdin=b"n: 2")
    project.ok("inject", "double.numbers", "bad", stdin=b"m: 1")
    project.ok("inject", "bill.owner", "ada", stdin=b"one")
    project.call("run")
    project.ok("inject", "total.start", "all", stdin=b"of: [one, two]")
    project.call("run")
    return project


def _events(project: Project, *filters: str) -> list[dict[str, Any]]:
    lines = project.ok("export", "-", "--format", "openlineage", *filters).lines
    return [json.loads(line) for line in lines]


def _of(events: list[dict[str, Any]], task: str, job: str) -> list[dict[str, Any]]:
    return [
        event
        for event in events
        if event["job"]["name"] == task and event["run"]["facets"]["datatask_run"]["job"] == job
    ]


def _facets(event: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    parts = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
    return [pair for part in parts for pair in part["facets"].items()]


def test_every_event_validates(project: Project) -> None:
    """Against the core specification, formats too, and each facet against its own."""
    events = _events(project)
    assert events
    for event in events:
        EVENT.validate(event)
        for name, facet in _facets(event):
            if name in BY_FACET:
                BY_FACET[name].validate({name: facet})
            else:
                assert name in ("datatask_run", "datatask_values")
    assert {name for event in events for name, _ in _facets(event)} == FACETS.keys()


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("eventTime",), "yesterday"),
        (("run", "runId"), "one"),
        (("eventType",), "DONE"),
        (("producer",), "no uri"),
        (("job", "facets", "jobType"), {"processingType": "BATCH"}),
    ],
)
def test_the_schemas_refuse_what_is_wrong(project: Project, path: tuple[str, ...], wrong: object) -> None:
    """The validation above can fail."""
    event = _events(project)[0]
    part = event
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = wrong
    with pytest.raises(ValidationError):
        EVENT.validate(event)


def test_each_run_starts_once_and_ends_once(project: Project) -> None:
    """A START and one of COMPLETE, FAIL, ABORT a run; nothing else, and not before the start."""
    told: dict[str, list[str]] = {}
    for event in _events(project):
        told.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert all(kinds[0] == "START" and len(kinds) == 2 for kinds in told.values()), told
    with History(project.log) as history:
        runs = Counter(row["state"] for row in history.query("SELECT state FROM runs"))
    ended = Counter(
        event["run"]["facets"]["datatask_run"]["outcome"]
        for event in _events(project)
        if event["eventType"] != "START" and "datatask_run" in event["run"]["facets"]
    )
    assert ended == runs


def test_every_outcome_has_a_word() -> None:
    """A new outcome needs one."""
    (outcome,) = [field for field in Ending.__annotations__.items() if field[0] == "outcome"]
    assert outcome
    from typing import get_args

    from datatask.schema.events import Outcome

    assert EVENT_TYPES.keys() == set(get_args(Outcome))


def test_datasets_are_what_a_run_read_and_wrote(project: Project) -> None:
    """Repositories by name, with the jobs, positions and digests of the values in a facet."""
    end = _of(_events(project), "total", "all")[-1]
    inputs = {dataset["name"]: dataset["facets"] for dataset in end["inputs"]}
    assert inputs.keys() == {"start", "doubled"}
    values = inputs["doubled"]["datatask_values"]["values"]
    assert sorted(value["job"] for value in values) == ["one", "two"]
    assert all(value["read"] and not value["decided"] for value in values)
    (start,) = inputs["start"]["datatask_values"]["values"]
    assert (start["link"], start["decided"], start["read"]) == ("start", True, True)
    outputs = {dataset["name"]: dataset["facets"] for dataset in end["outputs"]}
    assert outputs.keys() == {"sums", "total.done"}
    (value,) = outputs["sums"]["datatask_values"]["values"]
    assert outputs["sums"]["version"]["datasetVersion"] == f"sha256:{value['digest']}"


def test_values_of_other_jobs_are_the_runs(project: Project) -> None:
    """What a run wrote under other jobs' names is in its outputs."""
    end = _of(_events(project), "double", "two")[-1]
    parts = next(dataset for dataset in end["outputs"] if dataset["name"] == "parts")
    assert parts["facets"]["datatask_values"]["count"] == 2


def test_failures_say_what_went_wrong(project: Project) -> None:
    """FAIL with message and trace."""
    start, end = _of(_events(project), "double", "bad")
    assert (start["eventType"], end["eventType"]) == ("START", "FAIL")
    assert end["run"]["facets"]["errorMessage"]["message"].startswith("KeyError")
    assert "Traceback" in end["run"]["facets"]["errorMessage"]["stackTrace"]


def test_ids_are_stable_and_runs_name_their_session(project: Project) -> None:
    """UUIDs of version 5, the same in each export; the parent is a session that was told itself."""
    events = _events(project)
    assert events == _events(project)
    ids = {event["run"]["runId"] for event in events}
    assert {uuid.UUID(id).version for id in ids} == {5}
    parents = {
        event["run"]["facets"]["parent"]["run"]["runId"]
        for event in events
        if "parent" in event["run"]["facets"]
    }
    assert parents
    assert parents <= ids


def test_filtered_by_task_and_job(project: Project) -> None:
    """Only these runs, and no sessions; the ids are those of the whole."""
    whole = {event["run"]["runId"] for event in _events(project)}
    found = _events(project, "--task", "double", "--job", "one")
    assert [event["eventType"] for event in found] == ["START", "COMPLETE"]
    assert {event["run"]["runId"] for event in found} <= whole


def test_open_runs_have_a_start_only(project: Project) -> None:
    """As of a position at which a run was going, it has started and not ended."""
    with History(project.log) as history:
        (row,) = history.query("SELECT position FROM events WHERE kind = 'RunStarted' AND job = 'all'")
    found = _of(_events(project, "--at", str(row["position"]), "--job", "all"), "total", "all")
    assert [event["eventType"] for event in found] == ["START"]
