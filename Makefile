# `make test` and `make demo` do the whole set-up themselves: a virtual environment, the install, the run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Waiting threads sleep instead of spinning: with two cores and a second busy process, spinning costs 4-9x.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: test check demo clean

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py

demo: $(VENV)/.installed
	$(BIN)/misfm demo --out demo

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
