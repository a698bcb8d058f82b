"""What is written as YAML is read alike by YAML 1.1 (PyYAML), YAML 1.2 (ruamel.yaml) and ourselves, whatever it is."""

from __future__ import annotations

import datetime as dt
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from datatask.adapters.yaml_text import dump_yaml, load_yaml
from datatask.schema.errors import InvalidValueError

TOKENS = st.text(alphabet="0123456789+-._:eExXobaAfFnNyYoOsS~<=tTruUlL ", max_size=8)
WORDS = st.sampled_from(
    [
        "no",
        "No",
        "NO",
        "yes",
        "on",
        "off",
        "y",
        "n",
        "true",
        "null",
        "~",
        "<<",
        "=",
        "08",
        "012",
        "0o14",
        "0x1F",
        "0b1",
        "1e3",
        "1e-3",
        "1_000",
        "12:30:45",
        "1:2",
        ".5",
        "1.",
        ".inf",
        "-.Inf",
        ".nan",
        "2001-01-01",
        "2001-1-1",
        "2001-12-14t21:59:43.10-05:00",
        "?",
        ":",
        "-",
        "[]",
        "{}",
        "#",
        "@",
        "`",
        "%",
        "!",
        "&",
        "*",
        "|",
        ">",
        "'",
        '"',
    ]
)
TEXT = st.one_of(
    WORDS, TOKENS, st.text(max_size=12), st.text(alphabet="a \n\t\x85\u2028\u2029#:-'\"\\\ufeff", max_size=8)
)
TIMES = st.datetimes(timezones=st.just(dt.UTC)) | st.dates()
SCALARS = st.one_of(
    TEXT, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.binary(max_size=8), TIMES
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=8,
)


def by_yaml_1_2(text: bytes) -> Any:
    """What a reader of YAML 1.2 makes of it."""
    return YAML(typ="safe", pure=True).load(text)


def same(left: Any, right: Any) -> bool:
    """Equality with types, through lists and dicts; times of ruamel.yaml are a subclass."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return isinstance(right, type(left)) and (left == right or (left != left and right != right))


@given(DOCUMENTS)
@example(
    {"08": "1e3", "no": ["12:30:45", "2001-01-01", "<<", "="], "y": dt.datetime(2026, 1, 2, tzinfo=dt.UTC)}
)
@example("a\u2028b\x85c\u2029")
def test_what_is_written_is_read_alike(document: Any) -> None:
    for line in (False, True):
        text = dump_yaml(document, "here", line=line)
        for read in (load_yaml(text, "here", typed=True), yaml.safe_load(text), by_yaml_1_2(text)):
            assert same(document, read), (text, read)


LINES = TEXT.filter(lambda text: not any(one.isspace() and one != " " for one in text))


@given(LINES)
def test_what_is_typed_is_read_alike_or_refused(token: str) -> None:
    """A plain scalar that is taken has one meaning, that of the core schema; ruamel.yaml also infers times and underscores."""
    text = f"- {token}\n".encode()
    try:
        (mine,) = load_yaml(text, "here", typed=True)
    except (InvalidValueError, TypeError, ValueError):
        return
    (old,) = yaml.safe_load(text)
    try:
        (new,) = by_yaml_1_2(text)
    except ValueError:  # of `._`, which is text in either version, and a number to ruamel.yaml alone
        return
    assert same(mine, old)
    assert same(mine, new)


@given(DOCUMENTS)
def test_files_that_pydatatask_wrote_are_read_as_it_read_them(document: Any) -> None:
    """PyYAML wrote them, in its defaults."""
    text = yaml.safe_dump(document).encode()
    assert load_yaml(text, "here") == yaml.safe_load(text)
