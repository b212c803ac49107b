# Two commands: `make demo` and `make test`. Both create the environment first.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: env demo test test-slow lint benchmark clean

env: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[test,bench]"
	touch $(READY)

demo: $(READY)
	$(PY) -m fcm_estimators.demo --output demo_output

# One thread per worker: two busy multi-threaded processes wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m slow

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

benchmark: $(READY)
	$(PY) benchmarks/classification.py all

clean:
	rm -rf $(VENV) demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
