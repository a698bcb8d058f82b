# What a developer runs; `just` comes with `pip install -e '.[dev]'`.

python := env("DATATASK_PYTHON", "python")

# everything that has to hold before a change lands
check: lint types layers coverage

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

# the tests
test *args:
    {{ python }} -m pytest {{ args }}

# the tests with the branch-coverage gate
coverage:
    coverage erase
    coverage run -m pytest
    coverage combine --quiet
    coverage report

# the long runs, for hours if you let them
soak *args:
    {{ python }} -m pytest -m soak {{ args }}

# one imagined life, or many: `just sim 42`, `just sim 0 100000`
sim *args:
    {{ python }} -W ignore -m tests.simulation {{ args }}

# one table of figures, ratios within one run
bench *args:
    {{ python }} -m benchmarks {{ args }}

# build the wheel
wheel:
    {{ python }} -m build --wheel

# the main job of the README
demo:
    datatask -p examples/stdlib/pipeline.py run --failures-ok
