# `make demo` and `make test` set everything up; nothing is installed outside .venv (.venv-oldest).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-oldest soak lint format freeze clean

demo: .venv/runtime
	$(BIN)/python -m benchmarks.demo

test: .venv/dev
	$(BIN)/python -m pytest

# Runs that are killed and resumed, and 100000 random inputs: docs/reliability.md.
soak: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy *.py model dataset utils benchmarks tests

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

freeze: .venv/dev
	$(BIN)/python --version | sed 's/^/# /' > requirements-tested.txt
	$(BIN)/pip freeze >> requirements-tested.txt

clean:
	rm -rf .venv .venv-oldest runs/demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python requirements.txt
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -r requirements.txt
	touch $@

.venv-oldest/installed: requirements-oldest.txt requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --progress-bar on -r requirements-oldest.txt
	touch $@

.venv/dev: .venv/runtime requirements-dev.txt
	$(BIN)/python -m pip install --progress-bar on -r requirements-dev.txt
	touch $@
