# make demo: install, then "SAM", "FT-SAM" and "SAM-Med2D" in small on data_demo/; leaves workdir/demo/
# make test: install, then the tests

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test clean

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 --ignore tests/test_notebook.py
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/test_notebook.py    # by itself: twice it took down a worker that others had used

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(wildcard requirements*.txt) $(VENV)/installed
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) workdir
