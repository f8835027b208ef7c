# Each target does the whole set-up itself: a virtual environment, the install, the run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What to install with; .ci/lowest.txt has every dependency at its lower bound.
CONSTRAINTS ?= .ci/constraints.txt
# Waiting threads sleep instead of spinning: with two cores and a second busy process, spinning costs 4-9x.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: test coverage check demo hooks clean

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# The suite again, counting lines; fails below the floor in pyproject.toml.
coverage: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --cov --cov-report=term

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/size_guard.py
	$(BIN)/pytest tests/test_layers.py tests/test_project.py

demo: $(VENV)/.installed
	$(BIN)/misfm demo --out demo

# The same checks before each commit.
hooks: $(VENV)/.installed
	$(BIN)/pre-commit install

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
