# Every target sets up what it needs: a fresh clone goes from nothing to done with `make test` or `make demo`.
PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --disable-pip-version-check
READY   := $(VENV)/.ready
TOOLS   := $(VENV)/.tools
# One thread per process: the tests run in $(WORKERS) processes.
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast demo lint format types docs stubs bench clean distclean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(READY)  ## the virtual environment: torch first, then the rest

# torch has its own line: left to the resolver, another release with several gigabytes of CUDA packages may be chosen.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --upgrade "pip>=25.1"
	$(PIP) torch==2.13.0
	$(PIP) --quiet --editable ".[all]" --group test --group docs
	touch $@

$(TOOLS): $(READY)
	$(PIP) --quiet --group lint
	touch $@

test: $(READY)  ## the whole suite
	$(PYTEST)

test-fast: $(READY)  ## the inner loop: nothing slow, nothing that reads the public data sets
	$(PYTEST) -m "not slow and not real_data"

demo: $(READY)  ## a working recommender, on http://127.0.0.1:8000; SERVE=0 ends after the report, DATA=movielens-1m reads real data
	$(BIN)/recstack demo $(if $(filter 0,$(SERVE)),--no-serve) $(if $(DATA),--data $(DATA)) --out runs/demo

lint: $(TOOLS)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TOOLS)  ## ruff: put both right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(TOOLS)  ## pyright
	$(BIN)/pyright

docs: $(READY)  ## the site, under site/; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

stubs: $(READY)  ## what is generated from the model files: their stubs and docs/catalog.md
	$(BIN)/python -m recstack.catalog

bench:  ## the commands of the benchmarks; results are in docs/benchmarks.md
	@sed -nE 's/^    (python benchmarks.*)/\1/p' benchmarks/*.py

clean:  ## caches and results; the virtual environment stays
	rm -rf runs site dist build .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## and the virtual environment
	rm -rf $(VENV)
