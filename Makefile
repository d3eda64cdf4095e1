# make demo    everything from nothing: scenes, miniature models, MLE, SCST, ZeroCap, a report (10 to 20 minutes)
# make reproduce   the paper's table: ZeroCap, MLE and SCST over SEEDS=5, with a page in runs/reproduce
# make test    the test suite, in WORKERS=2 processes
# make fuzz    35,400 hostile inputs, in six minutes (make test draws one of forty)
# make properties   the property tests with examples that are drawn afresh, 1,000 of each
# make kill    training killed 100 times, MLE and SCST, continued bit for bit (make test kills it twice)
# make long    further seeds, layouts and sizes of the tests, and the benchmarks, on little
# make types   the tests with every annotated call checked (jaxtyping and beartype; 20 minutes)
# make docs    the documentation's site in build/docs; its tutorials are executed (minutes)
# make lint    ruff and pyright
# Each sets up its own environment in .venv on a fresh machine.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SEEDS ?= 1
OUT ?= runs/demo
WORKERS ?= 2

.PHONY: demo reproduce test fuzz properties long kill types docs lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	@echo "installing har_jax into $(VENV) ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# torch is pinned to a build for CPUs: it only serves as the oracle of the parity tests.
$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test requirements ..."
	$(PY) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: $(VENV)/.installed
	$(PY) -m har_jax.reproduce --scale=tiny --seeds=$(SEEDS) --out=$(OUT)

reproduce: SEEDS = 5
reproduce: OUT = runs/reproduce
reproduce: $(VENV)/.installed
	$(PY) -m har_jax.reproduce --table=paper --scale=tiny --seeds=$(SEEDS) --out=$(OUT)

test: $(VENV)/.installed-test
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal --durations=15

fuzz: $(VENV)/.installed-test
	FUZZ=all $(PY) -m pytest -q -n $(WORKERS) tests/fuzz

properties: $(VENV)/.installed-test
	$(PY) -m pytest -q -n $(WORKERS) -m hypothesis --hypothesis-profile=fuzz

long: $(VENV)/.installed-test
	$(PY) -m pytest -q -m long

kill: $(VENV)/.installed-test
	$(PY) -m pytest -q -m kill

types: $(VENV)/.installed-test
	$(PY) -m pytest -q -n $(WORKERS) --jaxtyping-packages=har_jax,tests.check

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing the requirements of the documentation ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs
	rm -rf build/docs build/tutorials
	HAR_TUTORIALS=build/tutorials TQDM_DISABLE=1 $(PY) docs/tutorials/world.py
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "written to build/docs/index.html"

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
