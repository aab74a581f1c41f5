# Needs make and python3 (3.10 or newer), nothing else. `make demo` is the place to start.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint
PIP := $(BIN)/python $(INSTALL) constraints.txt
TORCH := "$$(grep '^torch==' constraints.txt)"
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
ARGS ?=

.DEFAULT_GOAL := demo
.PHONY: help demo test faults bench lint types imports docs docs-check oldest bare wheel check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.ready  ## train on digits with wrong labels, rank, cleanse, retrain, report
	$(BIN)/sgdinf experiment=demo $(ARGS)

test: $(VENV)/.ready-dev  ## the whole suite on two cores
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 $(ARGS)

faults: $(VENV)/.ready-dev  ## thousands of faults done to logs on purpose: ends with 1 if anything flushed is lost or anything wrong is read
	$(ONE_THREAD) $(BIN)/python -m tests.log.faults.suite $(ARGS)
	$(ONE_THREAD) SGDINF_FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -q -n 0 tests/log/test_fuzz.py

bench: $(VENV)/.ready-dev  ## benchmarks, one after another, so that the ratios mean something
	$(ONE_THREAD) $(BIN)/python benchmarks/run.py $(ARGS)

lint: $(VENV)/.ready-dev  ## style and format, by ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-dev  ## types, by pyright
	$(BIN)/pyright

imports: $(VENV)/.ready-dev  ## imports go one way, by import-linter
	$(BIN)/lint-imports

docs: $(VENV)/.ready-dev  ## the site, in docs/_build/html, always built anew; a broken link or reference is an error; needs Python 3.11 or newer
	$(ONE_THREAD) $(BIN)/python -m sphinx -W -n -E --keep-going -b html docs docs/_build/html $(ARGS)

docs-check: $(VENV)/.ready-dev  ## the pages: links, commands, entries of errors; every block of Python is run
	$(ONE_THREAD) $(BIN)/python -m pytest tests/test_docs.py tests/test_docs_code.py tests/test_gates.py $(ARGS)

oldest: $(VENV)-oldest/.ready  ## the heart of the tests with the oldest dependencies that are allowed
	$(ONE_THREAD) $(VENV)-oldest/bin/python -m pytest -q -W default::DeprecationWarning -W default::FutureWarning $(OLDEST) $(ARGS)

bare: $(VENV)-bare/.ready  ## without any extra: what works, and what says which extra it needs
	$(ONE_THREAD) $(VENV)-bare/bin/python -m pytest -q --confcutdir tests/bare tests/bare $(ARGS)

wheel: $(VENV)-wheel/.ready  ## the wheel, in an environment of its own: the command, and tests of the installed package
	cd $(VENV)-wheel && bin/sgdinf dataset.train_size=32 dataset.val_size=40 dataset.test_size=40 dataset.batch_size=16 model=logreg trainer.max_epochs=1 'cleansing.grid=[2]' report=short hydra.run.dir=out
	cd $(VENV)-wheel && cp -r ../tests/installed . && bin/python -m pytest -q -p no:cacheprovider --confcutdir installed installed $(ARGS)

check: lint types imports oldest bare wheel test docs  ## all that must hold, which is what CI runs

clean:  ## what was built, cached and run, but for the environments
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache lightning_logs outputs multirun docs/_build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch goes first, by itself: a plain name in a dependency list may pull a build for another device.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[cli]"
	touch $@

$(VENV)/.ready-dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable ".[cli,wandb,cleanlab,dev,docs,thirdparty]"
	touch $(VENV)/.ready $@

# What the oldest versions are most likely to break: recording, replay, the certificate, the log, the configuration.
OLDEST := tests/record/test_callback.py tests/replay tests/runner/test_certificate.py \
	tests/log/test_round_trip.py tests/log/test_command.py \
	tests/tasks/test_main.py::test_a_job_leaves_record_scores_report_and_row \
	tests/tasks/test_main.py::test_mistakes_end_with_one_line

# Nothing is compiled before it is imported: most of torch never is.
$(VENV)-oldest/.ready: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python $(INSTALL) constraints-oldest.txt --no-compile $(TORCH)
	$(VENV)-oldest/bin/python $(INSTALL) constraints-oldest.txt --no-compile --editable ".[cli,cleanlab]" pytest hypothesis
	touch $@

$(VENV)-wheel/.ready: constraints.txt pyproject.toml $(shell find lightning_sgdinf conf -type f -not -name '*.pyc')
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python $(INSTALL) constraints.txt build
	$(VENV)-wheel/bin/python -m build --wheel --outdir $(VENV)-wheel/dist .
	$(VENV)-wheel/bin/python $(INSTALL) constraints.txt --no-compile $(TORCH)
	$(VENV)-wheel/bin/python $(INSTALL) constraints.txt --no-compile "$$(ls $(VENV)-wheel/dist/*.whl)[cli]" pytest
	touch $@

$(VENV)-bare/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-bare
	$(VENV)-bare/bin/python $(INSTALL) constraints.txt --no-compile $(TORCH)
	$(VENV)-bare/bin/python $(INSTALL) constraints.txt --no-compile --editable . pytest
	touch $@
