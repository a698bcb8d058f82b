"""YAML that people type: what two readers take for different things is refused by name, with what to write."""

from __future__ import annotations

import datetime as dt

import pytest

from datatask.adapters.yaml_text import dump_yaml, load_yaml
from datatask.schema.errors import InvalidValueError


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ("n: 01234", "01234 is the number 668 in YAML 1.1 and the number 1234 in YAML 1.2", "quote it ('01234'), or write 1234"),
        ("at: 12:30:45", "12:30:45 is the number 45045 in YAML 1.1 and text in YAML 1.2", "quote it ('12:30:45'), or write 45045"),
        ("ok: no", "no is the truth value false in YAML 1.1 and text", "quote it ('no'), or write false"),
        ("n: 1_000", "the number 1000 in YAML 1.1 and text", "or write 1000"),
        ("n: 0b11", "the number 3 in YAML 1.1 and text", "or write 3"),
        ("lr: 1e-3", "1e-3 is text in YAML 1.1 and the number 0.001 in YAML 1.2", "or write 0.001"),
        ("n: 08", "08 is text in YAML 1.1 and the number 8", "or write 8"),
        ("n: 0o14", "text in YAML 1.1 and the number 12", "or write 12"),
        ("day: 2026-01-02", "the time 2026-01-02 in YAML 1.1 and text", "or write !!timestamp '2026-01-02'"),
        ("on: 1", "on is the truth value true", "quote it ('on')"),
        ("a: &x {b: 1}\nc: {<<: *x}", "<< merges", "write the keys out"),
        ("n: !!int 012", "the number 10 in YAML 1.1", "or write 12"),
        ("t: a\u2028 b", "U+2028 is a line break in YAML 1.1 only", "\\L"),
    ],
)  # fmt: skip
def test_what_reads_differently_is_refused_where_it_is_typed(text: str, words: str, remedy: str) -> None:
    with pytest.raises(InvalidValueError) as told:
        load_yaml(text.encode(), "stdin", typed=True)
    assert words in told.value.what
    assert remedy in (told.value.remedy or "")
    assert told.value.where.startswith("stdin, line ")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "{x: 1, 'x': 2}", "1: a\n1: b"])
@pytest.mark.parametrize("typed", [True, False])
def test_a_key_that_is_there_twice_is_refused(text: str, typed: bool) -> None:
    with pytest.raises(InvalidValueError, match="is there twice, first in line 1"):
        load_yaml(text.encode(), "stdin", typed=typed)


def test_what_both_read_alike_is_taken() -> None:
    text = b"{x: 1, y: 0x1F, f: 1.5, g: .5, h: -.inf, t: true, n: ~, e: , s: 'no', d: \"08\", v: 1.2.3, m: a b, u: 3 files}"
    assert load_yaml(text, "stdin", typed=True) == {
        "x": 1, "y": 31, "f": 1.5, "g": 0.5, "h": float("-inf"), "t": True, "n": None, "e": None, "s": "no", "d": "08",
        "v": "1.2.3", "m": "a b", "u": "3 files",
    }  # fmt: skip


def test_in_files_text_and_times_are_what_yaml_1_1_takes_for_them() -> None:
    """So wrote pydatatask; what it would have quoted was typed."""
    text = b"{a: 08, b: 1e3, at: 2024-01-02 03:04:05+00:00}"
    read = load_yaml(text, "f.yaml")
    assert read == {"a": "08", "b": "1e3", "at": dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)}
    with pytest.raises(InvalidValueError, match="012 is the number 10"):
        load_yaml(b"a: 012", "f.yaml")


def test_what_could_be_taken_for_something_else_is_quoted() -> None:
    document = {
        "a": "08",
        "b": "no",
        "c": "1e3",
        "y": "plain",
        "null": None,
        "at": dt.date(2024, 1, 2),
        "v": "3 files",
    }
    assert dump_yaml(document, "here").decode() == (
        "a: '08'\nb: 'no'\nc: '1e3'\ny: plain\n'null': null\nat: !!timestamp '2024-01-02'\nv: 3 files\n"
    )
    assert dump_yaml(["08", 1], "here", line=True) == b"['08', 1]\n"


def test_an_empty_document_is_nothing_and_one_that_holds_itself_is_read_once() -> None:
    assert load_yaml(b"", "here", typed=True) is None
    read = load_yaml(b"&a [1, *a]", "here", typed=True)
    assert read[1] is read
