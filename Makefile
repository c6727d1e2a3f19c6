# Thin: each target prepares what it needs on a fresh machine and runs one thing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests start hundreds of processes: compile for all of them once, whatever the surroundings prefer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test soak faults bench bench-copy lint unit sample docs clean

demo: $(VENV)/installed
	$(BIN)/python -m tests.demo

test: $(VENV)/installed-test
	tests/prepare
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -q -n 3 --dist worksteal $(PYTEST_ARGS)

# make soak SOAK_ARGS="--minutes 60 --seed 1 --deployment separate"
soak: $(VENV)/installed-test
	$(BIN)/python -m tests.soak $(SOAK_ARGS)

# Ten kills at every step in every role, however long that takes, outages of half a minute, everything told.
faults: $(VENV)/installed-test
	tests/prepare
	MIGRATOR_FAULT_SECONDS=3600 MIGRATOR_FAULT_OUTAGE_SECONDS=30 $(BIN)/python -m pytest -q -s tests/faults

bench: $(VENV)/installed-test
	tests/prepare
	$(BIN)/python -m tests.bench

bench-copy: $(VENV)/installed-test
	tests/prepare
	$(BIN)/python -m tests.bench.bench_copy $(BENCH_ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --config-file setup.cfg

sample: $(VENV)/installed-test
	tests/generate-samples $(BIN)
	$(BIN)/python -m tests.draw_reference > doc/source/rest/reference.rst

docs: $(VENV)/installed-test
	$(BIN)/pip install -q -e '.[docs]'
	$(BIN)/sphinx-build -W -q doc/source doc/build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build doc/build *.egg-info
