# make test: from a machine with Python >= 3.11 alone to a green test run.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: setup test check format bench clean

setup: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

test: setup
	$(BIN)/python -m pytest -q -n 2 tests

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 tests

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.windows_and_spans

clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis
