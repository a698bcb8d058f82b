"""The site's sources: every public name and page is reached, versions are the code's, and nothing comes from another host.

That it builds without a warning is tried by `.ci/run` (`just docs`).
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

import pytest

from datatask.schema.version import FORMAT
from tests.acceptance.pages import ROOT

DOCS = ROOT / "docs"


@cache
def reference() -> Any:
    """Return docs/reference.py, which Sphinx loads by its path too."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_public_name_is_in_one_section_of_the_reference() -> None:
    told: list[str] = []
    for homes, but in re.findall(r"```\{public\} (.+)\n(?::but: (.+)\n)?```", (DOCS / "api.md").read_text()):
        told += reference().within(homes.split(), but.split())
    assert sorted(told) == sorted(reference().public())


def test_each_command_is_in_the_group_that_the_page_shows() -> None:
    from datatask.adapters.cli.commands import COMMANDS

    assert set(COMMANDS) <= set(reference().commands.list_commands(None))


def test_each_page_is_in_a_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE), page.name


def test_the_versions_told_are_those_of_the_code() -> None:
    assert f"| storage format | {FORMAT} |" in (DOCS / "formats.md").read_text()


@pytest.mark.parametrize(
    ("tag", "foreign"),
    [
        ('<script src="https://cdn.example.com/a.js">', True),
        ('<link rel="stylesheet" href="//fonts.example.com/a.css" />', True),
        ('<img alt="" src="http://example.com/a.png">', True),
        ('<script src="_static/a.js?v=1">', False),
        ('<a href="https://example.com">', False),
    ],
)
def test_what_is_loaded_from_another_host_is_found(tag: str, foreign: bool) -> None:
    assert bool(reference().FOREIGN.findall(tag)) is foreign
