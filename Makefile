# make demo: see it work, in under two minutes. make test: check it. Everything happens in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FIGURES := build/bench/figures.jsonl
# More for pytest, as in: make test ARGS="-k lock -x"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv system demo test test-full bench bench-peers bench-docs lint lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "make %-11s %s\n", $$1, $$2}'

venv: $(READY)  ## make .venv with the pinned packages and this project
$(READY): requirements.lock pyproject.toml .ci/venv
	@.ci/venv "$(PYTHON)" "$(VENV)"
	@touch $@

# Quick where all is there. Root's apt brings Slurm and XRootD; HTCondor is unpacked beside, which anybody may.
system: $(READY)  ## what the tests of real batch systems need, where it may be installed (SYSTEM_PACKAGES=no: not)
	@$(BIN)/python tests/real/servers/install.py

demo: $(READY)  ## make a million events, run, kill, resume, merge and plot them, below demo/
	@$(BIN)/python -m configs.demo

# The tests run even where lint has something to say, so that one go tells all; the summary of pytest comes last.
test: $(READY) system  ## lint, then the tests
	@lint=0; $(MAKE) --no-print-directory lint || lint=$$?; \
	echo "$(BIN)/python -m pytest --ignore=tests/bench $(ARGS)"; \
	$(BIN)/python -m pytest --ignore=tests/bench $(ARGS) && exit $$lint

test-full: $(READY) system  ## the tests with the full counts of the fault tests (long)
	$(BIN)/python -m pytest --ignore=tests/bench --full $(ARGS)

# Figures are added to a file; of what is measured again the last run counts. Peers get environments of their own.
bench: $(READY) $(FIGURES)  ## the measurements of tests/bench, small; the full figures: make bench BENCH_FULL=1
	BENCH_JSON=$(abspath $(FIGURES)) $(BIN)/python -m pytest -s tests/bench $(ARGS)

bench-peers: $(READY) $(FIGURES)  ## the same physics through this project and through its peers
	BENCH_JSON=$(abspath $(FIGURES)) $(BIN)/python tests/bench/peers/compare.py

bench-docs: $(READY)  ## write the figures that were measured into docs/performance.md
	PYTHONPATH=tests $(BIN)/python tests/bench/performance.py $(FIGURES) docs/performance.md

$(FIGURES):
	@mkdir -p $(@D) && touch $@

lint: $(READY)  ## style and types
	@failed=0; for check in "ruff check --output-format=concise ." "ruff format --check ." "mypy"; do \
	echo "$(BIN)/$$check"; $(BIN)/$$check || failed=1; done; exit $$failed

lock: $(READY)  ## renew requirements.lock from the newest versions that fit
	@.ci/lock "$(PYTHON)"

clean:  ## remove .venv, the demo and all caches
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
