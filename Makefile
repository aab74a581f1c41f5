# Needs make and python3 (3.10 or newer), nothing else. `make demo` is the place to start.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
ARGS ?=

.PHONY: demo test bench lint types imports docs-check check clean

demo: $(VENV)/.ready  ## train on digits with wrong labels, rank, cleanse, retrain, report
	$(BIN)/sgdinf experiment=demo $(ARGS)

test: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 $(ARGS)

bench: $(VENV)/.ready-dev  ## one after another, so that the ratios mean something
	$(ONE_THREAD) $(BIN)/python benchmarks/run.py $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/pyright

imports: $(VENV)/.ready-dev
	$(BIN)/lint-imports

docs-check: $(VENV)/.ready-dev  ## links resolve, examples in the pages are valid, public names are documented
	$(BIN)/python -m pytest tests/test_docs.py tests/test_gates.py $(ARGS)

check: lint types imports test

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache lightning_logs outputs multirun
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch goes first, by itself: a plain name in a dependency list may pull a build for another device.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[cli]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[cli,wandb,dev]"
	touch $(VENV)/.ready $@
