"""Eight edits of one small pipeline, beside others: which of its stages does each tool run again, and which should it?

    python -m benchmarks.edits [TOOL ...]

Three files: `one` makes one.txt of input.txt with a function (a script where the tool has no functions) that takes a constant from a
helper module; `two` makes two.txt of it with a shell command that has a variable of its environment. Each tool has the pipeline as its
own introduction writes such; scripts are among the dependencies. Each stage notes that it ran. Prints, by tool and edit, what ran,
and `wrong` (a result is out of date) or `needless`. The others are installed as for `benchmarks.peers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers import interpreter

LIMIT_SECONDS = 180
PINNED = {
    "snakemake": "snakemake==9.27.1",
    "doit": "doit==0.37.0",
    "dvc": "dvc==3.67.1",
    "redun": "redun==0.44.1",
}


@dataclass(frozen=True)
class Project:
    """The pipeline after some edits."""

    text: str = "some words"
    comment: str = ""
    factor: int = 2
    first: str = "one"
    stages: int = 2
    mode: str = "plain"

    def helper(self) -> str:
        return f"FACTOR = {self.factor}\n"

    def script(self) -> str:
        """A script that makes one.txt, for tools whose stages are commands."""
        return textwrap.dedent(
            f"""
            from helper import FACTOR

            {self.comment}
            text = open("input.txt").read().strip() * FACTOR
            open("one.txt", "w").write(text)
            open("ran", "a").write("one ")
            """
        )

    def commands(self) -> list[tuple[str, str, str, str]]:
        """The stages that are shell commands: name, input, output, command."""
        found = [("two", "one.txt", "two.txt", "(cat one.txt; echo $MODE) > two.txt; printf 'two ' >> ran")]
        if self.stages > 2:
            found.append(
                ("three", "two.txt", "three.txt", "wc -c < two.txt > three.txt; printf 'three ' >> ran")
            )
        return found


EDITS: dict[str, tuple[Callable[[Project], Project], str]] = {
    "input content": (lambda p: replace(p, text="other words"), "one two"),
    "touch": (lambda p: p, ""),
    "comment": (lambda p: replace(p, comment="# a comment"), ""),
    "constant in a helper": (lambda p: replace(p, factor=3), "one two"),
    "added stage": (lambda p: replace(p, stages=3), "three"),
    "renamed task": (lambda p: replace(p, first="first"), ""),
    "environment": (lambda p: replace(p, mode="other"), "two"),
    "same result upstream": (lambda p: replace(p, text="  some words  "), "one"),
}
"""The edit, and what is to run after it."""


def snakemake(project: Project) -> Mapping[str, str]:
    last = ["two.txt", "three.txt"][project.stages - 2]
    rules = f'rule all:\n    input: "{last}"\n\nrule {project.first}:\n    input: "input.txt"\n    output: "one.txt"\n    script: "one.py"\n'
    for name, source, target, command in project.commands():
        rules += f'\nrule {name}:\n    input: "{source}"\n    output: "{target}"\n    shell: {command!r}\n'
    return {"Snakefile": rules, "one.py": project.script()}


def doit(project: Project) -> Mapping[str, str]:
    tasks = f"""
def task_{project.first}():
    return {{"actions": ["{sys.executable} one.py"], "file_dep": ["input.txt", "one.py"], "targets": ["one.txt"]}}
"""
    for name, source, target, command in project.commands():
        tasks += f"""
def task_{name}():
    return {{"actions": [{command!r}], "file_dep": [{source!r}], "targets": [{target!r}]}}
"""
    return {"dodo.py": tasks, "one.py": project.script()}


def dvc(project: Project) -> Mapping[str, str]:
    stages = {
        project.first: {
            "cmd": f"{sys.executable} one.py",
            "deps": ["input.txt", "one.py"],
            "outs": ["one.txt"],
        }
    }
    for name, source, target, command in project.commands():
        stages[name] = {"cmd": command, "deps": [source], "outs": [target]}
    return {"dvc.yaml": json.dumps({"stages": stages}), "one.py": project.script()}


def redun(project: Project) -> Mapping[str, str]:
    rest = "".join(
        f"""

@task()
def {name}(source: File) -> File:
    subprocess.run({command!r}, shell=True, check=True)
    return File({target!r})
"""
        for name, _, target, command in project.commands()
    )
    calls = f"two({project.first}(source))"
    calls = f"three({calls})" if project.stages > 2 else calls
    code = f"""
import subprocess

from redun import File, task

from helper import FACTOR

redun_namespace = "edits"


@task()
def {project.first}(source: File) -> File:
    {project.comment or "pass"}
    text = source.read().strip() * FACTOR
    target = File("one.txt")
    target.write(text)
    open("ran", "a").write("one ")
    return target
{rest}

@task()
def main(source: File = File("input.txt")) -> File:
    return {calls}
"""
    return {"workflow.py": code.replace("    pass\n", "")}


def datatask(project: Project) -> Mapping[str, str]:
    was = "" if project.first == "one" else ', was="one"'
    code = f"""
import os
from pathlib import Path

import datatask as dt

from helper import FACTOR

here = Path(__file__).parent
source, first, second, third = (dt.FileRepository(here / name, ".txt", name=name) for name in ("a", "b", "c", "d"))
local = dt.LocalLinuxManager("edits", here / "runs")
task = dt.InProcessSyncTask("{project.first}", done=dt.LogMetadataRepository("one.done"), on_change="rerun"{was})
task.link("source", source, is_input=True)
task.link("first", first, is_output=True)


@task
async def make(job, source, first):
    {project.comment or "pass"}
    async with source.open(job) as file:
        text = (await file.read()).strip() * FACTOR
    async with first.open(job, "w") as file:
        await file.write(text)
    with open(here / "ran", "a") as ran:
        ran.write("one ")


def shell(name, inputs, outputs, command):
    made = dt.ProcessTask(
        name, local, dt.ResourceManager(dt.Resources.parse(1, "1Gi")), dt.Resources.parse(1, "100Mi"),
        pids=dt.LogMetadataRepository(name + ".pids"), done=dt.LogMetadataRepository(name + ".done"),
        template=command, stdin=inputs, stdout=outputs, environ={{"MODE": os.environ["MODE"]}} if name == "two" else {{}},
        on_change="rerun",
    )
    return made


two = shell("two", first, second, f"#!/bin/sh\\ncat; echo $MODE; printf 'two ' >> {{here}}/ran")
tasks = [task, two]
if {project.stages} > 2:
    tasks.append(shell("three", second, third, f"#!/bin/sh\\nwc -c; printf 'three ' >> {{here}}/ran"))
pipeline = dt.Pipeline(tasks, dt.Session())
"""
    return {"pipeline.py": code.replace("    pass\n", ""), "a/x.txt": project.text}


class Tool:
    """How a pipeline is written for a tool, and the commands that bring it up to date."""

    def __init__(
        self, write: Callable[[Project], Mapping[str, str]], run: list[str], first: tuple[list[str], ...] = ()
    ) -> None:
        self.write, self.run, self.first = write, run, first


TOOLS = {
    "snakemake": Tool(snakemake, ["-m", "snakemake", "-q", "-c1"]),
    "doit": Tool(doit, ["-m", "doit", "-v0"]),
    "dvc": Tool(dvc, ["-m", "dvc", "-q", "repro"], (["-m", "dvc", "-q", "init", "--no-scm"],)),
    "redun": Tool(redun, ["-c", "import redun.cli; redun.cli.main()", "run", "workflow.py", "main"]),
    "datatask": Tool(datatask, ["-m", "datatask", "run"]),
}


class Tried:
    """One project folder with one tool."""

    def __init__(self, tool: Tool, python: str, folder: Path) -> None:
        self._tool, self._python, self._folder = tool, python, folder
        self._written: dict[str, str] = {}

    def bring_up(self, project: Project) -> str:
        """Write the project, run the tool, and return what ran."""
        given = {"input.txt": project.text, "helper.py": project.helper(), **self._tool.write(project)}
        for name, text in given.items():
            if self._written.get(name) != text:  # a file that is as it was is not touched
                path = self._folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
        self._written = dict(given)
        (self._folder / "ran").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "MODE": project.mode,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(self._folder),
        }
        for command in (*self._tool.first, self._tool.run):
            done = subprocess.run(
                [self._python, *command], cwd=self._folder, env=environment, capture_output=True, text=True,
                timeout=LIMIT_SECONDS, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-1500:]}")
        self._tool.first = ()
        ran = self._folder / "ran"
        return ran.read_text().strip() if ran.exists() else ""

    def touch(self) -> None:
        """Give the input another time."""
        for name in ("input.txt", "a/x.txt"):
            if (self._folder / name).exists():
                (self._folder / name).touch()


def verdict(ran: str, wanted: str) -> str:
    """Return what ran, and whether that is too little or too much."""
    there, due = set(ran.split()), set(wanted.split())
    words = [ran or "nothing"]
    if due - there:
        words.append("WRONG: a result is out of date")
    elif there - due:
        words.append("needless")
    return "; ".join(words)


def tried(name: str) -> dict[str, str]:
    """Return what a tool runs after each edit of a finished pipeline."""
    python = Path(sys.executable) if name == "datatask" else interpreter(PINNED[name])
    if python is None:
        return {"installed": "no"}
    found = {}
    for edit, (change, wanted) in EDITS.items():
        with tempfile.TemporaryDirectory() as folder:
            tool = TOOLS[name]
            try_out = Tried(Tool(tool.write, tool.run, tool.first), str(python), Path(folder))
            ran = try_out.bring_up(Project())
            if set(ran.split()) != {"one", "two"} or try_out.bring_up(Project()):
                sys.exit(f"{name} does not come to rest: it ran {ran!r}, and again")
            if edit == "touch":
                try_out.touch()
            found[edit] = verdict(try_out.bring_up(change(Project())), wanted)
    return found


if __name__ == "__main__":
    print(json.dumps({name: tried(name) for name in sys.argv[1:] or TOOLS}, indent=1))
