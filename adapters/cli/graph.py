"""`graph`: tasks and repositories as recorded, for people, for Mermaid, for Graphviz, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import click

from datatask.adapters.cli.commands import WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import declared_state, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.engine.core.expressions import set_text
from datatask.engine.core.state import State
from datatask.schema import definition as d
from datatask.schema.troubles import shown

FORMS = ("text", "mermaid", "dot", "json")


class Edge(NamedTuple):
    """One link as an arrow; `needs` is what its membership means for the task's start."""

    task: str
    link: str
    repository: str
    into: bool
    out: bool
    inhibits: bool


@command(
    "graph",
    example="datatask graph\ndatatask graph --format mermaid > pipeline.mmd\ndatatask -p pipeline.py graph\n"
    "datatask graph --at 2026-03-01",
)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option(
    "--format", "form", type=click.Choice(FORMS), default="text", show_default=True, help="How to draw."
)
def graph(settings: Settings, form: str, at: When | None) -> None:
    """Draw tasks and repositories.

    The definition is that of the log (with --at: the one in force then), or of the pipeline that -p names, which
    need not have run.
    """
    output = Output(settings)
    if settings.names_pipeline and at is None:
        state = declared_state(settings.load_pipeline())
    else:
        with recorded(settings, at) as log:
            state = log.state
    edges = list(edges_of(state.definition))
    if output.json or form == "json":
        output.document(_document(state, edges))
        return
    for line in {"text": _text, "mermaid": _mermaid, "dot": _dot}[form](state, edges):
        output.line(line)


def edges_of(definition: d.PipelineDef) -> Iterable[Edge]:
    """Yield the links as arrows, in order of declaration."""
    for task in definition.tasks:
        for link in task.links:
            into = link.is_input or link.required_for_start or link.inhibits_start
            out = not into or link.is_output or link.is_status
            yield Edge(task.name, link.name, set_text(link.expr), into, out, link.inhibits_start)


def _document(state: State, edges: list[Edge]) -> dict[str, Any]:
    return {
        "tasks": [{"name": task.name, "kind": task.kind} for task in state.definition.tasks],
        "repositories": [
            {"id": leaf.id, "kind": leaf.kind, "medium": leaf.medium}
            for leaf in state.definition.repositories
        ],
        "links": [
            {
                "task": task.name,
                "link": link.name,
                "repository": set_text(link.expr),
                "kinds": [kind for kind in shapes.KINDS if getattr(link, kind)],
            }
            for task in state.definition.tasks
            for link in task.links
        ],
    }


def _text(state: State, edges: list[Edge]) -> Iterable[str]:
    for task in state.definition.tasks:
        yield shown(f"{task.name} ({task.kind})")
        for edge in edges:
            if edge.task == task.name:
                arrow = "<->" if edge.into and edge.out else "<--" if edge.into else "-->"
                note = " (inhibits)" if edge.inhibits else ""
                yield shown(f"  {arrow} {edge.link}: {edge.repository}{note}")
        yield ""


def _mermaid(state: State, edges: list[Edge]) -> Iterable[str]:
    names = _numbers(edges)
    yield "flowchart LR"
    for number, task in enumerate(state.definition.tasks):
        yield f'  t{number}["{_quoted(task.name)}"]'
    for repository, name in names.items():
        yield f'  {name}[("{_quoted(repository)}")]'
    tasks = {task.name: f"t{number}" for number, task in enumerate(state.definition.tasks)}
    for edge in edges:
        label = _quoted(edge.link)
        arrow = "-.-x" if edge.inhibits else "-->"
        if edge.into:
            yield f'  {names[edge.repository]} {arrow}|"{label}"| {tasks[edge.task]}'
        if edge.out:
            yield f'  {tasks[edge.task]} -->|"{label}"| {names[edge.repository]}'


def _dot(state: State, edges: list[Edge]) -> Iterable[str]:
    names = _numbers(edges)
    yield "digraph pipeline {"
    yield "  rankdir=LR;"
    tasks = {}
    for number, task in enumerate(state.definition.tasks):
        tasks[task.name] = f"t{number}"
        yield f'  t{number} [label="{_escaped(task.name)}", shape=box];'
    for repository, name in names.items():
        yield f'  {name} [label="{_escaped(repository)}", shape=cylinder];'
    for edge in edges:
        style = ", style=dashed" if edge.inhibits else ""
        if edge.into:
            yield f'  {names[edge.repository]} -> {tasks[edge.task]} [label="{_escaped(edge.link)}"{style}];'
        if edge.out:
            yield f'  {tasks[edge.task]} -> {names[edge.repository]} [label="{_escaped(edge.link)}"];'
    yield "}"


def _numbers(edges: list[Edge]) -> dict[str, str]:
    return {
        name: f"r{number}" for number, name in enumerate(dict.fromkeys(edge.repository for edge in edges))
    }


def _quoted(text: str) -> str:
    return shown(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str) -> str:
    return shown(text).replace("\\", "\\\\").replace('"', '\\"')
