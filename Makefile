# make study, make test: from a machine with Python >= 3.11 alone to a table, to a green test run.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: setup study test check soak format bench clean

setup: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# The default comparison, offline: pretrained, LoRA and prompt tuning, one seed.
study: setup
	$(BIN)/python tune.py --n_trials 0 --seeds 42

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow' tests

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests

# A crash at every file operation of a run, not only at those that a slow test draws.
soak: setup
	$(BIN)/python -m tests.crash_points

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.windows_and_spans

# Caches and reports, which the commands make again; runs and searches are kept.
clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis
	rm -f report.html report.md results.json
	for folder in runs/* my-runs minilm-20k; do \
	    rm -f $$folder/report.html $$folder/report.md $$folder/results.json; \
	done
	@for folder in runs/*/ my-runs merged minilm-20k; do \
	    [ ! -d "$$folder" ] || echo "kept: $$folder (runs and searches; delete it yourself)"; \
	done
