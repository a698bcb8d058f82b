"""What the documents show works: every Python file in them, every command, and what it is said to print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = re.compile(r"\d[\d.:TZ-]*")
BLOCK = re.compile(
    r"(?P<mark><!-- not run -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    body: str


def blocks(name: str) -> Iterator[Block]:
    for found in BLOCK.finditer((ROOT / name).read_text()):
        if not found["mark"]:
            yield Block(found["kind"], found["body"])


class Shell:
    """A folder in which what a reader types is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / ".tools"
        tools.mkdir()
        (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        script = f"#!{sys.executable}\nfrom datatask.adapters.cli.main import main\n\nmain()\n"
        (tools / "datatask").write_text(script)
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def type(self, line: str) -> str:
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (line, done)
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def sessions(body: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block and the lines that it is said to print."""
    command = ""
    output: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line.removeprefix("$ "), []
        else:
            output.append(line)
    yield command, output


def same(printed: str, shown: list[str]) -> bool:
    """Whether the lines are those shown; numbers may differ, a line `…` stands for any more, `…` in one for any text."""
    text = NUMBERS.sub("0", "".join(f"{line.rstrip()}\n" for line in printed.splitlines()))
    pattern = ""
    for line in shown:
        wanted = re.escape(NUMBERS.sub("0", line.rstrip())).replace("…", ".*")
        pattern += r"(?:.*\n)*" if line == "…" else wanted + r"\n"
    return re.fullmatch(pattern, text) is not None


def test_the_tutorial_works_as_printed(shell: Shell) -> None:
    """Each file is saved under the name in its first line, each command typed, its output compared."""
    for block in blocks("docs/tutorial.md"):
        if block.kind == "python":
            name = block.body.splitlines()[0].removeprefix("# ")
            (shell.folder / name).write_text(block.body)
        elif block.kind == "console":
            for command, shown in sessions(block.body):
                printed = shell.type(command)
                assert not shown or same(printed, shown), (command, printed)


def test_the_readmes_pipeline_works(shell: Shell) -> None:
    """The program under `Use it` counts the words of a file."""
    (program,) = [block.body for block in blocks("README.md") if block.kind == "python"]
    (shell.folder / "pipeline.py").write_text(program)
    (shell.folder / "texts").mkdir()
    (shell.folder / "texts" / "fox.txt").write_text("the quick brown fox")
    assert "failed=0" in shell.type("python pipeline.py")
    assert shell.type("datatask cat count.counts fox") == "words: 4\n"


def test_the_sessions_about_the_past_are_true(shell: Shell) -> None:
    """Each statement is typed after the one before it, in a project that was made and run."""
    shell.type("datatask init . && datatask run")
    text = (ROOT / "docs/library.md").read_text()
    options = "doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE"
    program = f"import doctest; print(doctest.testfile('session.txt', module_relative=False, encoding='utf-8', optionflags={options}))"
    (shell.folder / "session.txt").write_text(text.replace("…", "..."))
    assert "failed=0" in shell.type(f'python -c "{program}"')


def test_a_script_for_pydatatask_works_after_changing_its_import(shell: Shell) -> None:
    """The program of the comparison runs by its own command line, with pydatatask's text on stdout."""
    program = next(block.body for block in blocks("docs/coming-from-pydatatask.md") if block.kind == "python")
    (shell.folder / "main.py").write_text(program)
    shell.type("python main.py run")
    status = shell.type("python main.py status")
    assert status.splitlines()[0] == "double"


def test_links_in_documents_lead_somewhere() -> None:
    """Every relative link in README and docs names a file."""
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), (document.name, target)
