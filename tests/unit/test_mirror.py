"""The tests of a module are found by its name: `tests/unit/ROOM/test_NAME.py`, or `test_NAME_ASPECT.py` where they are many.

Directly in `tests/unit` are the tests of the package as a whole, and kits.
"""

from __future__ import annotations

from pathlib import Path

import pytest

UNIT = Path(__file__).parent
ROOT = UNIT.parents[1]
FILES = sorted(str(path.relative_to(UNIT)) for path in UNIT.rglob("*/test_*.py"))


def module_of(file: str, root: Path) -> Path | None:
    """Return the module, or the room, that a file of tests names."""
    room = root / Path(file).parent
    words = Path(file).stem.removeprefix("test_").split("_")
    for count in range(len(words), 0, -1):
        name = "_".join(words[:count])
        for path in (room / f"{name}.py", room / name):
            if path.exists():
                return path
    return None


@pytest.mark.parametrize("file", FILES)
def test_each_file_of_tests_names_a_module(file: str) -> None:
    assert module_of(file, ROOT), (
        f"tests/unit/{file}: there is no such module; the test follows the module that it tests"
    )


def test_a_name_without_a_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "engine" / "explain").mkdir(parents=True)
    (tmp_path / "engine" / "what.py").touch()
    (tmp_path / "engine" / "what_if.py").touch()
    found = {
        name: path and path.name
        for name in (
            "test_what.py",
            "test_what_if_more.py",
            "test_what_else.py",
            "test_explain.py",
            "test_who.py",
        )
        if (path := module_of(f"engine/{name}", tmp_path)) or True
    }
    assert list(found.values()) == ["what.py", "what_if.py", "what.py", "explain", None]
