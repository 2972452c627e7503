# make demo       distil the toy student from the toy teacher on this machine: runs/toy/report.html
# make test       lint, types, unit tests, and an integration test of each promise; needs no root, and nothing outside this folder
# make gpu-check  what a machine with GPUs can do, as a page: gpu-check/page.md; with the Python that is on the PATH
# make test-all   that, then the rest: every parallel layout, a real Slurm, images, downloads; as root with apt
# Each sets itself up first: a virtual environment in .venv, from requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= examples/toy/recipe.yaml
# key=value overrides of the recipe, for example: make demo SET="seed=2 run_dir=runs/toy-2"
SET ?=
# Three processes for two cores: the one with Slurm's tests waits most of its time. Tests of one module stay together
# (tests/conftest.py). pytest 9.2 makes pytest-xdist 3.8 forget the groups:
# https://github.com/pytest-dev/pytest-xdist/issues/1386
PYTEST := $(BIN)/pytest -n 3 --dist loadgroup

.PHONY: setup demo lint docs test test-all test-unit gpu-check clean

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --no-deps --ignore-requires-python -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/dasd launch $(RECIPE) $(SET)

lint: setup docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint
	$(PYTEST) -m "not full and not gpu"

# In one session: what several tests compare with is made once.
test-all: lint
	$(PYTEST) -m "not gpu"

gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

test-unit: setup
	$(BIN)/pytest tests/unit -m "not full and not gpu"

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
