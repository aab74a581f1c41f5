# Needs make and python3 (3.10 or newer), nothing else. `make demo` is the place to start.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
ARGS ?=

.PHONY: demo test faults bench lint types imports docs docs-check check clean

demo: $(VENV)/.ready  ## train on digits with wrong labels, rank, cleanse, retrain, report
	$(BIN)/sgdinf experiment=demo $(ARGS)

test: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 $(ARGS)

faults: $(VENV)/.ready-dev  ## thousands of faults done to logs on purpose: ends with 1 if anything flushed is lost or anything wrong is read
	$(ONE_THREAD) $(BIN)/python -m tests.log.faults.suite $(ARGS)
	$(ONE_THREAD) SGDINF_FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -q -n 0 tests/log/test_fuzz.py

bench: $(VENV)/.ready-dev  ## one after another, so that the ratios mean something
	$(ONE_THREAD) $(BIN)/python benchmarks/run.py $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev
	$(BIN)/pyright

imports: $(VENV)/.ready-dev
	$(BIN)/lint-imports

docs: $(VENV)/.ready-dev  ## the site, in docs/_build/html, always built anew; a broken link or reference is an error; needs Python 3.11 or newer
	$(ONE_THREAD) $(BIN)/python -m sphinx -W -n -E --keep-going -b html docs docs/_build/html $(ARGS)

docs-check: $(VENV)/.ready-dev  ## the pages: links, commands, entries of errors; every block of Python is run
	$(ONE_THREAD) $(BIN)/python -m pytest tests/test_docs.py tests/test_docs_code.py tests/test_gates.py $(ARGS)

check: lint types imports test

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache lightning_logs outputs multirun docs/_build
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
	$(PIP) --editable ".[cli,wandb,cleanlab,dev,docs,thirdparty]"
	touch $(VENV)/.ready $@
