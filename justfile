# What a developer runs; `just` comes with `pip install -e '.[dev]'`.

python := env("DATATASK_PYTHON", "python")

# everything that has to hold before a change lands
check: lint types layers docs coverage

# format and lint
lint:
    ruff format --check .
    ruff check .

# static types, strictly
types:
    mypy

# the rooms and what each may know
layers:
    lint-imports --no-cache

# the tests; without arguments the quick ones, spread over the cores
test *args:
    {{ python }} -m pytest {{ args }}

# what takes minutes, and more of everything that can be done more of (docs/testing.md)
thorough *args:
    DATATASK_TEST_EFFORT=thorough {{ python }} -m pytest {{ args }}

# the quick and the thorough tests with the branch-coverage gate
coverage:
    coverage erase
    COVERAGE_PROCESS_START={{ justfile_directory() }}/pyproject.toml {{ python }} -m pytest
    COVERAGE_PROCESS_START={{ justfile_directory() }}/pyproject.toml DATATASK_TEST_EFFORT=thorough {{ python }} -m pytest
    coverage combine --quiet
    coverage report

# the long runs, for hours if you let them
soak *args:
    DATATASK_TEST_EFFORT=soak {{ python }} -m pytest {{ args }}

# one imagined life, or many: `just sim 42`, `just sim 0 100000`
sim *args:
    {{ python }} -W ignore -m tests.simulation {{ args }}

# one table of figures, ratios within one run
bench *args:
    {{ python }} -m benchmarks {{ args }}

# build the site into build/site; a warning is an error
docs:
    {{ python }} -m sphinx -q -W --keep-going -j auto docs build/site

# build the wheel
wheel:
    {{ python }} -m build --wheel

# the main job of the README
demo:
    datatask -p examples/stdlib/pipeline.py run --failures-ok
