# Each target sets up what it needs; `make demo` and `make test` work on a fresh clone.
#   make install the environment alone, in .venv: 2 minutes
#   make demo    the method on a synthetic corpus: 2 cores, 4 minutes
#   make check   lint, types, import contracts, unit tests: the loop in which people work
#   make docs    the documentation site, in build/docs
#   make test    all of `check`, the slow unit tests, the docs, the integration tests: what CI runs
#   make test-long  the integration tests that start many jobs: before a release, half an hour
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
READY := .venv/ready
# Unit tests run side by side, a file to a core.
UNIT := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile tests/unit
# Each job is many processes: none is to compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo demo-controls check test test-long docs lint format clean

install: $(READY)

demo: $(READY)
	$(BIN)/python jobs/distill.py --seed $(SEED)

# The demo next to three negative controls, in which distillation should not help.
demo-controls: $(READY)
	$(BIN)/python jobs/controls.py --seed $(SEED)

check: lint
	$(UNIT) -m "not slow"

# The integration tests share one Ray.
test: check docs
	$(UNIT) -m slow
	$(BIN)/python -m pytest --durations=12 -m "not long" tests/integration

test-long: $(READY)
	$(BIN)/python -m pytest --durations=12 -m long tests/integration

# Fails if a page names a field, file, command or page that does not exist.
docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build
