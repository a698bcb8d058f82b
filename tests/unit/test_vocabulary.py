"""docs/vocabulary.md names what is there: modules, names in them, and words that code or pages use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "vocabulary.md"
ROW = re.compile(r"^\| ([^|]+) \| [^|]+ \| (.+) \|$", re.MULTILINE)
ROWS = [row for row in ROW.findall(PAGE.read_text()) if row[0] not in ("word", "---")]


def used() -> str:
    """Return all code and all pages but this one, in small letters, names split into words."""
    code = [path for top in ("schema", "engine", "adapters") for path in (ROOT / top).rglob("*.py")]
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path != PAGE]
    text = "\n".join(path.read_text() for path in [*code, *pages])
    return re.sub(r"([a-z])([A-Z])", r"\1 \2", text).replace("_", " ").lower()


def test_there_are_many_words_and_each_stands_once() -> None:
    words = [word for word, _ in ROWS]
    assert len(words) > 70
    assert len(set(words)) == len(words)


@pytest.mark.parametrize(("word", "places"), ROWS, ids=[word for word, _ in ROWS])
def test_a_word_is_where_the_page_says(word: str, places: str) -> None:
    """A name after the colon stands in that module as a word."""
    found = re.findall(r"`([a-z_/]+\.py)(?::(\w+))?`", places)
    assert found, f"{word}: name a module"
    for module, name in found:
        assert (ROOT / module).is_file(), f"{word}: there is no {module}; say where it is now"
        assert re.search(rf"\b{name}\b", (ROOT / module).read_text()), f"{word}: {module} has no {name}"


def test_each_word_is_used() -> None:
    """In code or on a page; the plural and other endings count."""
    text = used()
    assert [word for word, _ in ROWS if not re.search(rf"\b{word.replace('-', '.')}", text)] == []
