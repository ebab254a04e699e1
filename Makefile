# make demo: install, then "SAM", "FT-SAM" and "SAM-Med2D" in small on data_demo/; leaves workdir/demo/
# make test: install, then the tests
# make lint: faults, format and types; make format: mends what can be mended by itself
# make wheel-check: build the wheel, install it outside this folder, and run it there
# make test PYTHON=python3.13: with another Python, in an environment of its own, .venv-python3.13

PYTHON ?= python3
VENV := .venv$(patsubst %,-%,$(filter-out python3,$(notdir $(PYTHON))))
RUN := $(VENV)/bin/python

.PHONY: demo test lint format wheel-check clean

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

# Each in a process of its own: beside others they have taken down the worker that ran them, without a trace.
APART := tests/app tests/export tests/test_notebook.py

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 $(addprefix --ignore ,$(APART))
	for part in $(APART); do OMP_NUM_THREADS=1 $(RUN) -m pytest -q $$part || exit 1; done

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

wheel-check: $(VENV)/installed-dev
	PYTHON=$(RUN) scripts/check_wheel.sh

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install -q -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install -q -e ".[dev]"
	touch $@ $(VENV)/installed

clean:
	rm -rf .venv .venv-* workdir
