# make demo: install, then "SAM", "FT-SAM" and "SAM-Med2D" in small on data_demo/; leaves workdir/demo/
# make test: install, then the tests
# make test-clients: install, with the tools of others that open what was trained here, into an environment of its own,
#   and the tests that drive them
# make lint: faults, format and types; make format: mends what can be mended by itself
# make wheel-check: build the wheel, install it outside this folder, and run it there
# make test PYTHON=python3.13: with another Python, in an environment of its own, .venv-python3.13

PYTHON ?= python3
VENV := .venv$(patsubst %,-%,$(filter-out python3,$(notdir $(PYTHON))))
RUN := $(VENV)/bin/python

CLIENTS := $(VENV)-clients

.PHONY: demo test test-clients lint format wheel-check clean

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

# Two at a time, each part in a process of its own, the long ones first: a folder, or ten files, since each process
# takes three seconds to load what it tests.
LONG := tests/training tests/test_scoring_script.py tests/segment_anything tests/export
PARTS := $(LONG) $(filter-out $(LONG),$(patsubst %/,%,$(sort $(dir $(wildcard tests/*/test_*.py)))))
FILES := $(filter-out $(LONG),$(wildcard tests/test_*.py))

test: $(VENV)/installed-dev
	{ printf '%s\n' $(PARTS); printf '%s %s %s %s %s %s %s %s %s %s\n' $(FILES); } | \
	    OMP_NUM_THREADS=1 xargs -P 2 -L 1 scripts/test_part.sh $(RUN)

# Each file in a process of its own: two of the tools have one name for their package.
test-clients: $(CLIENTS)/installed
	printf '%s\n' $(wildcard tests_clients/test_*.py) | \
	    OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen xargs -P 2 -n 1 scripts/test_part.sh $(CLIENTS)/bin/python

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

$(CLIENTS)/installed: pyproject.toml requirements.txt tests_clients/without_dependencies.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q -e ".[dev,clients]"
	$(CLIENTS)/bin/python -m pip install -q --no-deps -r tests_clients/without_dependencies.txt
	touch $@

clean:
	rm -rf .venv .venv-* workdir
