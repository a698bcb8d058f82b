"""What the documents show works: every block of every page, in order, as a reader would do it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.pages import ROOT, RUN, Shell, blocks

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))
ELSEWHERE = {"docs/audit.md"}  # test_audit_questions.py
BEGUN = {  # pages that say so begin in the project that `datatask init` makes
    "docs/library.md": "datatask init . && datatask run",
    "docs/log.md": "datatask init . && datatask run",
    "docs/cli.md": "datatask init . && datatask run",
    "docs/simulation.md": "datatask init . && datatask run",
}
QUICK = {"docs/tutorial.md"}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


WITH_BLOCKS = [
    pytest.param(page, id=page, marks=() if page in QUICK else pytest.mark.slow)
    for page in PAGES
    if page not in ELSEWHERE and any(block.kind in RUN and not block.why for block in blocks(page))
]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_a_page_works_as_printed(page: str, shell: Shell) -> None:
    """Python is run, commands are typed, their output compared."""
    if page in BEGUN:
        assert "datatask init" in (ROOT / page).read_text()
        shell.type(BEGUN[page])
    assert shell.read(page) > 0


def test_blocks_say_what_they_are() -> None:
    """Each has a kind, so that none is passed over because somebody forgot it; commands are in blocks that are typed."""
    for page in PAGES:
        for block in blocks(page):
            assert block.kind, (page, block.body)
            if block.kind == "text":
                assert not re.search(r"^(\$ )?(datatask|python3?|pip) [^\[]", block.body, re.MULTILINE), (
                    page,
                    block.body,
                )
            assert block.why is None or len(block.why) > 10, (page, block.why)


def test_the_readmes_pipeline_works(shell: Shell) -> None:
    """The program under `Use it` counts the words of a file."""
    (program,) = [block.body for block in blocks("README.md") if block.kind == "python"]
    (shell.folder / "pipeline.py").write_text(program)
    (shell.folder / "texts").mkdir()
    (shell.folder / "texts" / "fox.txt").write_text("the quick brown fox")
    assert "failed=0" in shell.type("python pipeline.py")
    assert shell.type("datatask cat count.counts fox") == "words: 4\n"


def test_links_in_documents_lead_somewhere() -> None:
    """Every relative link in README and docs names a file."""
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), (document.name, target)
