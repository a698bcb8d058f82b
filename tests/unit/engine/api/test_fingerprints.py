"""Fingerprints: what makes a difference, what makes none, and what cannot be followed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from datatask import Parameter
from datatask.engine.api import sources
from datatask.engine.api.fingerprints import DIGEST_CHARS, of_function

HELPER = """
import functools
import re

RATE = 0.5
WORDS = {"a", "b", "c"}
PATTERN = re.compile("a+")
UNUSED = 1

def clean(text, most=3):
    return text.lower()[:most]

@functools.cache
def slow(number):
    return number

class Model:
    SCALE = 3

    def __init__(self, size):
        self.size = size

    def run(self):
        return clean(str(self.size))
"""
MAIN = """
import helper
import logging
import os
from helper import Model

LOG = logging.getLogger("work")
MODEL = Model(3)
SKIPPED = frozenset({"x", "y", "z"})

def work(job, inp):
    LOG.info("at %s", job)
    if job in SKIPPED or helper.PATTERN.match(job) or job in helper.WORDS:
        return None
    return helper.clean(inp) + str(helper.RATE) + MODEL.run() + str(helper.slow(2)) + (lambda x: x)(os.sep)
"""
PROGRAM = """
import json, main
from datatask.engine.api.fingerprints import of_function
found = of_function(main.work)
print(json.dumps(found.components))
"""


def lay_out(folder: Path, helper: str = HELPER, main: str = MAIN) -> Path:
    """Write the two modules of the project."""
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(helper)
    (folder / "main.py").write_text(main)
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the components of the function's fingerprint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name in ("main", "helper"):
            patch.delitem(sys.modules, name, raising=False)
        found = of_function(importlib.import_module("main").work)
        for name in ("main", "helper"):
            del sys.modules[name]
    assert found.unfollowed == ()
    assert all(len(digest) == DIGEST_CHARS for digest in found.components.values())
    return found.components


def fingerprint_of_process(folder: Path, seed: int) -> dict[str, str]:
    """Return the same as another process finds it, under a hash seed."""
    environ = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environ,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return fingerprint(lay_out(tmp_path_factory.mktemp("before")))


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the components that differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def test_what_the_function_reaches_is_followed(before: dict[str, str]) -> None:
    assert sorted(before) == [
        "class Model (helper.py)",
        "function clean (helper.py)",
        "function slow (helper.py)",
        "function work (main.py)",
        "global MODEL",
        "global SKIPPED",
        "global helper.PATTERN",
        "global helper.RATE",
        "global helper.WORDS",
        "global helper.slow",
    ]


@pytest.mark.parametrize(
    ("helper", "main", "components"),
    [
        (("return text.lower()", "return text.upper()"), None, ["function clean (helper.py)"]),
        (("most=3", "most=4"), None, ["function clean (helper.py)"]),
        (("RATE = 0.5", "RATE = 0.7"), None, ["global helper.RATE"]),
        (('"b", "c"', '"b"'), None, ["global helper.WORDS"]),
        (('"a+"', '"b+"'), None, ["global helper.PATTERN"]),
        (("SCALE = 3", "SCALE = 4"), None, ["class Model (helper.py)"]),
        (("return number", "return -number"), None, ["function slow (helper.py)"]),
        (None, ("Model(3)", "Model(4)"), ["global MODEL"]),
        (None, ("(lambda x: x)", "(lambda x: x + '')"), ["function work (main.py)"]),
        (("UNUSED = 1", "UNUSED = 2"), None, []),
        (("def clean", "# a comment\n\ndef clean"), None, []),
        (("text, most=3):\n", 'text, most=3):\n    """Clean a text."""\n'), None, []),
        (("class Model:\n", 'class Model:\n    """A model."""\n'), None, []),
        (None, ('LOG.info("at %s", job)', "LOG.info(\n        'at %s', job\n    )"), []),
        (('{"a", "b", "c"}', '{"c", "b", "a"}'), None, []),
    ],
)
def test_an_edit_shows_where_it_was_made(
    tmp_path: Path,
    before: dict[str, str],
    helper: tuple[str, str] | None,
    main: tuple[str, str] | None,
    components: list[str],
) -> None:
    assert helper is None or helper[0] in HELPER
    assert main is None or main[0] in MAIN
    folder = lay_out(
        tmp_path, HELPER.replace(*helper) if helper else HELPER, MAIN.replace(*main) if main else MAIN
    )
    after = fingerprint(folder)
    assert changed(before, after) == components


@pytest.mark.slow
def test_processes_with_other_hash_seeds_agree(tmp_path: Path, before: dict[str, str]) -> None:
    folder = lay_out(tmp_path)
    assert all(fingerprint_of_process(folder, seed) == before for seed in range(20))


SETS = """
import enum

class Color(enum.Enum):
    RED = 1
    BLUE = 2

def plus(x): return x + 1
def minus(x): return x - 1
RULES = {plus, minus,
    lambda x: x,
    lambda x: -x}
KINDS = {Color.RED, Color.BLUE, ("a", 1), ("b", frozenset({1, "c"})), int, str}

def work(job):
    return RULES, KINDS
"""


@pytest.mark.slow
def test_sets_of_functions_and_kinds_are_the_same_in_every_process(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, main=SETS)
    found = [fingerprint_of_process(folder, seed) for seed in range(20)]
    assert found == found[:1] * 20
    assert {"function plus (main.py)", "global KINDS", "global RULES"} <= found[0].keys()


def test_a_set_without_an_order_is_not_followed() -> None:
    """Its members come in another order in each process, and so would their names."""

    class Rule:
        pass

    rules = {Rule(), Rule()}
    twins = {(lambda x: x), (lambda x: -x)}

    def work() -> object:
        return rules, twins

    told = of_function(work).unfollowed
    assert told == (
        "rules: a set of 2 things that have no order of their own",
        "twins: a set of 2 things that have no order of their own",
    )


def test_what_cannot_be_followed_is_named() -> None:
    lock = threading.Lock()

    def work(job: str) -> None:
        with lock:
            len(job)

    found = of_function(work)
    assert found.unfollowed == ("lock: a _thread.lock",)
    assert len(found.components) == 1


def test_parameters_count_with_their_values() -> None:
    threshold = Parameter("threshold", 0.5)

    def work(job: str, threshold: float) -> None:
        pass

    before = of_function(work, {"threshold": threshold}).components
    threshold.give("0.7")
    after = of_function(work, {"threshold": threshold}).components
    assert changed(before, after) == ["parameter threshold"]


def test_a_function_without_source_has_no_fingerprint() -> None:
    names: dict[str, object] = {}
    exec("def work(job): pass", names)
    found = of_function(names["work"])  # type: ignore[arg-type]
    assert found.components == {}
    assert found.unfollowed == ("function work: its source is not that of the code that runs",)


@pytest.mark.parametrize(("failures", "known"), [(2, True), (3, False)])
def test_an_interpreter_that_cannot_parse_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, known: bool
) -> None:
    parse, left = ast.parse, [failures]

    def failing(text: str) -> ast.Module:
        if left[0]:
            left[0] -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=219, after=274)")
        return parse(text)

    monkeypatch.setattr(ast, "parse", failing)
    sources._parsed.cache_clear()
    found = of_function(changed)
    assert bool(found.components) is known
    assert known is not any("recursion depth mismatch" in words for words in found.unfollowed)
