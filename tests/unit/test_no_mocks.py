"""Tests use real servers and fakes: none imports `unittest.mock` or a package that makes mocks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = ("unittest.mock", "mock", "pytest_mock", "asynctest", "flexmock")


def mocks(source: str) -> list[str]:
    """Return what a file imports of mocks, and its uses of pytest-mock's fixture, as `LINE: NAME`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.arg) and node.arg == "mocker":
            names = ["pytest_mock"]
        found += [
            f"{getattr(node, 'lineno', 0)}: {name}"
            for name in names
            if any(name == banned or name.startswith(f"{banned}.") for banned in BANNED)
        ]
    return found


def test_no_file_imports_mocks() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 200
    found = {str(path.relative_to(ROOT)): mocks(path.read_text()) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import unittest.mock",
        "import unittest.mock as m",
        "from unittest import mock",
        "from unittest.mock import patch",
        "import mock",
        "def test(mocker): ...",
    ],
)
def test_an_import_of_mocks_is_found(line: str) -> None:
    assert mocks(f"import os\nif os:\n    {line}\n")


def test_what_is_no_mock_is_left_alone() -> None:
    assert mocks("import unittest\nfrom unittest import TestCase\nimport mockery\n") == []
