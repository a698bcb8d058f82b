"""Pages as a reader works through them: in an empty folder, every block in order.

In: a page. A `console` block is typed line by line and what is printed compared with what is shown; a `sh` block is typed whole; Python
whose first line is `# NAME.py` is saved under that name, other Python goes to one interpreter for the page, `pycon` to a doctest with the same
names; a command that ends in `--forever` has
a terminal of its own until `^C`; `sql` is asked of `datatask query`, or of duckdb where its first line says so. Other kinds are for reading. `<!-- not run: WHY -->` before a block says why nobody can.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = re.compile(r"\d[\d.:TZ-]*(?:e-\d+)?")
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+) -->\n)?^(?P<indent> *)```(?P<kind>[\w{}-]*)[^\n]*\n(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
CD = re.compile(r"cd (\S+)")
EXPORT = re.compile(r"export (\w+)=(\S+)")
RUN = {"console", "sh", "python", "pycon", "sql"}
INTERPRETER = """\
import doctest, json, sys
names = {"__name__": "__main__"}
options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
for line in sys.stdin:
    kind, text = json.loads(line)
    if kind == "python":
        exec(compile(text, "<page>", "exec"), names)
    else:
        test = doctest.DocTestParser().get_doctest(text, names, "page", None, 0)
        runner = doctest.DocTestRunner(optionflags=options)
        test.globs = names
        if runner.run(test, clear_globs=False).failed:
            sys.exit("not as shown")
    print("<done>", flush=True)
"""


class Block(NamedTuple):
    """A fenced block; `why` says why it is not run, where it is not."""

    kind: str
    body: str
    why: str | None = None


def blocks(name: str) -> Iterator[Block]:
    """Yield all blocks of a page."""
    for found in BLOCK.finditer((ROOT / name).read_text()):
        yield Block(found["kind"], found["body"], found["why"])


def sessions(body: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block and the lines that it is said to print."""
    command = ""
    output: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ ") or line == "^C":
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


class Shell:
    """A folder in which what a reader types is typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.place = folder
        tools = folder / ".tools"
        tools.mkdir()
        (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        script = f"#!{sys.executable}\nfrom datatask.adapters.cli.main import main\n\nmain()\n"
        (tools / "datatask").write_text(script)
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        self._python: subprocess.Popen[str] | None = None
        self._terminals: list[subprocess.Popen[bytes]] = []

    def type(self, line: str, *, code: int = 0) -> str:
        """Return what a command prints; it has to end with this exit code."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, (line, done)
        return done.stdout

    def _begin(self, command: str) -> subprocess.Popen[bytes]:
        """Type a command in a terminal of its own, in which it stays until Ctrl-C."""
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.place,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _interrupt(self) -> None:
        """Press Ctrl-C in the other terminals."""
        while self._terminals:
            terminal = self._terminals.pop()
            terminal.send_signal(signal.SIGINT)
            terminal.wait(timeout=300)

    def tell(self, kind: str, text: str) -> None:
        """Have the page's interpreter do it."""
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", INTERPRETER],
                cwd=self.place,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps([kind, text]) + "\n")
        self._python.stdin.flush()
        printed = []
        for line in self._python.stdout:
            if line == "<done>\n":
                return
            printed.append(line)
        raise AssertionError(f"{text}\n{''.join(printed)}")

    def ask(self, statements: str) -> None:
        """Run each SQL statement: of the log, or of what was exported."""
        if statements.startswith("-- duckdb"):
            self.tell("python", f"import duckdb\nduckdb.sql({statements!r})")
            return
        for statement in statements.split(";\n"):
            if statement.strip():
                self.environment["STATEMENT"] = statement
                self.type('datatask query "$STATEMENT"')

    def read(self, page: str) -> int:
        """Do all that a page shows, in order; return how many blocks that were."""
        count = 0
        for block in blocks(page):
            count += block.kind in RUN and block.why is None
            if block.why is not None:
                continue
            if block.kind == "python":
                if name := re.match(r"# ([\w./-]+\.py)\n", block.body):
                    (self.place / name[1]).write_text(block.body)
                else:
                    self.tell("python", block.body)
            elif block.kind == "pycon":
                self.tell("pycon", block.body.replace("…", "..."))
            elif block.kind == "sql":
                self.ask(block.body)
            elif block.kind == "sh":
                self.type(f"set -e\n{block.body}")
            elif block.kind == "console":
                for command, shown in sessions(block.body):
                    if moved := CD.fullmatch(command):
                        self.place = (self.place / moved[1]).resolve(strict=True)
                        continue
                    if named := EXPORT.fullmatch(command):
                        self.environment[named[1]] = named[2]
                        continue
                    if command.endswith("--forever"):
                        self._terminals.append(self._begin(command))
                        continue
                    if command == "^C":
                        self._interrupt()
                        continue
                    printed = self.type(command)
                    assert not shown or same(printed, shown), (command, printed, shown)
        return count

    def close(self) -> None:
        """End the interpreter and the other terminals."""
        self._interrupt()
        if self._python is not None and self._python.stdin is not None and self._python.stdout is not None:
            self._python.stdin.close()
            self._python.wait(timeout=300)
            self._python.stdout.close()
