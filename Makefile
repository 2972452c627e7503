# make demo   distil the toy student from the toy teacher on this machine: runs/toy/report.html
# make test   lint, types and every test
# Both set themselves up first: a virtual environment in .venv, from requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= examples/toy/recipe.yaml
# key=value overrides of the recipe, for example: make demo SET="seed=2 run_dir=runs/toy-2"
SET ?=

.PHONY: setup demo lint test test-unit clean

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
	$(BIN)/python tools/launch.py $(RECIPE) $(SET)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

test-unit: setup
	$(BIN)/pytest tests/unit

# Tests that wait much, for Slurm and downloads, run beside the others; their output comes last.
BESIDE := tests/slurm tests/integration/test_image.py tests/integration/test_run.py
test: lint
	@$(BIN)/pytest -o cache_dir=.pytest_cache/beside $(BESIDE) > .pytest-beside.log 2>&1 & beside=$$!; \
	$(BIN)/pytest $(addprefix --ignore=,$(BESIDE)); main=$$?; \
	wait $$beside; beside=$$?; cat .pytest-beside.log; exit $$((main || beside))

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
