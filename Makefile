# Each target sets up what it needs; `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
READY := .venv/ready
# Each job is many processes: none is to compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo demo-controls test lint format clean

demo: $(READY)
	$(BIN)/python jobs/distill.py --seed $(SEED)

# The demo beside three ways in which distillation must not help.
demo-controls: $(READY)
	$(BIN)/python jobs/controls.py --seed $(SEED)

# Unit tests side by side, a file to a core; the others share one Ray.
test: $(READY) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile tests/unit
	$(BIN)/python -m pytest --durations=12 tests/integration

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build
