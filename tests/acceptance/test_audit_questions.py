"""docs/audit.md: its log is made, each command typed, and what it prints compared with what is shown."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.pages import ROOT, Block, Shell, blocks, sessions

NUMBERS = re.compile(r"\d[\d.:TZ-]*(?:e-\d+)?")
IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}")
NAMED = re.compile(r"([A-Z]+)=\$\((.*)\)")
QUESTIONS = 10


def plain(text: str) -> list[str]:
    """Return the lines without what differs from one time and machine to another."""
    told = IDS.sub("…", text.replace(socket.gethostname(), "lab"))
    return [NUMBERS.sub("0", line.rstrip()) for line in told.splitlines()]


@pytest.fixture(scope="module")
def document() -> list[Block]:
    return list(blocks("docs/audit.md"))


@pytest.mark.slow
def test_the_questions_are_answered_as_printed(document: list[Block], tmp_path: Path) -> None:
    """Numbers and times may differ, positions too: later commands ask for those that they need."""
    shell = Shell(tmp_path)
    program, script = [block.body for block in document if block.kind == "python"]
    (tmp_path / "pipeline.py").write_text(program)
    answers = 0
    for block in document:
        if block.kind != "console":
            continue
        for command, shown in sessions(block.body):
            if named := NAMED.fullmatch(command):
                shell.environment[named[1]] = shell.type(named[2]).strip()
                assert shell.environment[named[1]].isdigit(), command
                continue
            printed = shell.type(command)
            assert plain(printed) == plain("\n".join(shown)), command
            answers += bool(shown)
    assert answers > QUESTIONS
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"```text\n{told.stdout}```\n" in (ROOT / "docs" / "audit.md").read_text()
    assert shell.type("datatask verify").endswith(": ok\n")


def test_there_are_ten_questions_each_with_an_answer() -> None:
    """Numbered, and each has a command and what it prints."""
    _, *sections = re.split(r"^## (?=\d)", (ROOT / "docs" / "audit.md").read_text(), flags=re.MULTILINE)
    assert [int(section.partition(".")[0]) for section in sections] == list(range(1, QUESTIONS + 1))
    for section in sections:
        title = section.splitlines()[0]
        assert re.search(r"^\$ .+\n[^$`]", section, re.MULTILINE), title
        assert title.endswith("?"), title
