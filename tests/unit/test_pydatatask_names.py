"""docs/coming-from-pydatatask.md is complete: each public name of pydatatask 0.4.7 is there, or the page says that it is not.

`tests/schemas/pydatatask-0.4.7.json` has what its wheel defines: names, members, and parameters of functions and constructors.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import datatask

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from-pydatatask.md").read_text()
SURFACE: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "schemas" / "pydatatask-0.4.7.json").read_text()
)
ABSENT = PAGE[PAGE.index("## What is not there") :]
GONE = set(re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| (`.+?) \|", ABSENT, re.MULTILINE))))


def there(thing: type, member: str) -> bool:
    """Whether a class has an attribute, or its code gives one to its objects."""
    code = "".join(
        inspect.getsource(base) for base in thing.__mro__ if base.__module__.startswith("datatask")
    )
    return (
        hasattr(thing, member)
        or re.search(rf"\bself\.{member}\b|^    {member}\b", code, re.MULTILINE) is not None
    )


def test_the_table_is_of_the_whole_package() -> None:
    assert len(SURFACE) > 70
    assert {"Pipeline", "S3BucketRepository", "STDOUT", "print_status"} <= set(SURFACE)


@pytest.mark.parametrize("name", SURFACE)
def test_a_name_is_there_or_the_page_says_so(name: str) -> None:
    """A name that is not there raises an error that says what to use."""
    if name in GONE:
        with pytest.raises(ImportError, match=name):
            getattr(datatask, name)
        return
    found = getattr(datatask, name)
    for member in SURFACE[name]["members"]:
        assert there(found, member) != (f"{name}.{member}" in GONE), member
    if callable(found) and SURFACE[name]["parameters"]:
        have = set(inspect.signature(found).parameters)
        for parameter in SURFACE[name]["parameters"]:
            assert parameter in have or re.search(rf"`{name}\([^`]*\)`.*`{parameter}`", ABSENT, re.DOTALL), (
                parameter
            )


def test_the_page_names_nothing_that_is_there() -> None:
    """Nor anything that pydatatask did not have."""
    for name in GONE:
        first, _, member = name.partition(".")
        assert first in SURFACE or first in datatask._ABSENT, name
        assert not member or member in SURFACE[first]["members"], name
