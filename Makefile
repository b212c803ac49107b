# Two commands: `make demo` and `make test`. Both create the environment first.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

OLDEST := $(VENV)-oldest

.PHONY: env browser demo test test-slow test-oldest lint docs benchmark release-check clean

env: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[test,bench]"
	touch $(READY)

demo: $(READY)
	$(PY) -m fcm_estimators.demo --output demo_output

# The report is tested in a browser. As root on Debian it is installed; elsewhere those tests are
# skipped where there is none, and say so.
browser:
	@command -v chromium chromium-browser >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get install --yes --quiet --no-install-recommends chromium >/dev/null 2>&1 || \
	    { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium; } >/dev/null 2>&1; } || \
	  echo "no chromium: the tests of the report in a browser will be skipped"; }

# One thread per worker: two busy multi-threaded processes wait for each other.
test: $(READY) browser
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m slow

# The oldest versions that pyproject.toml allows, in an environment of their own. A library of that age warns of
# what its own newer dependencies will drop.
$(OLDEST)/.ready: pyproject.toml constraints.txt .ci/floors.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/floors.py > $(OLDEST)/floors.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints.txt --constraint $(OLDEST)/floors.txt \
	  --editable ".[gating,cohort,gpus]" hypothesis pytest pytest-xdist
	touch $(OLDEST)/.ready

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n 2 -m "not slow" -W ignore::DeprecationWarning -W ignore::FutureWarning \
	  $(addprefix tests/,test_doctor.py test_gating_exchange.py test_io.py test_metrics.py test_nn.py \
	  test_preprocessing.py test_quality.py test_stores.py test_workspaces.py explainers/test_attention.py explainers/test_gradient.py)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# The site, in docs/_build/html. Its tutorials are run, a quarter of an hour on one core; what ran before is
# kept until its page changes. `make docs NOTEBOOKS=off` builds the pages alone.
NOTEBOOKS ?= cache
docs: $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	OMP_NUM_THREADS=1 $(PY) -m sphinx -W --keep-going -q -b html -D nb_execution_mode=$(NOTEBOOKS) docs docs/_build/html

benchmark: $(READY)
	$(PY) benchmarks/classification.py all

# What a release is made of, in dist: notes from the changelog, and a wheel and an sdist that were built
# apart and whose wheel was installed and used in an empty environment. TAG=v1.2.3 checks the tag, too.
TAG ?=
release-check: $(READY)
	rm -rf dist
	mkdir dist
	$(PY) .ci/release.py $(TAG) > dist/notes.md
	$(PY) -m build --outdir dist .
	$(PYTHON) -m venv dist/env
	dist/env/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd dist && env/bin/python -I -m pip check && env/bin/fcm --version && env/bin/fcm train --help >/dev/null && \
	  env/bin/python -I -c "import fcm_estimators as f, explainers as e; assert f.__version__ == e.__version__; \
	  [getattr(m, n) for m in (f, e) for n in m.__all__]"
	rm -rf dist/env

clean:
	rm -rf $(VENV) $(OLDEST) demo_output docs/_build docs/api .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
